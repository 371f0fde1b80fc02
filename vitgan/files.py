"""Files that appear whole or not at all; images as files."""

import errno
import json
import math
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from vitgan.errors import InputError

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def regular(path: Path) -> os.stat_result:
    """The status of a file. OSError unless it is one that ends: to read a pipe or a device may take for ever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise OSError(errno.EINVAL, f"it is {kind}, and a file is needed", str(path))
    return status


def read_file(path: Path, most: int = 2**40) -> bytes:
    """The content of a regular file. OSError where it is none, or larger than `most` bytes."""
    check_size(path, regular(path).st_size, most)
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """The value of a JSON file. OSError or ValueError where there is none."""
    try:
        return json.loads(read_file(path))
    except RecursionError:
        raise InputError("lists or tables in each other without an end") from None


def check_size(path: Path | str, size: int, most: int) -> None:
    """OSError where a file of that size is too large to read."""
    if size > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read", str(path))


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes its place at `path` if the block ends without an exception."""
    with whole_file(path) as part, synced_write(part) as file:
        yield file
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden path with the ending of `path`, for a file that takes its place if the block ends without an exception.

    A link is followed, and the permissions of a file that is replaced are kept. An OSError about the hidden file, or of
    a full disk, names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.stem}.part{os.getpid()}{target.suffix}")
    try:
        yield part
        if target.exists():
            shutil.copymode(target, part)
        part.replace(target)
    except OSError as error:
        unnamed_and_full = not error.filename and error.errno in DISK_FULL_ERRORS
        if error.errno is not None and (error.filename == str(part) or unnamed_and_full):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def synced_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, whose content is on the disk after the block."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder, as they are now, are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Endings of what `save_image` writes."""


def check_picture(path: Path, channels: int) -> None:
    """Raise ValueError unless an image of so many channels can be saved there."""
    suffix = path.suffix.lower()
    if suffix not in PICTURE_SUFFIXES or path.is_dir():
        raise InputError(f"{path} is no name of a picture: give one that ends in {', '.join(PICTURE_SUFFIXES)}")
    if suffix in (".jpg", ".jpeg") and channels in (2, 4):
        raise InputError(f"{path}: a JPEG has no transparency, which these images have: give a .png or .webp")


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
        raise InputError("a grid needs at least one image")
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    filled = pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - len(images)), value=1.0)
    framed = pad(filled, (gap, 0, gap, 0), value=1.0)
    sheet = rearrange(framed, "(rows columns) c h w -> c (rows h) (columns w)", rows=rows)
    return pad(sheet, (0, gap, 0, gap), value=1.0)
