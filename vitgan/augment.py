"""DiffAugment (Zhao et al., 2020): the same random, differentiable operations on real and on generated images."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class AugmentConfig:
    """Probability of each operation, drawn for each image by itself."""

    translation: float = 0.8
    """Shift by up to an eighth of the image, into mid-grey."""
    color: float = 0.8
    """Brightness, saturation and contrast."""
    cutout: float = 0.8
    """Blank a square of half the image's side."""
    scaling: float = 0.8
    """Zoom by a factor from 0.8 to 1.25."""

    def __post_init__(self) -> None:
        if not all(0 <= p <= 1 for p in (self.translation, self.color, self.cutout, self.scaling)):
            raise ValueError(f"augment: probabilities must be from 0 to 1, got {self}")


class DiffAugment:
    """Augments images (B, C, H, W) in [-1, 1]; an image keeps its exact pixels where no operation is drawn for it.

    Pixels that are blanked, or come in from outside, become 0: mid-grey, the middle of the range.

    Args:
        config: probability of each operation.
    """

    def __init__(self, config: AugmentConfig) -> None:
        operations = [
            (color, config.color),
            (scale, config.scaling),
            (translate, config.translation),
            (cutout, config.cutout),
        ]
        self.operations = [(operation, p) for operation, p in operations if p > 0]

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augmented images, differentiable in the images; the draws come from the generator, on the images' device."""
        for operation, probability in self.operations:
            chosen = uniform(images, generator, 0, 1) < probability
            images = torch.where(chosen, operation(images, generator), images)
        return images


def color(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness by up to 0.5 either way, saturation by 0 to 2, contrast by 0.5 to 1.5. An alpha channel stays."""
    colors = images if images.shape[1] in (1, 3) else images[:, :-1]
    colors = colors + uniform(images, generator, -0.5, 0.5)
    grey = colors.mean(dim=1, keepdim=True)
    colors = grey + (colors - grey) * uniform(images, generator, 0, 2)
    mean = colors.mean(dim=(1, 2, 3), keepdim=True)
    colors = mean + (colors - mean) * uniform(images, generator, 0.5, 1.5)
    return torch.cat([colors, images[:, colors.shape[1] :]], dim=1)


def scale(images: Tensor, generator: torch.Generator) -> Tensor:
    """Zoom about the centre by a factor from 0.8 to 1.25, evenly spread in its logarithm; outside is 0."""
    factor = 0.8 ** uniform(images, generator, -1, 1)[:, :, 0, 0]
    theta = torch.eye(2, 3, dtype=images.dtype, device=images.device) / factor.unsqueeze(-1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def translate(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by whole pixels, by up to an eighth of the side in each direction; what comes in is 0."""
    height, width = images.shape[2:]
    rows = torch.arange(height, device=images.device) + _shift(images, generator, height // 8)
    columns = torch.arange(width, device=images.device) + _shift(images, generator, width // 8)
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    moved = images.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * inside.unsqueeze(1)


def cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """Set a square of half the side, centred anywhere in the image, to 0."""
    height, width = images.shape[2:]
    top = (uniform(images, generator, 0, height) - height / 4).round()
    left = (uniform(images, generator, 0, width) - width / 4).round()
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    hit = (rows >= top) & (rows < top + height // 2) & (columns >= left) & (columns < left + width // 2)
    return images * ~hit


def uniform(images: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """One draw an image, (B, 1, 1, 1)."""
    draws = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device, dtype=images.dtype)
    return low + (high - low) * draws


def _shift(images: Tensor, generator: torch.Generator, most: int) -> Tensor:
    """Whole pixels from -most to most, (B, 1)."""
    return torch.randint(-most, most + 1, (len(images), 1), generator=generator, device=images.device)
