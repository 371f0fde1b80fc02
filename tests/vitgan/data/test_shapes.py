import math

import numpy as np
import pytest
import torch
from PIL import Image

from vitgan.data import Shapes
from vitgan.data import shapes as module
from vitgan.data.shapes import ANGLE, BACKGROUND, COLOURS, RADIUS, SHAPE_NAMES, SHIFT, coverage


def pose(radius: float, angle: float = 0.0, x: float = 0.5, y: float = 0.5) -> torch.Tensor:
    return torch.tensor([[x, y, radius, math.cos(angle), math.sin(angle), 1.0]])


def test_modes_are_every_shape_in_every_colour() -> None:
    shapes = Shapes(size=240)
    assert len(shapes.modes) == len(set(shapes.modes)) == 24
    assert "red circle" in shapes.modes
    assert shapes.class_names == shapes.modes
    assert torch.bincount(shapes.labels).tolist() == [10] * 24


def test_label_says_what_is_in_the_picture() -> None:
    shapes = Shapes(size=96)
    for image, label in zip(shapes.fetch(range(96)), shapes.labels.tolist(), strict=True):
        colour = torch.tensor(COLOURS[shapes.modes[label].split()[0]], dtype=torch.float32)
        middle = image[:, 14:18, 14:18].float().mean((1, 2))
        assert (middle - colour).abs().max() < 20


def test_an_image_depends_on_seed_and_index_alone() -> None:
    whole = Shapes(size=3000).fetch(range(3000))
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(1))
    for count in (1, 7, 500):
        shapes = Shapes(size=3000)
        parts = [shapes.fetch(part) for part in order[: 4 * count].split(count)]
        assert torch.equal(torch.cat(parts), whole[order[: 4 * count]])
    assert torch.equal(Shapes(size=50).fetch(range(50)), whole[:50])
    assert not torch.equal(Shapes(size=50, seed=1).fetch(range(50)), whole[:50])


def test_drawn_anew_each_time_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Shapes(size=64).fetch([5, 5, 60])
    monkeypatch.setattr(module, "IN_MEMORY_LIMIT", 0)
    shapes = Shapes(size=64)
    assert torch.equal(shapes.fetch([5, 5, 60]), kept)
    assert shapes._rendered is None


def test_images_of_one_mode_differ() -> None:
    images = Shapes(size=24 * 50).fetch(range(0, 24 * 50, 24))
    assert len(images.flatten(1).unique(dim=0)) == 50


def test_poses_fill_their_ranges() -> None:
    x, y, radius, cos, sin, brightness = module.sample_pose(0, 20_000).unbind(1)
    for values, low, high in (
        (x, 0.5 - SHIFT, 0.5 + SHIFT),
        (y, 0.5 - SHIFT, 0.5 + SHIFT),
        (radius, *RADIUS),
        (torch.atan2(sin, cos), -ANGLE, ANGLE),
        (brightness, *module.BRIGHTNESS),
    ):
        assert values.min() == pytest.approx(low, abs=1e-3)
        assert values.max() == pytest.approx(high, abs=1e-3)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.01 * (high - low))
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.02


def test_the_data_set_does_not_change_by_accident() -> None:
    expected = [[0.469447, 0.521343, 0.296097], [0.540310, 0.450473, 0.302292]]
    assert module.sample_pose(0, 2)[:, :3].tolist() == [pytest.approx(row, abs=1e-6) for row in expected]


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_no_shape_leaves_the_picture(shape: str) -> None:
    for x in (0.5 - SHIFT, 0.5 + SHIFT):
        for y in (0.5 - SHIFT, 0.5 + SHIFT):
            for angle in np.linspace(-ANGLE, ANGLE, 9):
                cover = coverage(shape, pose(RADIUS[1], angle, x, y), 64)[0]
                assert cover[[0, -1]].max() < 0.5
                assert cover[:, [0, -1]].max() < 0.5


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi),
        ("square", 4 * 0.88**2),
        ("triangle", 3 * math.sqrt(3) * 0.65**2),
        ("cross", 2 * 4 * 1.18 * 0.4 - 4 * 0.4**2),
    ],
)
def test_coverage_has_the_area_of_the_shape(shape: str, area: float) -> None:
    for angle in (0.0, 0.13):
        cover = coverage(shape, pose(0.3, angle), 128)
        assert cover.sum() / 128**2 == pytest.approx(area * 0.3**2, rel=0.01)


def test_coverage_turns_with_the_angle() -> None:
    for shape in SHAPE_NAMES:
        turned = coverage(shape, pose(0.3, math.pi / 2), 32)
        assert torch.allclose(turned, coverage(shape, pose(0.3), 32).rot90(-1, (1, 2)), atol=1e-4)
    assert not torch.allclose(turned := coverage("triangle", pose(0.3), 32), turned.flip(1), atol=0.5)


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_edges_are_smooth(shape: str) -> None:
    cover = coverage(shape, pose(0.29, 0.1, 0.51, 0.49), 32)
    between = (cover > 0.05) & (cover < 0.95)
    assert between.sum() > 20
    assert (cover == 1).sum() > 100


def test_background_is_plain() -> None:
    corners = Shapes(size=480).fetch(range(480))[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.equal(corners, torch.tensor(BACKGROUND, dtype=torch.uint8).view(1, 3, 1).expand_as(corners))


def test_channels() -> None:
    rgb = Shapes(size=48).fetch(range(48))
    rgba = Shapes(channels=4, size=48).fetch(range(48))
    grey = Shapes(channels=1, size=48).fetch(range(48))
    grey_alpha = Shapes(channels=2, size=48).fetch(range(48))
    assert torch.equal(rgba[:, :3], rgb)
    assert rgba[:, 3, 16, 16].unique().tolist() == [255]
    assert rgba[:, 3, 0, 0].unique().tolist() == [0]
    assert torch.equal(grey_alpha, torch.stack([grey[:, 0], rgba[:, 3]], 1))
    for image, expected in zip(rgb, grey, strict=True):
        luminance = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(luminance.astype(int) - expected[0].numpy()).max() <= 1


def test_fetch_gives_a_copy() -> None:
    shapes = Shapes(size=24)
    first = shapes.fetch([3])
    first.zero_()
    assert shapes.fetch([3]).any()


def test_bad_arguments() -> None:
    for index in (-1, 24):
        with pytest.raises(IndexError, match="24 images"):
            Shapes(size=24).fetch([index])
    with pytest.raises(ValueError, match="at least 8"):
        Shapes(image_size=7)
    with pytest.raises(ValueError, match="channels must be"):
        Shapes(channels=5)
    with pytest.raises(ValueError, match="size must be"):
        Shapes(size=0)
