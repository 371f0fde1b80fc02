"""Images to train on: procedural shapes, CIFAR-10, folders and zips, and the endless stream of batches."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from vitgan.data.base import DataError, DeviceDataset, ImageDataset, TensorDataset, check_format, keep_on_device
from vitgan.data.cifar10 import load_cifar10
from vitgan.data.decode import ImageFiles, load_files
from vitgan.data.hub import HubImages
from vitgan.data.shapes import Shapes
from vitgan.data.sources import open_archive, read_labels
from vitgan.data.stream import BatchStream

__all__ = [
    "BatchStream",
    "DataError",
    "DeviceDataset",
    "ImageDataset",
    "Shapes",
    "TensorDataset",
    "keep_on_device",
    "open_dataset",
    "user_cache",
]


def open_dataset(
    source: str | Path = "shapes",
    *,
    image_size: int = 32,
    channels: int = 3,
    cache: str | Path | None = None,
) -> ImageDataset:
    """Open a data set by name or path.

    Args:
        source: "shapes" (procedural, needs nothing), "cifar10" (downloaded once, checked), "hf:NAME" (through
            Hugging Face `datasets`, an extra), or the path of a folder or .zip of images, nested in any way.
        image_size: side in pixels. The largest centred square of an image is scaled to it.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        cache: where downloads and decoded images are kept (it can be deleted at any time); None means
            `vitgan` in the user's cache folder.

    Raises:
        DataError: there is nothing usable at `source`; the message says why.
    """
    check_format(image_size, channels)
    source = os.fspath(source)
    kept = Path(cache) if cache is not None else user_cache()
    if source == "shapes":
        return Shapes(image_size, channels)
    if source == "cifar10":
        return load_cifar10(kept, image_size, channels)
    if source.startswith("hf:"):
        hub = HubImages(source.removeprefix("hf:"))
        files = ImageFiles(hub, image_size, channels, name=source, labels=hub.labels)
        return load_files(files, kept)
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (which leaves ~nobody as it is)
    if not source or not path.exists():
        raise DataError(
            f"no data at {source!r}: no such folder or .zip, nor is it one of 'shapes', 'cifar10', 'hf:NAME': name "
            "your images with --data PATH"
        )
    archive = open_archive(path)
    files = ImageFiles(archive, image_size, channels, name=path.resolve().name, labels=read_labels(archive))
    return load_files(files, kept)


def user_cache() -> Path:
    """Where downloads and results that can be made again are kept: `vitgan` in the user's cache folder.

    For a user without a home, a folder of this process's own.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitgan"
    except RuntimeError:
        return _folder_of_the_process()


@cache
def _folder_of_the_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="vitgan-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
