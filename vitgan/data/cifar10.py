"""CIFAR-10 from its home, downloaded once and checked."""

import hashlib
import tarfile
import urllib.request
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitgan.data.base import DataError, TensorDataset
from vitgan.data.decode import fit_image
from vitgan.files import atomic_write
from vitgan.progress import progress_line

# The binary edition: the same images as the Python one, and no pickle to trust.
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

_MEMBERS = [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)]
_SIZE = 32
_RECORD = 1 + 3 * _SIZE**2
_BLOCK = 2**20


def load_cifar10(cache: Path, image_size: int, channels: int) -> TensorDataset:
    """The 50,000 training images, fitted to `image_size` and `channels` as any file would be.

    Raises:
        DataError: the archive can be neither found under `cache` nor downloaded, or is not the right one.
    """
    archive = cache / Path(URL).name
    if not archive.exists():
        download(URL, archive, MD5)
    images, labels = read_records(archive)
    if (image_size, channels) != (_SIZE, 3):
        images = _fit(images, image_size, channels)
    return TensorDataset(images, name="cifar10", labels=labels, class_names=list(CLASSES))


def download(url: str, path: Path, md5: str) -> None:
    """Fetch `url` to `path`, which appears only when it is whole and its md5 is right."""
    offline = f"Without a network: put a copy of it at {path}, or train on a folder or .zip of images."
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, atomic_write(path) as file:
            total = int(response.headers.get("Content-Length") or 0)
            with progress_line(f"downloading {path.name}", total) as advance:
                while block := response.read(_BLOCK):
                    digest.update(block)
                    file.write(block)
                    advance(len(block))
            if digest.hexdigest() != md5:
                raise DataError(
                    f"{url}: got {file.tell()} bytes with md5 {digest.hexdigest()}, expected md5 {md5}: "
                    f"cut or changed on the way; start again. {offline}"
                )
    except (OSError, HTTPException) as error:
        raise DataError(f"{url}: the download failed ({error}). {offline}") from error


def read_records(archive: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of the training batches, in their order."""
    try:
        with tarfile.open(archive) as tar:
            # Each member is asked for by name: nothing is unpacked to the disk.
            files = [tar.extractfile(name) for name in _MEMBERS]
            raw = b"".join(file.read() for file in files if file is not None)
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{archive}: not the archive of {URL} ({error}); delete it and start again") from error
    if not raw or len(raw) % _RECORD:
        raise DataError(f"{archive}: {len(raw)} bytes are no whole number of records; delete it and start again")
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _RECORD)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, _SIZE, _SIZE).copy())
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def _fit(images: Tensor, image_size: int, channels: int) -> Tensor:
    out = torch.empty(len(images), channels, image_size, image_size, dtype=torch.uint8)
    with progress_line("resizing cifar10", len(images)) as advance:
        for i, image in enumerate(images.permute(0, 2, 3, 1).contiguous().numpy()):
            out[i] = torch.from_numpy(fit_image(Image.fromarray(image), image_size, channels).copy())
            advance(1)
    return out
