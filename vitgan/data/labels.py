"""Classes of images, from a list beside them or from the folders they lie in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor

from vitgan.data.base import DataError
from vitgan.data.sources import LABEL_FILE, Folder, Zip

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
        raise ValueError(f"a class index must be a whole number from 0, not {value!r}")
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
