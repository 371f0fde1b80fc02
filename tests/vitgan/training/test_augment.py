"""DiffAugment: what each operation does, how often, to which image, and its gradient."""

import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from vitgan.training.augment import DRAWS, AugmentConfig, DiffAugment, Operation, color, cutout, scale, translate

OPERATIONS: list[Operation] = [color, scale, translate, cutout]
NONE = AugmentConfig(translation=0, color=0, cutout=0, scaling=0)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apply(operation: Operation | DiffAugment, images: Tensor, seed: int = 0) -> Tensor:
    """With the draws of a seed."""
    if isinstance(operation, DiffAugment):
        return operation(images, operation.draw(len(images), draws(seed)))
    return operation(images, torch.rand(len(images), DRAWS[operation], generator=draws(seed)))


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """Extremes and first two moments of at least a thousand draws."""
    width = high - low
    assert len(values) >= 1000
    assert values.min() >= low - 1e-4 * width
    assert values.max() <= high + 1e-4 * width
    assert values.min() < low + 0.02 * width
    assert values.max() > high - 0.02 * width
    assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
    assert values.std().item() == pytest.approx(width / math.sqrt(12), rel=0.05)


def test_without_any_operation_images_stay_exactly_as_they_are() -> None:
    images, generator = torch.randn(4, 3, 8, 8), draws()
    before = generator.get_state()
    augment = DiffAugment(NONE)
    torch.testing.assert_close(augment(images, augment.draw(4, generator)), images, rtol=0, atol=0)
    assert torch.equal(generator.get_state(), before), "and nothing is drawn"


@pytest.mark.parametrize("name", ["translation", "color", "cutout", "scaling"])
@pytest.mark.parametrize("probability", [0.3, 1.0])
def test_each_operation_is_drawn_for_each_image_with_its_probability(name: str, probability: float) -> None:
    images = torch.rand(2000, 1, 8, 8) + 1
    augmented = apply(DiffAugment(AugmentConfig(**(vars(NONE) | {name: probability}))), images)
    changed = (augmented != images).flatten(1).any(1)
    # One of nine translations of an image of eight pixels is none at all.
    expected = probability * (8 / 9 if name == "translation" else 1)
    assert changed.float().mean().item() == pytest.approx(expected, abs=0.03)
    torch.testing.assert_close(augmented[~changed], images[~changed], rtol=0, atol=0)


def test_operations_are_drawn_independently() -> None:
    images = torch.full((2000, 1, 16, 16), 0.7)
    config = AugmentConfig(translation=0, color=0.5, cutout=0.5, scaling=0)
    augmented = apply(DiffAugment(config), images)
    brighter = augmented.flatten(1).amax(1) != 0.7
    cut = (augmented == 0).flatten(1).any(1)
    shares = [(a & b).float().mean().item() for a in (brighter, ~brighter) for b in (cut, ~cut)]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_image_does_not_see_the_others(operation: Operation) -> None:
    images = torch.randn(6, 3, 16, 16)
    expected = apply(operation, images)
    others = images.clone()
    others[[0, 1, 3, 4, 5]] = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(apply(operation, others)[2], expected[2], rtol=0, atol=0)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_image_has_a_draw_of_its_own(operation: Operation) -> None:
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    augmented = apply(operation, images).flatten(1)
    assert len(augmented.unique(dim=0)) >= 7


@pytest.mark.parametrize("operation", [*OPERATIONS, DiffAugment(AugmentConfig())])
def test_draws_repeat_by_seed_and_leave_the_random_state_alone(operation: Operation) -> None:
    images, state = torch.randn(4, 3, 16, 16), torch.get_rng_state()
    augmented = apply(operation, images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(apply(operation, images), augmented, rtol=0, atol=0)
    assert not torch.equal(apply(operation, images, 1), augmented)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 2, 8, 8), (2, 3, 8, 12), (2, 4, 12, 8), (2, 3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_kept(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randn(shape, dtype=dtype)
    augmented = apply(DiffAugment(AugmentConfig(1, 1, 1, 1)), images)
    assert augmented.shape == shape
    assert augmented.dtype == dtype
    assert augmented.isfinite().all()


@pytest.mark.parametrize("operation", [*OPERATIONS, DiffAugment(AugmentConfig())])
def test_autocast_changes_nothing(operation: Operation) -> None:
    """A matrix product in bfloat16, of coordinates or of pixels, would be off by fractions of a pixel or of a level."""
    images = torch.randn(4, 3, 32, 32)
    expected = apply(operation, images)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(apply(operation, images), expected, rtol=0, atol=0)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_gradients_in_float64(operation: Operation, channels: int) -> None:
    images = torch.randn(2, channels, 8, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda images: apply(operation, images, 3), images, fast_mode=True)


def test_gradients_flow_through_all_of_them() -> None:
    images = torch.randn(64, 3, 8, 8, requires_grad=True)
    apply(DiffAugment(AugmentConfig()), images).square().sum().backward()
    assert images.grad is not None
    assert (images.grad != 0).flatten(1).any(1).all()
    assert (images.grad != 0).float().mean() > 0.5


@pytest.mark.parametrize("channels", [2, 4])
def test_color_leaves_an_alpha_channel_alone(channels: int) -> None:
    images = torch.randn(16, channels, 8, 8)
    colored = apply(color, images)
    torch.testing.assert_close(colored[:, -1], images[:, -1], rtol=0, atol=0)
    assert (colored[:, :-1] != images[:, :-1]).flatten(1).any(1).all()
    alone = torch.cat([images[:, :-1], torch.randn(16, 1, 8, 8)], dim=1)
    torch.testing.assert_close(apply(color, alone)[:, :-1], colored[:, :-1], rtol=0, atol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_changes_every_channel_where_none_is_alpha(channels: int) -> None:
    images = torch.randn(16, channels, 8, 8)
    assert (apply(color, images) != images).flatten(2).any(2).all()


def test_brightness_is_uniform() -> None:
    """Saturation and contrast do nothing to an image of one grey."""
    colored = apply(color, torch.full((4000, 3, 2, 2), 0.2))
    torch.testing.assert_close(colored, colored[:, :1, :1, :1].expand_as(colored))
    assert_uniform(colored[:, 0, 0, 0] - 0.2, -0.5, 0.5)


def test_contrast_and_saturation_are_uniform() -> None:
    """Grey level varies from left to right, and red against blue from top to bottom."""
    grey = torch.tensor([-1.0, 1.0]).expand(1, 3, 2, 2)
    tint = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1) * torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)
    colored = apply(color, (grey + tint).repeat(4000, 1, 1, 1))
    contrast = (colored[:, 1, :, 1] - colored[:, 1, :, 0]).mean(1) / 2
    assert_uniform(contrast, 0.5, 1.5)
    saturation = (colored[:, 0] - colored[:, 2])[:, 0].mean(1) / 2 / contrast
    assert_uniform(saturation, 0.0, 2.0)
    correlation = torch.corrcoef(torch.stack([contrast, saturation, colored.mean((1, 2, 3))]))
    assert (correlation - torch.eye(3)).abs().max() < 0.1, "drawn independently"


def test_zoom_is_about_the_centre_and_log_uniform() -> None:
    column = (2 * torch.arange(32.0) + 1) / 32 - 1
    ramps = column.expand(2000, 1, 32, 32)
    zoomed = apply(scale, ramps)
    middle = zoomed[:, 0, 16, 8:24]
    factor = (column[23] - column[8]) / (middle[:, -1] - middle[:, 0])
    assert_uniform(factor.log() / math.log(1.25), -1, 1)
    torch.testing.assert_close(middle, column[8:24] / factor[:, None], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apply(scale, ramps.mT), zoomed.mT)


def test_zooming_out_shows_the_middle_of_the_range_around_the_image() -> None:
    zoomed = apply(scale, torch.ones(200, 1, 32, 32))[:, 0]
    corners = zoomed[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    outside = (corners == 0).all(1)
    assert 0.3 < outside.float().mean() < 0.5, "about half are zoomed out, a few of them by less than a pixel"
    torch.testing.assert_close(zoomed[:, 8:24, 8:24], torch.ones(200, 16, 16))


def test_translation_is_by_whole_pixels_and_uniform() -> None:
    """Up to an eighth of the side in each direction, and what comes in is 0."""
    image = torch.arange(1.0, 16 * 24 + 1).view(1, 16, 24)
    seen: Counter[tuple[int, int]] = Counter()
    padded = torch.nn.functional.pad(image, (3, 3, 2, 2))
    shifted = {
        (down, right): padded[:, 2 - down : 18 - down, 3 - right : 27 - right]
        for down in range(-2, 3)
        for right in range(-3, 4)
    }
    for moved in apply(translate, image.expand(1000, 1, 16, 24)):
        [shift] = [shift for shift, expected in shifted.items() if torch.equal(moved, expected)]
        seen[shift] += 1
    assert len(seen) == 5 * 7
    assert max(seen.values()) < 2.2 * 1000 / 35
    rows, columns = (Counter(shift[axis] for shift in seen.elements()) for axis in (0, 1))
    assert all(count == pytest.approx(200, rel=0.25) for count in rows.values())
    assert all(count == pytest.approx(1000 / 7, rel=0.3) for count in columns.values())


def test_cutout_is_a_square_of_half_the_side_anywhere() -> None:
    cut = apply(cutout, torch.ones(2000, 2, 16, 16)) == 0
    assert torch.equal(cut[:, 0], cut[:, 1]), "in all channels"
    rows, columns = cut[:, 0].any(2), cut[:, 0].any(1)
    assert torch.equal(cut[:, 0], rows[:, :, None] & columns[:, None, :]), "a rectangle"
    for hit in (rows, columns):
        assert (hit.long().diff(dim=1).abs().sum(1) <= 2).all(), "without gaps"
        sides = hit.sum(1)
        assert sides.max() == 8
        assert sides.min() == 4, "half of it, where its centre is at the border"
        assert (sides[~(hit[:, 0] | hit[:, -1])] == 8).all(), "smaller only at the border"
        share = hit.float().mean(0)
        torch.testing.assert_close(share, share.flip(0), rtol=0.12, atol=0)
        assert share[8].item() == pytest.approx(0.5, abs=0.05), "its centre is uniform"


def test_cutout_keeps_the_rest_exactly() -> None:
    images = torch.randn(50, 3, 8, 8)
    cut = apply(cutout, images)
    kept = cut != 0
    torch.testing.assert_close(cut[kept], images[kept], rtol=0, atol=0)
