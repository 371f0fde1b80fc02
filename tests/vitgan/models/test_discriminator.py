"""The discriminator, held against the paper written out once more."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from vitgan.models import Discriminator, DiscriminatorConfig
from vitgan.training.losses import gradient_penalty

SMALL = DiscriminatorConfig(patch_size=4, dim=8, depth=2, heads=2)


def small(image_size: int = 12, channels: int = 3, **changes: Any) -> Any:
    """A discriminator; untyped, because tests reach into its layers."""
    config = DiscriminatorConfig(**(vars(SMALL) | changes))
    return Discriminator(config, image_size=image_size, channels=channels)


def moved(discriminator: Any) -> Any:
    """Away from the zeros and ones of the start, and from where the power iteration had converged."""
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return discriminator


class Paper:
    """Section 3.2, one image, one patch and one head at a time where that can be."""

    def __init__(self, discriminator: Any) -> None:
        self.discriminator = discriminator
        self.config = discriminator.config

    def logits(self, images: Tensor) -> Tensor:
        d = self.discriminator
        out = []
        for image in images:
            grid = torch.sin(
                d.positions.positions @ (3 * self.normalised(d.positions.linear)).mT + d.positions.linear.bias
            )
            h = torch.stack([d.class_token, *(self.patches(image) + grid)])
            for block in d.blocks:
                h = h + self.attention(block.attention, self.norm(block.attention_norm, h))
                normed = self.norm(block.mlp_norm, h)
                h = h + self.linear(block.mlp[2], gelu(self.linear(block.mlp[0], normed)))
            out.append(self.linear(d.head, self.norm(d.norm, h)[0]))
        return torch.cat(out)

    def patches(self, image: Tensor) -> Tensor:
        """Windows of twice the patch's side around each patch, beyond the image zero, as rows of the grid."""
        layer, size = self.discriminator.patches, self.config.patch_size
        weight = self.normalised(layer) / math.sqrt(layer.weight[0].numel())
        padded = pad(image, (size // 2,) * 4)
        starts = range(0, image.shape[1], size)
        windows = [padded[:, row : row + 2 * size, column : column + 2 * size] for row in starts for column in starts]
        return torch.stack([torch.einsum("ochw,chw->o", weight, window) + layer.bias for window in windows])

    def attention(self, attention: Any, x: Tensor) -> Tensor:
        width = x.shape[1] // self.config.heads
        scale = width**-0.5 if self.config.attention_scale is None else self.config.attention_scale
        q, v = self.linear(attention.to_q, x), self.linear(attention.to_v, x)
        heads = []
        for start in range(0, x.shape[1], width):
            part = slice(start, start + width)
            distances = (q[:, None, part] - q[None, :, part]).square().sum(2)
            heads.append(torch.softmax(-scale * distances, dim=1) @ v[:, part])
        return self.linear(attention.to_out, torch.cat(heads, dim=1))

    def linear(self, layer: Any, x: Tensor) -> Tensor:
        out = x @ self.normalised(layer).mT / math.sqrt(layer.weight.shape[1])
        return out if layer.bias is None else out + layer.bias

    @staticmethod
    def normalised(layer: Any) -> Tensor:
        """Improved spectral normalisation: the norm of the start over the present one, as far as u and v know it."""
        weight, state = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
        return state.sigma_init * weight / (state._u @ weight.flatten(1) @ state._v)

    @staticmethod
    def norm(norm: Any, h: Tensor) -> Tensor:
        normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return norm.weight * normed + norm.bias


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"heads": 4, "depth": 1, "attention_scale": 0.7}, {"patch_size": 2, "mlp_ratio": 1.5}, {"patch_size": 12}],
    ids=str,
)
def test_the_discriminator_is_that_of_the_paper(changes: dict[str, Any], training: bool) -> None:
    discriminator = moved(small(**changes).double()).train(training)
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    logits = discriminator(images)
    assert logits.shape == (2,)
    torch.testing.assert_close(logits, Paper(discriminator).logits(images))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_fewer_tokens_are_the_first_of_all_and_the_last_block_computes_no_others(depth: int) -> None:
    discriminator = moved(small(depth=depth).double()).eval()
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    every = discriminator.encode(images)
    assert every.shape == (2, 1 + 9, 8)
    lengths: list[int] = []
    for block in discriminator.blocks:
        for layer in (block.attention.to_out, block.mlp):
            layer.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    for tokens in (1, 4):
        torch.testing.assert_close(discriminator.encode(images, tokens), every[:, :tokens])
    discriminator(images)
    assert lengths == [
        length for tokens in (1, 4, 1) for length in [*[10] * (depth - 1), tokens][:depth] for _layer in range(2)
    ]


@pytest.mark.parametrize("tokens", [0, -1, 11])
@pytest.mark.parametrize("depth", [0, 1])
def test_tokens_that_there_are_not(tokens: int, depth: int) -> None:
    with pytest.raises(ValueError, match=f"tokens must be from 1 to 10, got {tokens}"):
        small(depth=depth).encode(torch.randn(2, 3, 12, 12), tokens)


def test_r1_and_its_gradient_in_every_weight() -> None:
    """The double backward through tied attention, layer norms and spectral normalisation."""
    discriminator = moved(small().double()).eval()
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64, requires_grad=True)
    parameters = list(discriminator.parameters())
    results = []
    for logits in (discriminator(images), Paper(discriminator).logits(images)):
        penalties = gradient_penalty(logits, images)
        gradients = torch.autograd.grad(penalties.mean(), parameters, materialize_grads=True)
        results.append((penalties, gradients))
    torch.testing.assert_close(results[0], results[1])
    assert sum(bool(gradient.any()) for gradient in results[0][1]) >= len(parameters) - 2, "all but the last biases"


def test_overlapping_patches_give_one_token_a_patch() -> None:
    """Without padding there would be 49 of them, not 64."""
    discriminator = small(image_size=32)
    lengths: list[int] = []
    discriminator.blocks[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    discriminator(torch.randn(2, 3, 32, 32))
    assert lengths == [64 + 1]


def test_a_patch_sees_its_own_pixels_and_half_of_its_neighbours() -> None:
    discriminator = small(image_size=16)
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    tokens = discriminator.patches(images)[0].T
    for index in range(16):
        (gradient,) = torch.autograd.grad(tokens[:, index].sum(), images, retain_graph=True)
        row, column = divmod(index, 4)
        expected = torch.zeros(16, 16, dtype=torch.bool)
        expected[max(4 * row - 2, 0) : 4 * row + 6, max(4 * column - 2, 0) : 4 * column + 6] = True
        assert torch.equal((gradient[0] != 0).all(0), expected)
        assert torch.equal((gradient[0] != 0).any(0), expected)


def test_positions_of_tokens_are_the_centres_of_their_patches() -> None:
    """Tokens are told apart by position alone, so moving what is in a patch to another one moves the logit."""
    discriminator = small(image_size=16).eval()
    for index, position in enumerate(discriminator.positions.positions):
        centre = [(4 * place + 2) / 8 - 1 for place in divmod(index, 4)]
        assert position.tolist() == centre
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, 2, 2] = images[1, :, 2, 14] = 5
    logits = discriminator(images)
    assert abs(logits[0] - logits[1]) > 1e-4


def test_the_logit_is_unbounded_on_both_sides() -> None:
    """An activation after the last layer would bound it below."""
    discriminator = small()
    images = torch.randn(4, 3, 12, 12)
    before = discriminator.eval()(images)
    for shift in (-1000, 1000):
        with torch.no_grad():
            discriminator.head.bias.add_(shift)
        torch.testing.assert_close(discriminator(images), before + shift, rtol=0, atol=1e-3)
        with torch.no_grad():
            discriminator.head.bias.sub_(shift)


def test_queries_and_keys_share_one_projection() -> None:
    discriminator = small()
    assert all(block.attention.to_k is None for block in discriminator.blocks)
    assert not any("to_k" in name for name, _ in discriminator.named_parameters())


def test_the_feed_forward_result_is_added_and_not_discarded() -> None:
    block = small().blocks[0]
    h = torch.randn(2, 9, 8)
    before = block(h)
    with torch.no_grad():
        block.mlp[2].bias += 1
    torch.testing.assert_close(block(h), before + 1)


def test_every_matrix_is_spectrally_normalised_and_keeps_its_norm() -> None:
    discriminator = small()
    raw = {name for name, parameter in discriminator.named_parameters() if parameter.ndim >= 2}
    assert raw == {f"{name}.parametrizations.weight.original" for name in discriminator.spectral_norm.names}
    assert len(raw) == 2 * 5 + 3, "five a block, patches, positions and head"
    matrices = [m for m in discriminator.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    before = [torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in matrices]
    with torch.no_grad():
        for name in raw:
            discriminator.get_parameter(name).mul_(4)
    after = [torch.linalg.svdvals(layer.weight.flatten(1))[0] for layer in matrices]
    torch.testing.assert_close(after, before, rtol=1e-3, atol=0)


def test_training_moves_the_power_iteration_and_evaluation_does_not() -> None:
    discriminator = moved(small())
    images = torch.randn(2, 3, 12, 12)
    state = {name: x.clone() for name, x in discriminator.state_dict().items()}
    discriminator.eval()(images)
    torch.testing.assert_close(discriminator.state_dict(), state, rtol=0, atol=0)
    discriminator.train()(images)
    vectors = [name for name in state if name.endswith(("_u", "_v"))]
    assert len(vectors) == 2 * len(discriminator.spectral_norm.names)
    still = [name for name in vectors if torch.equal(discriminator.state_dict()[name], state[name])]
    assert still == [name for name in vectors if state[name].numel() == 1], "a unit vector of one number cannot move"


def test_a_state_dict_is_all_there_is_to_a_discriminator() -> None:
    one, other = moved(small()), small()
    images = torch.randn(2, 3, 12, 12)
    one(images)
    other.load_state_dict(one.state_dict())
    torch.testing.assert_close(other(images), one(images), rtol=0, atol=0)


def test_each_logit_depends_on_its_own_image_alone() -> None:
    discriminator = small().eval()
    images = torch.randn(3, 3, 12, 12, requires_grad=True)
    (gradient,) = torch.autograd.grad(discriminator(images)[1], images)
    assert (gradient.abs().sum((1, 2, 3)) > 0).tolist() == [False, True, False]
    torch.testing.assert_close(discriminator(images[1:2]), discriminator(images)[1:2])
    assert discriminator(images[:0]).shape == (0,)


def test_works_under_autocast() -> None:
    discriminator = small().eval()
    images = torch.randn(2, 3, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        logits = discriminator(images)
    torch.testing.assert_close(logits.float(), discriminator(images), rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"patch_size": 8}, {}, "the image size must be a multiple of the patch size, got 12 and 8"),
        ({"patch_size": 3}, {}, "the discriminator's patch size must be even, to overlap by half, got 3"),
        ({}, {"channels": 5}, "channels must be 1 to 4 .*, got 5"),
        ({"heads": 3}, {}, "dim must be a positive multiple of heads, got dim=8 and heads=3"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**sizes, **changes)


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 12, 12), (3, 12, 12)])
def test_images_of_another_size(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"this discriminator takes images of \(3, 12, 12\), got "):
        small()(torch.randn(shape))
