"""Both networks at their start, for all sizes and options: shapes, the spread of images, gradients everywhere."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from vitgan.models import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig
from vitgan.models.build import build_discriminator, build_generator
from vitgan.presets import PRESETS
from vitgan.training.losses import discriminator_loss

HEADS: list[dict[str, Any]] = [
    {"head": "linear"},
    *(
        {"head": "siren", "scope": scope, "demodulate": demodulate, "omega": omega}
        for scope, demodulate, omega in product(("patch", "image"), (False, True), (3.0, 30.0))
    ),
]


@given(
    patch=st.sampled_from([1, 2, 3, 4]),
    grid=st.integers(1, 4),
    channels=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 4),
    depth=st.integers(0, 2),
    options=st.sampled_from(HEADS),
    sln=st.sampled_from(["vector", "scalar"]),
)
def test_generators_of_any_size(
    patch: int, grid: int, channels: int, heads: int, width: int, depth: int, options: dict[str, Any], sln: Any
) -> None:
    config = GeneratorConfig(
        patch_size=patch, latent_dim=5, dim=heads * width, depth=depth, heads=heads, mapping_depth=1, sln=sln, **options
    )
    images = Generator(config, image_size=patch * grid, channels=channels)(torch.randn(2, 5))
    assert images.shape == (2, channels, patch * grid, patch * grid)
    assert images.isfinite().all()


@given(
    patch=st.sampled_from([2, 4, 6]),
    grid=st.integers(1, 4),
    channels=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 4),
    depth=st.integers(0, 2),
)
def test_discriminators_of_any_size(patch: int, grid: int, channels: int, heads: int, width: int, depth: int) -> None:
    config = DiscriminatorConfig(patch_size=patch, dim=heads * width, depth=depth, heads=heads)
    size = patch * grid
    logits = Discriminator(config, image_size=size, channels=channels)(torch.randn(2, channels, size, size))
    assert logits.shape == (2,)
    assert logits.isfinite().all()


def generator(**options: Any) -> Generator:
    config: dict[str, Any] = {"patch_size": 4, "latent_dim": 32, "dim": 32, "depth": 2, "heads": 2, "mapping_depth": 2}
    return Generator(GeneratorConfig(**(config | options)), image_size=16)


@pytest.mark.parametrize("sln", ["vector", "scalar"])
@pytest.mark.parametrize("options", HEADS, ids=str)
def test_images_start_neither_flat_nor_saturated(options: dict[str, Any], sln: str) -> None:
    """An equalised scale on top of the SIREN's own initialisation would make them flat, to a spread of 1e-9."""
    spreads = []
    for seed in range(3):
        torch.manual_seed(seed)
        images = generator(sln=sln, **options)(torch.randn(16, 32))
        spreads.append(images.std().item())
        assert images.std(0).mean() > 0.05, "they differ from each other"
        assert images.std((2, 3)).mean() > 0.05, "and have a structure"
    assert min(spreads) > 0.1
    assert max(spreads) < 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_and_start_well(name: str) -> None:
    config = PRESETS[name]
    with torch.no_grad():
        count = 2**14 // config.image_size**2  # 16 small images, or 4 or 1 of the larger ones
        images = build_generator(config)(torch.randn(count, config.generator.latent_dim))
        assert images.shape == (count, config.channels, config.image_size, config.image_size)
        assert 0.1 < images.std() < 1
        logits = build_discriminator(config)(images[:1].expand(4, -1, -1, -1))
    assert logits.shape == (4,)
    assert logits.isfinite().all()


def parameters_without_gradient(network: nn.Module) -> list[str]:
    """Those whose gradient is none, or nothing but rounding beside that of others."""
    largest = {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in network.named_parameters()}
    assert all(map(math.isfinite, largest.values()))
    return [name for name, gradient in largest.items() if gradient <= 1e-6 * max(largest.values())]


@pytest.mark.parametrize("sln", ["vector", "scalar"])
@pytest.mark.parametrize("options", HEADS, ids=str)
def test_every_parameter_of_the_generator_receives_a_gradient(options: dict[str, Any], sln: str) -> None:
    network = generator(sln=sln, **options)
    images = network(torch.randn(4, 32))
    (images * torch.randn_like(images)).sum().backward()
    assert parameters_without_gradient(network) == []


def test_the_fourier_layers_of_the_generator_are_trained() -> None:
    """Not so where coordinates or their features are detached."""
    network = generator()
    fourier = [p for name, p in network.named_parameters() if name.startswith(("positions.", "head.fourier."))]
    assert len(fourier) == 4
    before = [p.detach().clone() for p in fourier]
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    network(torch.randn(4, 32)).square().sum().backward()
    optimiser.step()
    for parameter, old in zip(fourier, before, strict=True):
        assert ((parameter - old).abs() > 0.005).float().mean() > 0.9


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_parameter_of_the_discriminator_receives_a_gradient(channels: int) -> None:
    network = Discriminator(
        DiscriminatorConfig(patch_size=4, dim=16, depth=2, heads=2), image_size=16, channels=channels
    )
    real, fake = network(torch.randn(8, channels, 16, 16)).chunk(2)
    discriminator_loss(real, fake).backward()
    assert parameters_without_gradient(network) == []


def test_gradients_go_through_the_discriminator_to_the_generator() -> None:
    config = DiscriminatorConfig(patch_size=4, dim=16, depth=2, heads=2)
    network, critic = generator(), Discriminator(config, image_size=16)
    critic(network(torch.randn(4, 32))).sum().backward()
    assert parameters_without_gradient(network) == []
