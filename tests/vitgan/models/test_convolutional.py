"""The convolutional generator and discriminator, and the StyleGAN2 discriminator."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.models import (
    CnnDiscriminator,
    CnnDiscriminatorConfig,
    CnnGenerator,
    CnnGeneratorConfig,
    StyleGan2Discriminator,
    StyleGan2DiscriminatorConfig,
)
from vitgan.models.stylegan2 import blur, group_deviation

CNN = CnnDiscriminatorConfig(width=4, max_width=16)
STYLEGAN2 = StyleGan2DiscriminatorConfig(width=16)


def critic(kind: str, **options: int) -> CnnDiscriminator | StyleGan2Discriminator:
    if kind == "cnn":
        return CnnDiscriminator(CNN, **options)
    return StyleGan2Discriminator(STYLEGAN2, **options)


@pytest.mark.parametrize("image_size", [4, 8, 32])
@pytest.mark.parametrize("channels", [1, 4])
def test_sizes(image_size: int, channels: int) -> None:
    generator = CnnGenerator(
        CnnGeneratorConfig(latent_dim=8, width=4, max_width=16), image_size=image_size, channels=channels
    )
    images = generator(torch.randn(4, 8))
    assert images.shape == (4, channels, image_size, image_size)
    for kind in ("cnn", "stylegan2"):
        logits = critic(kind, image_size=image_size, channels=channels)(images)
        assert logits.shape == (4,)
        logits.sum().backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in generator.parameters())


@pytest.mark.parametrize("image_size", [2, 12, 33])
def test_sizes_that_halving_does_not_bring_to_four_are_refused(image_size: int) -> None:
    for build in (
        lambda: CnnGenerator(CnnGeneratorConfig(), image_size=image_size),
        lambda: critic("cnn", image_size=image_size),
        lambda: critic("stylegan2", image_size=image_size),
    ):
        with pytest.raises(ValueError, match=f"4, 8, 16, 32, ..., got {image_size}"):
            build()


def test_generated_images_start_neither_flat_nor_saturated_and_are_not_bounded() -> None:
    images = CnnGenerator(CnnGeneratorConfig())(torch.randn(32, 128))
    assert 0.2 < images.std() < 1
    assert images.std(0).mean() > 0.1, "they differ from each other"
    assert images.std((2, 3)).mean() > 0.1, "and have a structure"
    assert images.abs().max() > 1.01, "no tanh at the end"


def test_a_generated_image_does_not_depend_on_the_others() -> None:
    generator, z = CnnGenerator(CnnGeneratorConfig(width=4)), torch.randn(4, 128)
    torch.testing.assert_close(generator(z)[1:3], generator(z[1:3]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["cnn", "stylegan2"])
def test_the_logit_is_linear_in_the_last_features_and_unbounded(kind: str) -> None:
    network = critic(kind, image_size=16).eval()
    seen: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    logits = network(torch.randn(64, 3, 16, 16))
    assert logits.min() < 0 < logits.max() or logits.std() > 0
    x = seen[0]
    direct, double = network.head(x), network.head(2 * x)
    zero = network.head(torch.zeros_like(x))
    torch.testing.assert_close(double - zero, 2 * (direct - zero))
    assert network.head(-1000 * x).min() < -1, "bounded below by no activation"


@pytest.mark.parametrize("kind", ["cnn", "stylegan2"])
def test_every_parameter_of_a_discriminator_receives_a_gradient_also_of_r1(kind: str) -> None:
    network = critic(kind, image_size=16)
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    logits = network(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    (gradient.square().sum() + F.softplus(logits).sum()).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_cnn_discriminator_is_under_spectral_normalisation() -> None:
    network = critic("cnn", image_size=16)
    assert isinstance(network, CnnDiscriminator)
    matrices = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(network.spectral_norm.names) == len(matrices) == 4
    assert "head.parametrizations.weight.0._u" in network.state_dict()


def test_blur_keeps_means_halves_sides_and_removes_the_finest_pattern() -> None:
    flat = torch.ones(1, 2, 8, 8)
    torch.testing.assert_close(blur(flat, padding=2)[:, :, 3:-3, 3:-3], flat[:, :, :3, :3])
    assert blur(flat, padding=1, stride=2).shape == (1, 2, 4, 4)
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 1, 8, 8)
    assert blur(stripes, padding=1, stride=2)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_blur_is_a_filter_with_1_3_3_1() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    torch.testing.assert_close(blur(x, padding=2)[0, 0, 3:7, 3:7], taps[:, None] * taps)


def test_deviation_is_that_of_a_group_of_neighbours() -> None:
    x = torch.randn(8, 3, 4, 4)
    deviation = group_deviation(x, 4)
    assert deviation.shape == (8, 1, 4, 4)
    for rows in (slice(0, 4), slice(4, 8)):
        expected = x[rows].std(0, unbiased=False).mean()
        torch.testing.assert_close(deviation[rows], expected.expand(4, 1, 4, 4))
    with pytest.raises(ValueError, match="groups of 4: give a multiple of 4 images, not 6"):
        group_deviation(x[:6], 4)


def test_real_images_and_generated_ones_laid_end_to_end_do_not_mix() -> None:
    network = critic("stylegan2", image_size=8)
    real, fake = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(torch.cat([real, fake])), torch.cat([network(real), network(fake)]))


def test_a_collapsed_batch_looks_different_to_stylegan2_s_discriminator() -> None:
    network = critic("stylegan2", image_size=8)
    image = torch.randn(1, 3, 8, 8)
    alone = network(image.expand(4, -1, -1, -1))[0]
    among = network(torch.cat([image, torch.randn(3, 3, 8, 8)]))[0]
    assert (alone - among).abs() > 1e-3


def test_without_groups_each_image_is_judged_by_itself() -> None:
    network = StyleGan2Discriminator(StyleGan2DiscriminatorConfig(width=8, minibatch_group=1), image_size=8)
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(network(images)[2:3], network(images[2:3]))


@pytest.mark.parametrize("kind", ["cnn", "stylegan2"])
def test_images_of_another_size_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="takes images of"):
        critic(kind, image_size=16)(torch.randn(4, 3, 8, 8))
