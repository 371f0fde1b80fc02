"""A procedural data set with known modes: training needs no download, and mode coverage can be counted.

A mode is a shape and a colour ("red circle"). Inside a mode, place, size, angle and brightness vary a little.
Edges are anti-aliased by the signed distance to them. An image is a function of (seed, index) alone.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitgan.data.base import IN_MEMORY_LIMIT, ImageDataset, Indices, check_format, check_indices
from vitgan.errors import InputError

SHAPE_NAMES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (236, 52, 60),
    "orange": (242, 148, 24),
    "green": (48, 190, 84),
    "cyan": (40, 208, 226),
    "blue": (60, 92, 240),
    "pink": (240, 84, 204),
}
BACKGROUND = (22, 24, 34)

# Fractions of the image's side. The largest shape in the furthest place still lies inside the image.
RADIUS = (0.24, 0.32)
SHIFT = 0.07
ANGLE = 0.22
BRIGHTNESS = (0.94, 1.05)

LUMA = (0.299, 0.587, 0.114)
_CHUNK_PIXELS = 2**18


class Shapes(ImageDataset):
    """`size` images of 24 modes, 4 shapes x 6 colours. Image i is of mode i % 24, which is its label.

    Args:
        image_size: side in pixels, from 8.
        channels: 3 is RGB; 1 is grey (modes then differ by shape and luminance alone); 4 and 2 add an alpha
            channel to these, which is 255 inside the shape and 0 outside.
        size: number of images.
        seed: another seed gives other images of the same modes.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, size: int = 20_000, seed: int = 0) -> None:
        if image_size < 8:
            raise InputError(f"image_size must be at least 8 for the shapes to differ, got {image_size}")
        check_format(image_size, channels)
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        self.name = "shapes"
        self.image_size = image_size
        self.channels = channels
        self.seed = seed
        self.modes = [f"{colour} {shape}" for shape in SHAPE_NAMES for colour in COLOURS]
        self.class_names = self.modes
        self.labels: Tensor = torch.arange(size) % len(self.modes)
        self._pose = sample_pose(seed, size)
        # Rendered on first use and kept: starting is instant, and an epoch pays for each image once.
        shape = (size, channels, image_size, image_size)
        keep = size * channels * image_size**2 <= IN_MEMORY_LIMIT
        self._rendered = torch.empty(shape, dtype=torch.uint8) if keep else None
        self._is_rendered = torch.zeros(size, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._pose)

    def fetch(self, indices: Indices) -> Tensor:
        index = check_indices(indices, len(self))
        if self._rendered is None:
            return self._render(index)
        missing = index[~self._is_rendered[index]].unique()
        if len(missing):
            self._rendered[missing] = self._render(missing)
            self._is_rendered[missing] = True
        return self._rendered[index]

    def _render(self, index: Tensor) -> Tensor:
        kind, colour = self.labels[index] // len(COLOURS), self.labels[index] % len(COLOURS)
        pose = self._pose[index]
        out = torch.empty(len(index), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        chunk = max(1, _CHUNK_PIXELS // self.image_size**2)
        for k in range(len(SHAPE_NAMES)):
            for rows in torch.nonzero(kind == k).flatten().split(chunk):
                cover = coverage(SHAPE_NAMES[k], pose[rows], self.image_size)
                paint = torch.tensor(list(COLOURS.values()))[colour[rows]] * pose[rows, 5:]
                out[rows] = compose(cover, paint, self.channels)
        return out


def sample_pose(seed: int, size: int) -> Tensor:
    """(size, 6) float32: centre x and y, radius, cosine and sine of the angle, brightness.

    Row i depends on (seed, i) alone. The angle's cosine and sine are taken here, in float64: vectorised float32
    ones may differ in the last bit with the length of the batch, and a pixel of the image with them.
    """
    u = _uniform(seed, size, 5)
    angle = ANGLE * (2 * u[:, 3] - 1)
    pose = np.empty((size, 6), dtype=np.float32)
    pose[:, :2] = 0.5 + SHIFT * (2 * u[:, :2] - 1)
    pose[:, 2] = RADIUS[0] + (RADIUS[1] - RADIUS[0]) * u[:, 2]
    pose[:, 3], pose[:, 4] = np.cos(angle), np.sin(angle)
    pose[:, 5] = BRIGHTNESS[0] + (BRIGHTNESS[1] - BRIGHTNESS[0]) * u[:, 4]
    return torch.from_numpy(pose)


def coverage(shape: str, pose: Tensor, image_size: int) -> Tensor:
    """How much of each pixel the shape covers: (B, S, S) in [0, 1]. `pose` is as `sample_pose` gives it.

    Coverage goes from 0 to 1 over the one pixel across the edge, along the distance to it.
    """
    x0, y0, radius, cos, sin = (p.view(-1, 1, 1) for p in pose[:, :5].unbind(1))
    grid = (torch.arange(image_size, dtype=pose.dtype) + 0.5) / image_size
    dx, dy = grid - x0, grid.view(-1, 1) - y0
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    # Relative sizes give the four kinds about equal weight to the eye.
    if shape == "circle":
        distance = (x * x).add_(y * y).sqrt_() - radius
    elif shape == "square":
        distance = torch.maximum(x.abs_(), y.abs_()) - 0.88 * radius
    elif shape == "triangle":
        slope = x.abs_().mul_(3**0.5 / 2) - 0.5 * y
        distance = torch.maximum(slope, y) - 0.65 * radius
    elif shape == "cross":
        x, y = x.abs_(), y.abs_()
        long, wide = 1.18 * radius, 0.4 * radius
        distance = torch.minimum(
            torch.maximum(x - long, y - wide),
            torch.maximum(x - wide, y - long),
        )
    else:
        raise InputError(f"unknown shape {shape!r}; there are {', '.join(SHAPE_NAMES)}")
    return distance.mul_(-image_size).add_(0.5).clamp_(0, 1)


def compose(cover: Tensor, paint: Tensor, channels: int) -> Tensor:
    """`paint` (B, 3), in 0..255, laid over the background by `cover` (B, S, S): uint8 (B, channels, S, S)."""
    ground = torch.tensor(BACKGROUND, dtype=cover.dtype)
    if channels < 3:
        luma = torch.tensor(LUMA, dtype=cover.dtype)
        paint, ground = (paint * luma).sum(1, keepdim=True), (ground * luma).sum(0, keepdim=True)
    colours = ground.shape[0]
    out = torch.empty(len(cover), channels, *cover.shape[1:], dtype=torch.uint8)
    for c in range(colours):
        out[:, c] = cover * (paint[:, c] - ground[c]).view(-1, 1, 1) + (ground[c] + 0.5)
    if channels > colours:
        out[:, -1] = cover * 255 + 0.5
    return out


def _uniform(seed: int, size: int, columns: int) -> NDArray[np.float64]:
    """(size, columns) numbers in [0, 1), each a hash (the finaliser of SplitMix64) of (seed, row, column)."""
    counter = np.arange(size * columns, dtype=np.uint64).reshape(size, columns)
    with np.errstate(over="ignore"):
        key = _mix(np.array([seed % 2**64], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        bits = _mix(key + counter * np.uint64(0x9E3779B97F4A7C15))
    return (bits >> np.uint64(11)).astype(np.float64) / 2**53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
