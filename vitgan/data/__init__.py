"""Images to train on: procedural shapes, CIFAR-10, folders and zips, and the endless stream of batches."""

from pathlib import Path

from .base import DataError, ImageDataset, TensorDataset
from .shapes import Shapes
from .stream import BatchStream

__all__ = ["BatchStream", "DataError", "ImageDataset", "Shapes", "TensorDataset", "open_dataset"]


def open_dataset(
    source: str = "shapes",
    *,
    image_size: int = 32,
    channels: int = 3,
    cache: str | Path | None = None,
) -> ImageDataset:
    """Open a data set by name or path.

    Args:
        source: "shapes" (procedural, needs nothing), "cifar10" (downloaded once, checked), "hf:NAME" (through Hugging Face
            `datasets`, an extra), or the path of a folder or .zip of images.
        image_size: side in pixels; images are scaled to their shorter side and cropped in the centre.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        cache: where downloads and decoded images are kept; None means the user's cache folder.

    Raises:
        DataError: there is nothing usable at `source`; the message says why.
    """
    if source == "shapes":
        return Shapes(image_size, channels)
    raise DataError(
        f"no data set at {source!r}: give 'shapes', 'cifar10', 'hf:NAME', or the path of a folder or .zip of images"
    )
