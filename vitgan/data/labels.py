"""Classes of images, from a list beside them or from the folders they lie in."""

import json
from pathlib import PurePosixPath

import torch
from torch import Tensor

from vitgan.data.base import DataError
from vitgan.data.sources import LABEL_FILE, Folder, Zip

Labels = tuple[Tensor, list[str]] | None


def read_labels(archive: Folder | Zip) -> Labels:
    """Class indices (N,) int64 in the order of the members, and names of the classes; None if nothing tells.

    A `dataset.json` with {"labels": [[member, class index], ...]} decides; "labels": null says that there are
    none. Without one, a class is the folder at the top, past those that hold everything, provided that every
    image lies in one.
    """
    names = [member.name for member in archive.members]
    folders = _top_folders(names)
    if archive.has_labels:
        listed = _read_list(archive)
        if listed is not None:
            return _from_list(archive.title, names, listed, folders)
        return None
    if folders is None:
        return None
    classes = sorted(set(folders))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[folder] for folder in folders]), classes


def _read_list(archive: Folder | Zip) -> dict[str, int] | None:
    where = f"{archive.title}: {LABEL_FILE}"
    try:
        labels = json.loads(archive.read(LABEL_FILE))["labels"]
        return None if labels is None else {str(name): _index(value) for name, value in labels}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'{where} cannot be used ({error!r}); remove it, or write {{"labels": [["a/b.png", 0], ...]}}'
        ) from None


def _index(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"a class index must be a whole number from 0, not {value!r}")
    return value


def _from_list(title: str, names: list[str], listed: dict[str, int], folders: list[str] | None) -> Labels:
    missing = [name for name in names if name not in listed]
    if missing:
        raise DataError(
            f"{title}: {LABEL_FILE} has no label for {len(missing)} of {len(names)} images, "
            f"such as {missing[0]}; add them to it, or remove it"
        )
    labels = [listed[name] for name in names]
    classes = [str(i) for i in range(max(labels) + 1)]
    # Where each folder has one class of its own, its name says more than a number.
    pairs = set(zip(folders, labels, strict=True)) if folders else set()
    if len({folder for folder, _ in pairs}) == len({label for _, label in pairs}) == len(pairs):
        for folder, label in pairs:
            classes[label] = folder
    return torch.tensor(labels), classes


def _top_folders(names: list[str]) -> list[str] | None:
    parts = [PurePosixPath(name).parts for name in names]
    while all(len(p) > 1 for p in parts):
        if len({p[0] for p in parts}) > 1:
            return [p[0] for p in parts]
        parts = [p[1:] for p in parts]
    return None
