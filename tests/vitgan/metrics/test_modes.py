import math
from functools import lru_cache
from typing import NoReturn

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitgan.data import Shapes
from vitgan.data.shapes import BACKGROUND
from vitgan.metrics import modes
from vitgan.metrics.modes import ModeCoverage, match_modes, mode_coverage

COUNT = 720
GROUND = (torch.tensor(BACKGROUND) / 127.5 - 1).view(1, 3, 1, 1)


@lru_cache
def shapes(size: int = 32) -> Shapes:
    return Shapes(size, size=COUNT, seed=123)


def renders(size: int = 32) -> Tensor:
    return shapes(size).fetch(range(COUNT)).float() / 127.5 - 1


def blur(images: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    weights = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    across = (weights / weights.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, across, groups=3), across.transpose(2, 3), groups=3)


def noise(images: Tensor, sigma: float) -> Tensor:
    return images + sigma * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


def right(samples: Tensor, size: int = 32) -> float:
    """Share of samples matched to the mode that they were drawn from."""
    return (match_modes(samples, shapes(size)) == shapes(size).labels).double().mean().item()


def matched(samples: Tensor) -> float:
    return mode_coverage(samples, shapes()).share_of_samples_matched


@pytest.mark.parametrize("size", [16, 24, 32, 48, 64])
def test_fresh_renders_match_their_modes(size: int) -> None:
    assert right(renders(size), size) >= 0.99
    coverage = mode_coverage(renders(size), shapes(size))
    assert coverage.share_of_modes_hit == 1
    assert coverage.share_of_samples_matched >= 0.99
    assert coverage.histogram.tolist() == pytest.approx([30] * 24, abs=1)


def test_fresh_renders_are_far_inside_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "MAX_UNEXPLAINED", modes.MAX_UNEXPLAINED / 20)
    assert right(renders()) >= 0.98


@pytest.mark.parametrize(("size", "sigma"), [(16, 0.05), (16, 0.1), (32, 0.1), (64, 0.25)])
def test_some_noise_is_forgiven(size: int, sigma: float) -> None:
    assert right(noise(renders(size), sigma), size) >= 0.98


@pytest.mark.parametrize("size", [16, 32])
def test_some_blur_is_forgiven(size: int) -> None:
    soft = blur(renders(size), size / 32)
    assert right(soft, size) >= 0.98
    assert right(noise(soft, 0.05), size) >= 0.95


def test_a_slight_shift_of_the_colours_is_forgiven() -> None:
    assert right(renders() + 0.05) >= 0.98
    assert right(GROUND + 0.92 * (renders() - GROUND)) >= 0.95


def pairs() -> tuple[Tensor, Tensor]:
    """Renders and others of another mode."""
    images, labels = renders(), shapes().labels
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    differ = labels != labels[order]
    return images[differ], images[order][differ]


def test_mush_does_not_match() -> None:
    assert matched(blur(renders(), 3)) <= 0.01
    assert matched(noise(renders(), 0.6)) <= 0.01
    assert matched(noise(torch.zeros(COUNT, 3, 32, 32), 1)) == 0
    assert matched(blur(noise(torch.zeros(COUNT, 3, 32, 32), 1), 3) * 5) == 0


@pytest.mark.parametrize("value", [-1, -0.83, 0, 1])
def test_blank_images_do_not_match(value: float) -> None:
    assert matched(torch.full((24, 3, 32, 32), float(value))) == 0
    assert matched(GROUND.expand(24, 3, 32, 32)) == 0


def test_averages_of_two_modes_do_not_match() -> None:
    first, second = pairs()
    assert matched((first + second) / 2) <= 0.02


def test_two_shapes_at_once_do_not_match() -> None:
    first, second = pairs()
    assert matched(torch.cat([first[:, :, :, :16], second[:, :, :, 16:]], 3)) <= 0.02
    small = F.pad(F.avg_pool2d(second, 2), (0, 16, 0, 16), value=-1)
    assert matched(torch.maximum(first, small)) <= 0.02


def recoloured(colour: tuple[int, int, int]) -> Tensor:
    cover = Shapes(32, 4, size=COUNT).fetch(range(COUNT))[:, 3:].float() / 255
    return GROUND + cover * (torch.tensor(colour).view(1, 3, 1, 1) / 127.5 - 1 - GROUND)


def test_wrong_colours_do_not_match() -> None:
    assert matched(recoloured((236, 52, 60))) >= 0.98
    for colour in (
        (255, 255, 255),
        (240, 240, 40),
        (128, 128, 128),
        (120, 20, 20),
        (239, 100, 42),
        (20, 20, 120),
        (240, 154, 204),
    ):
        assert matched(recoloured(colour)) == 0
    assert matched(-renders()) == 0


def test_damaged_shapes_do_not_match() -> None:
    images, kind = renders(), shapes().labels // 6
    quarter = images.clone()
    quarter[:, :, 16:, 16:] = GROUND
    assert matched(quarter) <= 0.02
    assert matched(images[kind == 2].flip(2)) == 0
    eighth = torch.full((COUNT,), math.pi / 4)
    turn = torch.stack([eighth.cos(), -eighth.sin(), 0 * eighth, eighth.sin(), eighth.cos(), 0 * eighth], 1)
    grid = F.affine_grid(turn.view(-1, 2, 3), list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, align_corners=False, padding_mode="border")
    assert matched(turned[kind == 0]) >= 0.98
    assert matched(turned[(kind == 1) | (kind == 3)]) <= 0.02


def test_place_and_size_must_be_those_of_the_data() -> None:
    images = renders()
    small = F.pad(F.avg_pool2d(images - GROUND, 2), (8, 8, 8, 8)) + GROUND
    assert matched(small) == 0
    assert matched(F.pad(images - GROUND, (6, -6, 0, 0)) + GROUND) <= 0.2


def test_modes_that_are_missing_are_missed() -> None:
    images, labels = renders(), shapes().labels
    coverage = mode_coverage(images[labels < 7], shapes())
    assert coverage.share_of_modes_hit == 7 / 24
    assert coverage.share_of_samples_matched == 1
    assert coverage.histogram.tolist() == [30] * 7 + [0] * 17


def test_a_stray_sample_does_not_hit_a_mode() -> None:
    images, labels = renders(), shapes().labels
    red = images[labels == 0].repeat(16, 1, 1, 1)
    for strays, hit in ((1, 1), (2, 2)):
        samples = torch.cat([red[: 480 - strays], images[labels == 1][:strays]])
        coverage = mode_coverage(samples, shapes())
        assert coverage.histogram[1] == strays
        assert coverage.share_of_modes_hit == hit / 24
    assert mode_coverage(images[:1], shapes()).share_of_modes_hit == 1 / 24


def test_noise_among_samples_lowers_the_share_that_matches() -> None:
    samples = torch.cat([renders()[:120], noise(torch.zeros(360, 3, 32, 32), 1)])
    coverage = mode_coverage(samples, shapes())
    assert isinstance(coverage, ModeCoverage)
    assert coverage.share_of_samples_matched == 0.25
    assert coverage.share_of_modes_hit == 1
    assert coverage.histogram.tolist() == [5] * 24


def test_broken_numbers_do_not_match_and_spoil_nothing() -> None:
    samples = renders()[:24].clone()
    samples[3, 0, 5, 5] = math.nan
    samples[4] = math.inf
    expected = shapes().labels[:24].clone()
    expected[3:5] = -1
    assert match_modes(samples, shapes()).tolist() == expected.tolist()


def test_samples_are_read_only() -> None:
    samples = renders()[:24].requires_grad_()
    before = samples.detach().clone()

    def kept(_: Tensor) -> NoReturn:
        pytest.fail("memory is spent on gradients")

    with torch.autograd.graph.saved_tensors_hooks(kept, kept):
        match_modes(samples, shapes())
    assert torch.equal(samples, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_floating_point_will_do(dtype: torch.dtype) -> None:
    assert match_modes(renders()[:24].to(dtype), shapes()).tolist() == shapes().labels[:24].tolist()


def test_bad_arguments() -> None:
    for samples in (
        torch.zeros(4, 3, 16, 16),
        torch.zeros(4, 1, 32, 32),
        torch.zeros(3, 32, 32),
        torch.zeros(4, 3, 32, 32, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match=r"samples must be floating-point \(N, 3, 32, 32\)"):
            mode_coverage(samples, shapes())
    with pytest.raises(ValueError, match="at least one image"):
        mode_coverage(torch.zeros(0, 3, 32, 32), shapes())
    with pytest.raises(ValueError, match="3 channels, not 1"):
        mode_coverage(torch.zeros(4, 3, 32, 32), Shapes(channels=1))
