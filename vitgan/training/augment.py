"""DiffAugment (Zhao et al., 2020): the same random, differentiable operations on real and on generated images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitgan.errors import InputError


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
        for name, probability in vars(self).items():
            if not 0 <= probability <= 1:
                raise InputError(f"augment.{name} must be a probability from 0 to 1, got {probability}")


class DiffAugment:
    """Augments images (B, C, H, W) in [-1, 1]; an image keeps its exact pixels where no operation is drawn for it.

    Pixels that are blanked, or come in from outside, become 0: mid-grey, the middle of the range. The random numbers
    come in as a tensor, so that the same ones can be used again, shared out among processes, or given to a compiled
    step.

    Args:
        config: probability of each operation.
    """

    def __init__(self, config: AugmentConfig) -> None:
        operations: list[tuple[Operation, float]] = [
            (color, config.color),
            (scale, config.scaling),
            (translate, config.translation),
            (cutout, config.cutout),
        ]
        self.operations = [(operation, p) for operation, p in operations if p > 0]
        self.width = sum(1 + DRAWS[operation] for operation, _ in self.operations)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Numbers (count, width) in [0, 1) for `count` images, on the generator's device. Width may be 0."""
        return torch.rand(count, self.width, generator=generator, device=generator.device)

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augmented images, differentiable in the images; the draws are those of `draw`."""
        if draws.shape != (len(images), self.width):
            raise InputError(
                f"{len(images)} images need draws of ({len(images)}, {self.width}), got {tuple(draws.shape)}"
            )
        start = 0
        for operation, probability in self.operations:
            choice, numbers = draws[:, start], draws[:, start + 1 : start + 1 + DRAWS[operation]]
            chosen = (choice < probability).view(-1, 1, 1, 1)
            images = torch.where(chosen, operation(images, numbers), images)
            start += 1 + DRAWS[operation]
        return images


def color(images: Tensor, draws: Tensor) -> Tensor:
    """Brightness by up to 0.5 either way, saturation by 0 to 2, contrast by 0.5 to 1.5. An alpha channel stays."""
    brightness, saturation, contrast = draws.to(images.dtype).view(-1, 3, 1, 1, 1).unbind(1)
    colors = images if images.shape[1] in (1, 3) else images[:, :-1]
    colors = colors + (brightness - 0.5)
    grey = colors.mean(dim=1, keepdim=True)
    colors = grey + (colors - grey) * (2 * saturation)
    mean = colors.mean(dim=(1, 2, 3), keepdim=True)
    colors = mean + (colors - mean) * (0.5 + contrast)
    return torch.cat([colors, images[:, colors.shape[1] :]], dim=1)


def scale(images: Tensor, draws: Tensor) -> Tensor:
    """Zoom about the centre by a factor from 0.8 to 1.25, evenly spread in its logarithm; outside is 0."""
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    inverse_zoom = 0.8 ** (1 - 2 * draws.to(precise.dtype))
    # Not affine_grid, a matrix product: rounded by autocast or TF32, it would be off by fractions of a pixel.
    rows, columns = (_centres(size, precise) * inverse_zoom for size in images.shape[2:])
    places = torch.stack(torch.broadcast_tensors(columns.unsqueeze(1), rows.unsqueeze(2)), dim=-1)
    return F.grid_sample(precise, places, padding_mode="zeros", align_corners=False).to(images.dtype)


def translate(images: Tensor, draws: Tensor) -> Tensor:
    """Shift by whole pixels, by up to an eighth of the side in each direction; what comes in is 0."""
    height, width = images.shape[2:]
    down, right = height // 8, width // 8
    rows = torch.arange(down, down + height, device=images.device) + _shift(draws[:, 0], down)
    columns = torch.arange(right, right + width, device=images.device) + _shift(draws[:, 1], right)
    padded = F.pad(images, [right, right, down, down])
    places = (rows.unsqueeze(2) * padded.shape[3] + columns.unsqueeze(1)).flatten(1).unsqueeze(1)
    return padded.flatten(2).gather(2, places.expand(-1, images.shape[1], -1)).unflatten(2, (height, width))


def cutout(images: Tensor, draws: Tensor) -> Tensor:
    """Set a square of half the side, centred anywhere in the image, to 0."""
    height, width = images.shape[2:]
    top, left = draws.view(-1, 2, 1, 1, 1).unbind(1)
    top, left = (top * height - height / 4).round(), (left * width - width / 4).round()
    rows = torch.arange(height, device=images.device)[:, None]
    columns = torch.arange(width, device=images.device)
    hit = (rows >= top) & (rows < top + height // 2) & (columns >= left) & (columns < left + width // 2)
    return images * ~hit


Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (B, C, H, W) and draws (B, n) in [0, 1) to images."""

DRAWS: dict[Operation, int] = {color: 3, scale: 1, translate: 2, cutout: 2}
"""Numbers that an operation needs for an image."""


def _shift(draws: Tensor, most: int) -> Tensor:
    """Whole pixels from -most to most, (B, 1)."""
    return (draws * (2 * most + 1)).floor().long().clamp(max=2 * most).unsqueeze(1) - most


def _centres(size: int, like: Tensor) -> Tensor:
    """Of the pixels of a side that goes from -1 to 1: (size,)."""
    return (torch.arange(size, dtype=like.dtype, device=like.device) * 2 + 1) / size - 1
