"""Where encoded images come from: folders, zips, single files; and their classes."""

import json
import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import torch
from torch import Tensor

from vitgan.data.base import DataError
from vitgan.errors import InputError
from vitgan.files import check_size, read_file, regular

FORMATS = "png apng jpg jpeg jpe jfif webp avif bmp dib gif tif tiff jp2 j2k ppm pgm pbm pnm tga"
IMAGE_SUFFIXES = frozenset(f".{name}" for name in FORMATS.split())
LABEL_FILE = "dataset.json"
LEFTOVERS = frozenset({"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"})
"""Folders that systems and tools leave beside images."""
MAX_FILE_BYTES = 2**30
"""Of one image, encoded."""


@dataclass(frozen=True)
class Member:
    """An image file. `stamp` changes when its content does."""

    name: str
    stamp: str


class Archive(Protocol):
    """Images by name, in a fixed order. Can be pickled, and read from several processes."""

    title: str
    members: list[Member]
    left_out: str

    def read(self, name: str) -> bytes: ...


class Folder:
    """Images in a folder, at any depth."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.title = str(path)
        found = dict(_walk(self.path, self.title))
        names, self.label_file, self.left_out = sort_out(self.title, found)
        self.members = []
        for name in names:
            try:
                stat = regular(found[name])
            except OSError as error:
                raise DataError(f"{self.title}: {name} cannot be read ({error.strerror}): remove it") from error
            # The path belongs to the stamp: two folders may hold files of equal names, sizes and times.
            self.members.append(Member(name, f"{self.path} {stat.st_size} {stat.st_mtime_ns}"))

    def read(self, name: str) -> bytes:
        return read_file(self.path / name, MAX_FILE_BYTES)


class SingleFile:
    """One image."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.title = str(path)
        self.members = [Member(path.name, "")]
        self.left_out = ""

    def read(self, name: str) -> bytes:
        return read_file(self.path, MAX_FILE_BYTES)


class Zip:
    """Images in a .zip file, at any depth."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.title = str(path)
        self._file: zipfile.ZipFile | None = None
        self._pid = -1
        try:
            listed = self._open().infolist()
        except Exception as error:  # zipfile raises anything on broken bytes
            raise DataError(
                f"{path}: not a zip file that can be read ({error}); was it copied or downloaded whole?"
            ) from None
        # Some tools on Windows write backslashes.
        named = {entry.filename.replace("\\", "/"): entry for entry in listed}
        self._entries = {name: entry for name, entry in named.items() if not name.endswith("/") and not _is_junk(name)}
        names, self.label_file, self.left_out = sort_out(self.title, self._entries)
        if self._entries[names[0]].flag_bits & 1:
            raise DataError(f"{path}: the zip is encrypted; unpack it and give the folder")
        self.members = [Member(n, f"{self._entries[n].file_size} {self._entries[n].CRC:08x}") for n in names]

    def read(self, name: str) -> bytes:
        check_size(name, self._entries[name].file_size, MAX_FILE_BYTES)
        return self._open().read(self._entries[name])

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
    try:
        regular(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: give a folder or a .zip of images") from error
    if is_image(path.name):
        raise DataError(f"{path}: this is a single image; give the folder that holds the images, or a .zip of them")
    if path.suffix.lower() == ".zip" or zipfile.is_zipfile(path):
        return Zip(path)
    raise DataError(f"{path}: neither a folder nor a .zip; unpack it and give the folder of images")


def sort_out(title: str, names: Collection[str]) -> tuple[list[str], str | None, str]:
    """Of all files: the images in order, the dataset.json above them, and a word on the others.

    Raises DataError where there is no image, or a dataset.json that is not above them all.
    """
    images = sorted(filter(is_image, names))
    if not images:
        raise DataError(_no_images(title, names))
    lists = sorted((name for name in names if PurePosixPath(name).name == LABEL_FILE), key=len)
    for name in lists:
        folder = name.removesuffix(LABEL_FILE)
        if beside := next((image for image in images if not image.startswith(folder)), None):
            raise DataError(
                f"{title}: {name} lists the images below its folder, and {beside} lies elsewhere: give {folder} alone, "
                f"or move {LABEL_FILE} to the top, with labels for all, or remove it"
            )
    others = Counter(PurePosixPath(n).suffix or n for n in sorted(names) if not is_image(n) and n not in lists)
    left_out = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
    return images, next(iter(lists), None), left_out + ", ..." * (len(others) > 5)


def is_image(name: str) -> bool:
    """Whether the name ends as an image's does."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_junk(name: str) -> bool:
    """Hidden files, and what systems and tools put beside images."""
    return any(part.startswith(".") or part in LEFTOVERS for part in PurePosixPath(name).parts)


def _walk(root: Path, title: str) -> Iterator[tuple[str, Path]]:
    """Every file under `root` but junk, with its name relative to it. Linked folders are followed once."""

    def fail(error: OSError) -> None:
        raise DataError(
            f"{title}: the folder {error.filename} cannot be read ({error.strerror}), and its images are perhaps a "
            f"class: make it readable, or remove it"
        ) from error

    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not _is_junk(name))
        for path in (Path(folder, file) for file in files if not _is_junk(file)):
            yield path.relative_to(root).as_posix(), path


def _no_images(title: str, others: Collection[str]) -> str:
    wanted = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    if not others:
        return f"{title}: empty; it needs images ({wanted})"
    zips = sorted(name for name in others if name.lower().endswith(".zip"))
    hint = f"; to use {zips[0]}, give its path" if zips else ""
    return f"{title}: none of its {len(others)} files is an image ({wanted}){hint}"


Labels = tuple[Tensor, list[str]] | None


def read_labels(archive: Folder | Zip) -> Labels:
    """Class indices (N,) int64 in the order of the members, and names of the classes; None if nothing tells.

    A `dataset.json` above all images, with {"labels": [[member, class index], ...]}, decides; "labels": null says
    that there are none. Class indices that no image has are left out. Without one, a class is the folder at the top,
    past those that hold everything, provided that every image lies in one.
    """
    names = [member.name for member in archive.members]
    folders = _top_folders(names)
    if archive.label_file is not None:
        listed = _read_list(archive, archive.label_file)
        return None if listed is None else _from_list(archive.title, archive.label_file, names, listed, folders)
    return None if folders is None else number_classes(folders, {})


def number_classes(values: Sequence[Any], names: Mapping[Any, str]) -> tuple[Tensor, list[str]]:
    """Numbers (N,) int64 of the classes that have images, in the order of the values; and their names."""
    classes = sorted(set(values))
    number = {value: i for i, value in enumerate(classes)}
    return torch.tensor([number[value] for value in values]), [names.get(value, str(value)) for value in classes]


def _read_list(archive: Folder | Zip, label_file: str) -> dict[str, int] | None:
    where = f"{archive.title}: {label_file}"
    folder = label_file.removesuffix(LABEL_FILE)
    try:
        labels = json.loads(archive.read(label_file))["labels"]
        if labels is None:
            return None
        return {folder + str(name).replace("\\", "/"): _index(value) for name, value in labels}
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DataError(
            f'{where} cannot be used ({error!r}); remove it, or write {{"labels": [["a/b.png", 0], ...]}}'
        ) from None


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"a class index must be a whole number from 0, not {value!r}")
    return value


def _from_list(
    title: str, label_file: str, names: list[str], listed: dict[str, int], folders: list[str] | None
) -> Labels:
    missing = [name for name in names if name not in listed]
    if missing:
        raise DataError(
            f"{title}: {label_file} has no label for {len(missing)} of {len(names)} images, "
            f"such as {missing[0]}; add them to it, or remove it"
        )
    labels = [listed[name] for name in names]
    # Where each folder has one class of its own, its name says more than a number.
    pairs = set(zip(labels, folders, strict=True)) if folders else set()
    agree = len({folder for _, folder in pairs}) == len({label for label, _ in pairs}) == len(pairs)
    return number_classes(labels, dict(pairs) if agree else {})


def _top_folders(names: list[str]) -> list[str] | None:
    parts = [PurePosixPath(name).parts for name in names]
    while all(len(p) > 1 for p in parts):
        if len({p[0] for p in parts}) > 1:
            return [p[0] for p in parts]
        parts = [p[1:] for p in parts]
    return None
