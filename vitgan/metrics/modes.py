"""How many of the known modes of the procedural shapes a generator's samples hit.

A sample counts for a mode only if it looks like it. Each sample is reduced to three things: one colour (the mean
difference from the background, weighted by its square), a mask (how much of that colour each pixel shows) and a
remainder (what the two do not explain). The mask is moved and scaled to a standard place and area, and compared
with those of fresh renders, which went through the same steps. So place and size, which vary inside a mode, cost
nothing; blur and noise cost little; a wrong colour, an outline between two shapes or a second object cost much.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgan.data.shapes import BACKGROUND, COLOURS, RADIUS, SHAPE_NAMES, SHIFT, Shapes
from vitgan.errors import InputError

# Limits. At 32x32 they let pass every fresh render, with noise of 0.1 or a blur of 1 pixel too; of renders blurred
# by 1.5, 2 and 3 pixels they let pass 90, 32 and 0 %, of averages of two modes 0.3 %, of noise and blanks none.
MAX_UNEXPLAINED = 0.045
"""Squared error of mask and remainder together, as a share of the shape's area."""
MAX_SHAPE_RATIO = 0.45
"""Squared error of the mask to the nearest shape, as a share of that to the second nearest."""
MAX_COLOUR_ERROR = 0.2
"""Distance to the nearest colour, as a share of that colour's contrast to the background."""
MAX_COLOUR_RATIO = 0.4
"""Distance to the nearest colour, as a share of that to the second nearest."""
HIT_FRACTION = 0.1
"""A mode is hit by this share of the samples that it would get if all modes were drawn alike."""

_WORK_SIZE = 32
_PATCH = 24
_PATCH_RADII = 2.2
_BANK_PER_MODE = 40
_BANK_SEED = 0x6D6F646573


@dataclass(frozen=True)
class ModeCoverage:
    """What `mode_coverage` finds.

    Attributes:
        share_of_modes_hit: of all modes, those with enough samples, in [0, 1].
        share_of_samples_matched: of all samples, those that look like one of the modes, in [0, 1].
        histogram: (modes,) int64, the samples matched to each mode, in the order of `Shapes.modes`.
    """

    share_of_modes_hit: float
    share_of_samples_matched: float
    histogram: Tensor


def mode_coverage(samples: Tensor, shapes: Shapes) -> ModeCoverage:
    """The share of the modes of `shapes` that `samples`, (N, 3, H, W) in [-1, 1], hit.

    Give 10 samples a mode or more; with fewer, chance alone leaves modes out.

    Raises:
        ValueError: `samples` are not RGB images of the size of `shapes`.
    """
    modes = match_modes(samples, shapes)
    histogram = torch.bincount(modes[modes >= 0], minlength=len(shapes.modes))
    needed = HIT_FRACTION * len(samples) / len(shapes.modes)
    return ModeCoverage(
        share_of_modes_hit=(histogram >= needed).double().mean().item(),
        share_of_samples_matched=(modes >= 0).double().mean().item(),
        histogram=histogram,
    )


@torch.no_grad()
def match_modes(samples: Tensor, shapes: Shapes) -> Tensor:
    """The mode of each sample: int64 (N,), the index in `shapes.modes`, or -1 where it looks like none."""
    size = shapes.image_size
    if shapes.channels != 3:
        raise InputError(f"modes are told apart by colour: shapes must have 3 channels, not {shapes.channels}")
    if samples.ndim != 4 or samples.shape[1:] != (3, size, size) or not samples.is_floating_point():
        raise InputError(
            f"samples must be floating-point (N, 3, {size}, {size}) in [-1, 1], "
            f"got {samples.dtype} {tuple(samples.shape)}"
        )
    if len(samples) == 0:
        raise InputError("samples must hold at least one image")
    bank = _bank(size)
    look = _look_at(samples.float().cpu())

    colour_error = torch.cdist(look.colour, bank.colours)
    nearest, colour = colour_error.topk(2, dim=1, largest=False)
    contrast = bank.colours.norm(dim=1)[colour[:, 0]]
    is_coloured = (nearest[:, 0] <= MAX_COLOUR_ERROR * contrast) & (nearest[:, 0] <= MAX_COLOUR_RATIO * nearest[:, 1])

    shape_error = _squared_distances(look.mask, bank.masks).view(len(samples), len(SHAPE_NAMES), -1).amin(2)
    nearest, shape = shape_error.topk(2, dim=1, largest=False)
    unexplained = nearest[:, 0] + look.remainder
    is_shaped = (unexplained <= MAX_UNEXPLAINED) & (nearest[:, 0] <= MAX_SHAPE_RATIO * nearest[:, 1])

    mode = shape[:, 0] * len(COLOURS) + colour[:, 0]
    return torch.where(is_coloured & is_shaped & look.in_place, mode, -1)


@dataclass(frozen=True)
class _Look:
    colour: Tensor  # (N, 3), relative to the background
    mask: Tensor  # (N, _PATCH ** 2), so scaled that the squared sum of a full mask is about 1
    remainder: Tensor  # (N,), share of the area
    in_place: Tensor  # (N,) bool: there is something, about where and as large as a shape would be


@dataclass(frozen=True)
class _Bank:
    colours: Tensor  # (colours, 3)
    masks: Tensor  # (shapes * renders, _PATCH ** 2)


@lru_cache(maxsize=4)
def _bank(image_size: int) -> _Bank:
    modes = len(SHAPE_NAMES) * len(COLOURS)
    renders = Shapes(image_size, size=modes * _BANK_PER_MODE, seed=_BANK_SEED)
    by_mode = torch.argsort(renders.labels, stable=True)
    look = _look_at(renders.fetch(by_mode).float() / 127.5 - 1)
    colours = look.colour.view(len(SHAPE_NAMES), len(COLOURS), _BANK_PER_MODE, 3).mean((0, 2))
    return _Bank(colours, look.mask)


def _look_at(images: Tensor) -> _Look:
    finite = images.isfinite().flatten(1).all(1)  # an image with NaN becomes a blank one, and matches nothing
    images = torch.where(finite.view(-1, 1, 1, 1), images, 0).clamp(-1, 1)
    if images.shape[-1] > _WORK_SIZE:
        images = F.interpolate(images, size=(_WORK_SIZE, _WORK_SIZE), mode="area")
    elif images.shape[-1] < _WORK_SIZE:
        images = F.interpolate(images, size=(_WORK_SIZE, _WORK_SIZE), mode="bilinear")
    size = images.shape[-1]
    difference = images - (torch.tensor(BACKGROUND) / 127.5 - 1).view(1, 3, 1, 1)
    difference = _soften(difference)

    energy = difference.square().sum(1, keepdim=True)
    colour = (energy * difference).sum((2, 3)) / energy.sum((2, 3)).clamp_min(1e-6)
    contrast = colour.square().sum(1).clamp_min(1e-6)
    mask = torch.einsum("nchw,nc->nhw", difference, colour) / contrast.view(-1, 1, 1)
    remainder = (energy.sum((1, 2, 3)) / contrast) - mask.square().sum((1, 2))

    # A step about one half: it keeps the area of a softened outline, and drops a background slightly off.
    solid = ((mask - 0.25) * 2).clamp(0, 1)
    area = solid.sum((1, 2)).clamp_min(1e-6)
    grid = (torch.arange(size) + 0.5) / size
    centre = torch.stack([(solid.sum(1) * grid).sum(1), (solid.sum(2) * grid).sum(1)], 1) / area[:, None]
    radius = (area / torch.pi).sqrt() / size
    in_place = (radius > 0.75 * RADIUS[0]) & (radius < 1.2 * RADIUS[1])
    in_place &= ((centre - 0.5).abs() < SHIFT + 0.05).all(1)

    patch = _align(mask, centre, radius)
    cell = (2 * _PATCH_RADII / _PATCH) ** 2 / torch.pi
    return _Look(colour, patch * cell**0.5, remainder / area, in_place)


def _soften(images: Tensor) -> Tensor:
    """The filter [1, 2, 1] / 4 both ways, zero outside; as sums of slices, several times as fast as conv2d here."""
    images = F.pad(images, (1, 1, 1, 1))
    images = images[..., :-2] + 2 * images[..., 1:-1] + images[..., 2:]
    return (images[..., :-2, :] + 2 * images[..., 1:-1, :] + images[..., 2:, :]) / 16


def _align(mask: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """Masks (N, S, S) resampled so that a disc of their area has its centre and radius: (N, _PATCH ** 2)."""
    scale = 2 * _PATCH_RADII * radius
    theta = torch.zeros(len(mask), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = 2 * centre - 1
    grid = F.affine_grid(theta, [len(mask), 1, _PATCH, _PATCH], align_corners=False)
    return F.grid_sample(mask[:, None], grid, align_corners=False).flatten(1)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return (a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T).clamp_min_(0)
