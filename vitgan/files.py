"""Reading files that end, and writing files that are there whole or not at all.

Those of `atomic_write` are so also after a crash of the machine.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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
        if error.errno is not None and (error.filename == str(part) or (not error.filename and error.errno in FULL)):
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
