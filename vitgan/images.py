"""Images as files: single pictures and grids."""

import math
from pathlib import Path

from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vitgan.files import whole_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of what `save_image` writes."""


def check_picture(path: Path, channels: int) -> None:
    """Raise ValueError unless an image of so many channels can be saved there."""
    suffix = path.suffix.lower()
    if suffix not in PICTURES or path.is_dir():
        raise ValueError(f"{path} is no name of a picture: give one that ends in {', '.join(PICTURES)}")
    if suffix in (".jpg", ".jpeg") and channels in (2, 4):
        raise ValueError(f"{path}: a JPEG has no transparency, which these images have: give a .png or .webp")


def to_uint8(images: Tensor) -> Tensor:
    """(..., H, W) in [-1, 1] to uint8, values outside clipped, rounded to the nearest."""
    return ((images.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()


def from_uint8(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def save_image(image: Tensor, path: Path) -> None:
    """Write one image (C, H, W) in [-1, 1], C from 1 to 4, as the format that the path's ending names.

    What is there already is replaced by a whole file or not at all.
    """
    pixels = to_uint8(image)
    array = (pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy()
    with whole_file(path) as part:
        Image.fromarray(array).save(part)


def grid(images: Tensor, *, columns: int | None = None, gap: int = 2) -> Tensor:
    """Lay images (N, C, H, W) out in rows, as square as possible, with a white gap; (C, H', W')."""
    if len(images) == 0:
        raise ValueError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    filled = pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(images)), value=1.0)
    framed = pad(filled, (gap, 0, gap, 0), value=1.0)
    sheet = rearrange(framed, "(rows columns) c h w -> c (rows h) (columns w)", rows=rows)
    return pad(sheet, (0, gap, 0, gap), value=1.0)
