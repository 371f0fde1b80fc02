"""Where encoded images lie: a folder or a zip, seen as a list of named members."""

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from vitgan.data.base import DataError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
LABEL_FILE = "dataset.json"


@dataclass(frozen=True)
class Member:
    """An image file. `stamp` changes when its content does."""

    name: str
    stamp: str


class Archive(Protocol):
    """Images by name, in a fixed order. Can be pickled, and read from several processes."""

    title: str
    members: list[Member]

    def read(self, name: str) -> bytes: ...


class Folder:
    """Images in a folder, at any depth."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.title = str(path)
        found = dict(_walk(self.path))
        names = sorted(name for name in found if is_image(name))
        if not names:
            raise DataError(_no_images(self.title, list(found)))
        self.has_labels = LABEL_FILE in found
        self.members = []
        for name in names:
            try:
                stat = found[name].stat()
            except OSError as error:
                raise DataError(f"{self.title}: {name} cannot be read ({error.strerror}): remove it") from error
            # The path belongs to the stamp: two folders may hold files of equal names, sizes and times.
            self.members.append(Member(name, f"{self.path} {stat.st_size} {stat.st_mtime_ns}"))

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class SingleFile:
    """One image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = str(path)
        self.members = [Member(path.name, "")]

    def read(self, name: str) -> bytes:
        return self.path.read_bytes()


class Zip:
    """Images in a .zip file, at any depth."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.title = str(path)
        self._file: zipfile.ZipFile | None = None
        self._pid = -1
        try:
            entries = [entry for entry in self._open().infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(
                f"{path}: not a zip file that can be read ({error}); was it copied or downloaded whole?"
            ) from None
        entries = [entry for entry in entries if not _is_junk(entry.filename)]
        images = sorted((e for e in entries if is_image(e.filename)), key=lambda e: e.filename)
        if not images:
            raise DataError(_no_images(self.title, [entry.filename for entry in entries]))
        if images[0].flag_bits & 1:
            raise DataError(f"{path}: the zip is encrypted; unpack it and give the folder")
        self.has_labels = any(entry.filename == LABEL_FILE for entry in entries)
        self.members = [Member(entry.filename, f"{entry.file_size} {entry.CRC:08x}") for entry in images]

    def read(self, name: str) -> bytes:
        return self._open().read(name)

    def _open(self) -> zipfile.ZipFile:
        # Processes that share one open file share its position too, and would read each other's bytes.
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = zipfile.ZipFile(self.path), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}


def open_archive(path: Path) -> Folder | Zip:
    """The folder or zip at `path`, which exists. DataError says what is wrong with any other file."""
    if path.is_dir():
        return Folder(path)
    if is_image(path.name):
        raise DataError(f"{path}: this is a single image; give the folder that holds the images, or a .zip of them")
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return Zip(path)
    raise DataError(f"{path}: neither a folder nor a .zip; unpack it and give the folder of images")


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_junk(name: str) -> bool:
    """Hidden files, and what macOS puts beside every file of a zip."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _walk(root: Path) -> list[tuple[str, Path]]:
    """Every file under `root` but junk, with its name relative to it. Linked folders are followed once."""
    found: list[tuple[str, Path]] = []
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _is_junk(name))
        for file in files:
            if not _is_junk(file):
                path = Path(folder, file)
                found.append((path.relative_to(root).as_posix(), path))
    return found


def _no_images(title: str, others: list[str]) -> str:
    wanted = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    if not others:
        return f"{title}: empty; it needs images ({wanted})"
    zips = sorted(name for name in others if name.lower().endswith(".zip"))
    hint = f"; to use {zips[0]}, give its path" if zips else ""
    return f"{title}: none of its {len(others)} files is an image ({wanted}){hint}"
