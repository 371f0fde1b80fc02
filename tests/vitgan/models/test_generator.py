"""The generator, held against the paper written out once more, and what can be done with it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from vitgan.models import Generator, GeneratorConfig
from vitgan.models.generator import LinearHead, SelfModulatedLayerNorm, SirenHead

SMALL = GeneratorConfig(
    patch_size=2, latent_dim=6, dim=8, depth=2, heads=2, mapping_depth=2, siren_hidden_layers=2, omega=3.0
)


def small(image_size: int = 6, channels: int = 3, **changes: Any) -> Any:
    """A generator; untyped, because tests reach into its layers."""
    return Generator(GeneratorConfig(**(vars(SMALL) | changes)), image_size=image_size, channels=channels)


class Paper:
    """Equations of section 3.3, one sample, one head, one patch and one pixel at a time where that can be."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator
        self.config = generator.config

    def images(self, z: Tensor) -> Tensor:
        g = self.generator
        out = []
        for w in self.mapping(z):
            h = self.fourier(g.positions, self.config.position_frequency)
            for block in g.blocks:
                h = h + self.attention(block.attention, self.sln(block.attention_norm, h, w))
                normed = self.sln(block.mlp_norm, h, w)
                h = h + self.linear(block.mlp[2], nn.functional.gelu(self.linear(block.mlp[0], normed)))
            out.append(self.fold(self.sln(g.norm, h, w)))
        return torch.stack(out)

    def mapping(self, z: Tensor) -> Tensor:
        w = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
        for layer in self.generator.mapping.layers:
            w = math.sqrt(2) * leaky_relu(self.linear(layer, w, 0.01), 0.2)
        return w

    def sln(self, norm: Any, h: Tensor, w: Tensor) -> Tensor:
        normed = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        return self.linear(norm.gamma, w) * normed + self.linear(norm.beta, w)

    def attention(self, attention: Any, x: Tensor) -> Tensor:
        dim, width = x.shape[1], x.shape[1] // self.config.heads
        q, k, v = self.linear(attention.to_qkv, x).split(dim, dim=1)
        heads = []
        for start in range(0, dim, width):
            part = slice(start, start + width)
            heads.append(torch.softmax(q[:, part] @ k[:, part].mT / math.sqrt(width), dim=1) @ v[:, part])
        return self.linear(attention.to_out, torch.cat(heads, dim=1))

    def fold(self, y: Tensor) -> Tensor:
        """Patch i of the image, in rows, from token i."""
        size, patch = self.generator.image_size, self.config.patch_size
        image = y.new_full((self.generator.channels, size, size), torch.nan)
        for i, token in enumerate(y):
            row, column = divmod(i, size // patch)
            pixels = self.patch(token)
            for p in range(patch * patch):
                y_place, x_place = divmod(p, patch)
                image[:, row * patch + y_place, column * patch + x_place] = pixels[p]
        return image

    def patch(self, token: Tensor) -> Tensor:
        head: Any = self.generator.head
        if self.config.head == "linear":
            return self.linear(head.linear, token).view(-1, self.generator.channels) / 4
        siren = head.siren
        x = self.fourier(head.fourier, self.config.fourier_frequency)
        for index, (weight, bias, to_style) in enumerate(
            zip(siren.weights, siren.biases, siren.to_styles, strict=True)
        ):
            hidden = index < len(siren.weights) - 1
            omega = math.sqrt(2) if self.config.demodulate else self.config.omega
            scale = math.sqrt(2 / weight.shape[1]) / omega if hidden else 0.5 / math.sqrt(weight.shape[1])
            modulated = weight * scale * self.linear(to_style, token)
            if self.config.demodulate:
                modulated = modulated / (modulated.square().sum(1, keepdim=True) + 1e-8).sqrt()
            x = x @ modulated.mT + (bias / omega if hidden else bias)
            x = torch.sin(omega * x) if hidden else x
        return x

    def fourier(self, layer: Any, frequency: float) -> Tensor:
        return torch.sin(layer.positions @ (frequency * layer.linear.weight).mT + layer.linear.bias)

    @staticmethod
    def linear(layer: Any, x: Tensor, lr_multiplier: float = 1.0) -> Tensor:
        return lr_multiplier * (x @ layer.weight.mT / math.sqrt(layer.weight.shape[1]) + layer.bias)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sln": "scalar"},
        {"demodulate": True},
        {"head": "linear"},
        {"siren_hidden_layers": 1, "siren_dim": 5, "heads": 4, "depth": 1},
        {"mlp_ratio": 1.5, "position_frequency": 1.0, "fourier_frequency": 5.0, "mapping_depth": 3},
    ],
    ids=str,
)
def test_the_generator_is_that_of_the_paper(changes: dict[str, Any]) -> None:
    generator = small(**changes).double()
    with torch.no_grad():  # away from the zeros and ones of the start
        for parameter in generator.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    z = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(generator(z), Paper(generator).images(z), rtol=1e-9, atol=1e-9)


def test_widths_and_depths_are_those_of_the_configuration() -> None:
    generator = small(siren_dim=5, mlp_ratio=1.5, mapping_depth=3)
    shapes = {name: tuple(parameter.shape) for name, parameter in generator.named_parameters()}
    siren = [shapes[f"head.siren.weights.{layer}"] for layer in range(SMALL.siren_hidden_layers + 1)]
    assert siren == [(5, 5), (5, 5), (3, 5)]
    assert shapes["head.siren.to_styles.0.weight"] == (5, 8)
    assert shapes["head.fourier.linear.weight"] == (5, 2)
    assert small().head.siren.weights[0].shape == (8, 8), "as wide as a token, unless it is given"
    assert shapes["blocks.0.mlp.0.weight"] == (12, 8)
    assert len(generator.mapping.layers) == 3
    assert len(generator.blocks) == SMALL.depth


def test_every_site_has_a_modulated_norm_of_its_own() -> None:
    generator = small(depth=3)
    used: list[nn.Module] = []
    norms = [module for module in generator.modules() if isinstance(module, SelfModulatedLayerNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda module, args, output: used.append(module))
    generator(torch.randn(1, 6))
    assert len(norms) == 2 * 3 + 1
    assert len(used) == len(set(used)) == len(norms), "each is used once"
    parameters = [id(parameter) for norm in norms for parameter in norm.parameters()]
    assert len(set(parameters)) == len(parameters) == 4 * len(norms)


def test_the_feed_forward_result_is_added_and_not_discarded() -> None:
    block = small().blocks[0]
    h, w = torch.randn(2, 9, 8), torch.randn(2, 6)
    before = block(h, w)
    with torch.no_grad():
        block.mlp[2].bias += 1
    torch.testing.assert_close(block(h, w), before + 1)


def test_the_norm_of_a_scalar_sln_has_one_gamma_and_one_beta() -> None:
    norm = small(sln="scalar").norm
    assert norm.gamma.weight.shape == norm.beta.weight.shape == (1, 6)
    assert small().norm.gamma.weight.shape == (8, 6)
    torch.testing.assert_close(norm.gamma.bias, torch.ones(1))


def test_w_depends_on_the_direction_of_z_alone() -> None:
    mapping, z = small().mapping, torch.randn(4, 6)
    torch.testing.assert_close(mapping(5 * z), mapping(z))
    assert not torch.allclose(mapping(-z), mapping(z))


class Marks(nn.Module):
    """Stands for a SIREN: the colour of a pixel says which patch it is of, which pixel of it, and which channel."""

    def forward(self, points: Tensor, style: Tensor) -> Tensor:
        pixel = torch.arange(len(points))[None, :, None]
        return 1000 * style[:, :1, None] + 10 * pixel + torch.arange(3)


def marked_image(patches_per_side: int, patch: int) -> Tensor:
    image = torch.empty(3, patches_per_side * patch, patches_per_side * patch)
    for channel, row, column in torch.cartesian_prod(torch.arange(3), *[torch.arange(image.shape[1])] * 2).tolist():
        token = row // patch * patches_per_side + column // patch
        pixel = row % patch * patch + column % patch
        image[channel, row, column] = 1000 * token + 10 * pixel + channel
    return image


def test_a_siren_s_patches_pixels_and_channels_land_in_their_places() -> None:
    config = GeneratorConfig(patch_size=4, dim=4, heads=1)
    head = SirenHead(config, grid=3, channels=3)
    head.siren = Marks()  # type: ignore[assignment]
    y = torch.arange(9.0)[None, :, None].repeat(2, 1, 4)
    y[1] += 9  # the second image has tokens of its own
    images = head(y)
    torch.testing.assert_close(images, torch.stack([marked_image(3, 4), marked_image(3, 4) + 9000]))


def test_a_siren_for_the_whole_image_has_one_style_and_all_pixels() -> None:
    head = SirenHead(GeneratorConfig(patch_size=4, dim=4, heads=1, scope="image"), grid=3, channels=3)
    head.siren = Marks()  # type: ignore[assignment]
    head.combine = nn.Identity()
    torch.testing.assert_close(
        head(torch.tensor([[2.0], [5.0]])), marked_image(1, 12) + torch.tensor([2e3, 5e3]).view(2, 1, 1, 1)
    )


def test_a_siren_for_the_whole_image_hears_every_token() -> None:
    generator = small(scope="image")
    y = torch.randn(1, 9, 8, requires_grad=True)
    generator.head(y).square().sum().backward()
    assert y.grad is not None
    assert (y.grad.abs().sum(2) > 0).all()


def test_a_linear_head_s_patches_pixels_and_channels_land_in_their_places() -> None:
    head = LinearHead(GeneratorConfig(patch_size=4, dim=1, heads=1, head="linear"), grid=3, channels=3)
    with torch.no_grad():
        head.linear.weight.fill_(1000)
        head.linear.bias.copy_((10 * torch.arange(16)[:, None] + torch.arange(3)).flatten())
    image = head(torch.arange(9.0).view(1, 9, 1))
    torch.testing.assert_close(image * 4, marked_image(3, 4)[None])


@pytest.mark.parametrize("head", ["siren", "linear"])
def test_a_token_reaches_its_patch_and_no_other(head: str) -> None:
    generator = small(head=head)
    y = torch.randn(1, 9, 8)
    before = generator.head(y)
    y[:, 5] += 1
    changed = (generator.head(y) != before).any(1)[0]
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2:4, 4:6] = True
    assert torch.equal(changed, expected)


def test_positions_of_tokens_are_the_centres_of_their_patches() -> None:
    generator = small(image_size=8, patch_size=2)
    row, column = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    centres = torch.stack([(2 * place + 1) / 8 - 1 for place in (row, column)], dim=-1)
    for token, position in enumerate(generator.positions.positions):
        i, j = divmod(token, 4)
        torch.testing.assert_close(position, centres[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((0, 1)))


def test_samples_repeat_by_seed_and_leave_the_random_state_alone() -> None:
    generator = small()
    state = torch.get_rng_state()
    images = generator.sample(5, seed=3)
    assert images.shape == (5, 3, 6, 6)
    assert not images.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(generator.sample(5, seed=3), images, rtol=0, atol=0)
    assert (generator.sample(5, seed=4) - images).abs().amax((1, 2, 3)).min() > 1e-3
    assert (images[1:] - images[0]).abs().amax((1, 2, 3)).min() > 1e-3, "the images of a sample differ"


class SeesItsBatch(Generator):
    """A generator whose w and images tell how many are computed at once, and where in the batch: on any machine."""

    def __init__(self) -> None:
        super().__init__(SMALL, image_size=6, classes=3)
        self.mapping.register_forward_hook(lambda _, args, w: w + 1e-3 * len(w) + place(w))

    def synthesise(self, w: Tensor) -> Tensor:
        return super().synthesise(w) + 1e-3 * len(w) + place(w).view(-1, 1, 1, 1)


def place(rows: Tensor) -> Tensor:
    return 1e-5 * torch.arange(len(rows)).unsqueeze(1)


@pytest.mark.parametrize("make", [lambda: small(), SeesItsBatch], ids=["plain", "sees its batch"])
@pytest.mark.parametrize("truncation", [1.0, 0.7])
def test_an_image_of_a_seed_is_the_same_bit_for_bit_whatever_the_count(make: Any, truncation: float) -> None:
    generator = make()
    many = generator.sample(77, seed=3, truncation=truncation)
    for count in (1, 5, 32, 33):
        assert torch.equal(generator.sample(count, seed=3, truncation=truncation), many[:count])
        assert torch.equal(generator.latents(count, seed=3), generator.latents(77, seed=3)[:count])
        w = generator.map_latents(count, seed=3)
        parts = list(generator.render_batches(w, truncation=truncation, mean=generator.mean_w()))
        assert torch.equal(torch.cat(parts), many[:count])


def test_samples_are_images_of_the_generator_clipped_to_the_range() -> None:
    generator = small()
    with torch.no_grad():
        generator.head.siren.weights[-1].mul_(5)
        images = generator(generator.latents(4, seed=7))
    assert images.abs().max() > 1
    torch.testing.assert_close(generator.sample(4, seed=7), images.clamp(-1, 1))


def test_samples_have_the_dtype_of_the_weights() -> None:
    assert small().double().sample(2).dtype == torch.float64
    assert small().bfloat16().sample(2, truncation=0.5).dtype == torch.bfloat16


@pytest.mark.parametrize("count", [-1, 2.5])
def test_a_number_of_samples_that_there_is_not(count: Any) -> None:
    with pytest.raises(ValueError, match=f"the number of latents must be a whole number of at least 0, got {count}"):
        small().sample(count)


def test_no_sample() -> None:
    assert small().sample(0).shape == (0, 3, 6, 6)
    assert small().sample(0, truncation=0.5).shape == (0, 3, 6, 6)


def test_truncation_goes_from_the_mean_image_to_the_full_spread() -> None:
    generator = small()
    spreads = []
    for truncation in (0.0, 0.5, 1.0):
        images = generator.sample(16, truncation=truncation)
        spreads.append((images - images[0]).square().mean().sqrt().item())
    assert spreads[0] < 1e-6
    assert 0.01 < spreads[1] < spreads[2]
    torch.testing.assert_close(generator.sample(3, seed=1, truncation=1.0), generator.sample(3, seed=1))
    mean = generator.mapping(generator.latents(4096, seed=0)).mean(0, keepdim=True)
    torch.testing.assert_close(generator.sample(1, truncation=0.0), generator.render(mean))


def test_interpolation_walks_round_through_its_stops() -> None:
    generator = small()
    stops = generator.sample(4, seed=5)
    walk = generator.render(generator.walk(12, seed=5, stops=4))
    torch.testing.assert_close(walk[::3], stops)
    points = generator.mapping(generator.latents(4, seed=5))
    torch.testing.assert_close(walk[11:], generator.render(points[3:].lerp(points[:1], 2 / 3)), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least 1 image and 1 stop, got 0 and 4"):
        generator.walk(0)
    assert generator.render(generator.walk(3, stops=1)).shape == (3, 3, 6, 6)


def test_latents_are_standard_normal_and_repeat_by_seed() -> None:
    generator = small()
    latents = generator.latents(2000, seed=1)
    assert latents.shape == (2000, 6)
    assert abs(latents.mean().item()) < 0.05
    assert latents.std().item() == pytest.approx(1, rel=0.05)
    torch.testing.assert_close(generator.latents(2000, seed=1), latents, rtol=0, atol=0)


def test_a_batch_is_images_side_by_side() -> None:
    generator = small()
    z = torch.randn(3, 6)
    torch.testing.assert_close(generator(z), torch.cat([generator(one) for one in z.split(1)]))
    assert generator(z[:0]).shape == (0, 3, 6, 6)


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [
        ({"patch_size": 4}, {}, "the image size must be a multiple of the patch size, got 6 and 4"),
        ({"patch_size": 0}, {}, "multiple of the patch size, got 6 and 0"),
        ({}, {"image_size": 0}, "multiple of the patch size, got 0 and 2"),
        ({}, {"channels": 0}, r"channels must be 1 to 4 \(grey, grey \+ alpha, RGB, RGBA\), got 0"),
        ({}, {"channels": 5}, "channels must be 1 to 4 .*, got 5"),
        ({"heads": 3}, {}, "dim must be a positive multiple of heads, got dim=8 and heads=3"),
        ({"heads": 0}, {}, "dim must be a positive multiple of heads, got dim=8 and heads=0"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict[str, Any], sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**sizes, **changes)


def test_omega_matters_where_the_siren_is_not_equalised() -> None:
    def outputs(omega: float, equalised: bool) -> torch.Tensor:
        torch.manual_seed(0)
        config = GeneratorConfig(
            patch_size=2, latent_dim=6, dim=8, depth=0, heads=1, omega=omega, equalised_siren=equalised
        )
        generator = Generator(config, image_size=4)
        optimiser = torch.optim.Adam(generator.parameters(), lr=1e-3)
        generator(generator.latents(4, seed=0)).square().mean().backward()
        optimiser.step()
        return generator.sample(4, seed=0)

    torch.testing.assert_close(outputs(1.0, True), outputs(30.0, True), rtol=1e-4, atol=1e-4)
    assert (outputs(1.0, False) - outputs(30.0, False)).abs().max() > 0.02
