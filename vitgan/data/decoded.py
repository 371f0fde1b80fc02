"""Data sets of encoded files: decoded once into memory where they fit, else batch by batch."""

import hashlib
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from vitgan.data.base import (
    IN_MEMORY_LIMIT,
    DataError,
    ImageDataset,
    Indices,
    TensorDataset,
    check_format,
    check_indices,
)
from vitgan.data.decode import decode_image
from vitgan.data.labels import Labels
from vitgan.data.progress import progress_line
from vitgan.data.sources import Archive
from vitgan.data.workers import core_count, map_in_workers
from vitgan.files import atomic_write

WORTH_KEEPING_SECONDS = 2.0
"""What was decoded faster than this is not kept on disk."""

_CHUNK_BYTES = 2 * 2**20
_CACHE_FORMAT = 1


class ImageFiles(ImageDataset):
    """Images of an archive, decoded each time they are fetched."""

    in_memory = False

    def __init__(self, archive: Archive, image_size: int, channels: int, *, name: str, labels: Labels = None) -> None:
        check_format(image_size, channels)
        self.archive = archive
        self.name = name
        self.image_size = image_size
        self.channels = channels
        self.left_out = archive.left_out
        names = "\0".join(member.name for member in archive.members).encode(errors="surrogateescape")
        self.identity = f"names {hashlib.blake2b(names, digest_size=8).hexdigest()}"
        if labels is not None:
            self.labels, self.class_names = labels

    def __len__(self) -> int:
        return len(self.archive.members)

    def fetch(self, indices: Indices) -> Tensor:
        """As for any data set; DataError names the files that cannot be decoded."""
        images, bad = self.try_fetch(check_indices(indices, len(self)).tolist())
        if bad:
            raise bad_files(self.archive.title, bad, len(self))
        return images

    def try_fetch(self, indices: list[int]) -> tuple[Tensor, list[str]]:
        """The images, and a line for each file that cannot be decoded (its image is black)."""
        shape = (len(indices), self.channels, self.image_size, self.image_size)
        images = np.zeros(shape, dtype=np.uint8)
        bad = []
        for row, index in enumerate(indices):
            name = self.archive.members[index].name
            try:
                images[row] = decode_image(self.archive.read(name), self.image_size, self.channels)
            except Exception as error:  # decoders raise anything on broken bytes
                bad.append(f"{name}: {str(error) or type(error).__name__}")
        return torch.from_numpy(images), bad

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return len(self) * self.channels * self.image_size**2

    def digest(self) -> str:
        """A name for what decoding all the files, as asked for, gives."""
        hasher = hashlib.blake2b(digest_size=16)
        hasher.update(f"{_CACHE_FORMAT} {PIL.__version__} {self.image_size} {self.channels}\n".encode())
        for member in self.archive.members:
            hasher.update(f"{member.name}\0{member.stamp}\n".encode(errors="surrogateescape"))
        return hasher.hexdigest()


def load_files(files: ImageFiles, cache: Path) -> ImageDataset:
    """`files`, each of them known to be readable: in memory if they fit there, else as they are.

    What took long is kept under `cache` for the next start: the decoded images, or the fact that all of them
    could be decoded.

    Raises:
        DataError: some files cannot be decoded; it names them.
    """
    kept = cache / "decoded" / f"{files.digest()}.npy"
    fits = files.nbytes <= IN_MEMORY_LIMIT
    shape = (len(files), files.channels, files.image_size, files.image_size) if fits else (0,)
    images = _recall(kept, shape)
    if images is None:
        images = torch.empty(shape, dtype=torch.uint8)
        begin = time.monotonic()
        decode_all(files, images if fits else None)
        if time.monotonic() - begin > WORTH_KEEPING_SECONDS:
            _keep(kept, images)
    if not fits:
        return files
    dataset = TensorDataset(images, name=files.name, labels=files.labels, class_names=files.class_names)
    dataset.left_out, dataset.identity = files.left_out, files.identity
    return dataset


def decode_all(files: ImageFiles, out: Tensor | None) -> None:
    """Decode every file, on every core, into `out` (N, C, S, S); with None, only to see that it can be."""
    chunk = max(1, min(256, _CHUNK_BYTES // (files.nbytes // len(files))))
    spans = [span.tolist() for span in torch.arange(len(files)).split(chunk)]
    decode = files.try_fetch if out is not None else partial(_try_decode, files)
    parts = map_in_workers(decode, spans, min(core_count(), len(spans)) if len(spans) > 1 else 0)
    bad: list[str] = []
    verb = "decoding" if out is not None else "checking"
    with progress_line(f"{verb} {files.name}", len(files)) as advance:
        for span, (images, bad_here) in zip(spans, parts, strict=True):
            if out is not None:
                out[span[0] : span[-1] + 1] = images
            bad += bad_here
            advance(len(span))
    if bad:
        raise bad_files(files.archive.title, bad, len(files))


def bad_files(title: str, bad: list[str], total: int) -> DataError:
    """The error that names the files that cannot be decoded."""
    lines = [f"{title}: {len(bad)} of {total} images cannot be read:", *(f"  {line}" for line in bad[:10])]
    if len(bad) > 10:
        lines.append(f"  and {len(bad) - 10} more")
    lines.append("Replace or remove these files, and start again.")
    return DataError("\n".join(lines))


def _try_decode(files: ImageFiles, indices: list[int]) -> tuple[Tensor, list[str]]:
    return torch.empty(0), files.try_fetch(indices)[1]


def _recall(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        array = np.load(path)
    except (OSError, EOFError, ValueError):
        return None
    return torch.from_numpy(array) if array.shape == shape and array.dtype == np.uint8 else None


def _keep(path: Path, images: Tensor) -> None:
    """Save `images` for the next start. Where that fails only time is lost, hence a warning."""
    try:
        with atomic_write(path) as file:
            np.save(file, images.numpy())
    except OSError as error:
        warnings.warn(f"decoded images are not kept for the next start: {error}", stacklevel=2)
