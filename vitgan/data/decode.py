"""From encoded image files to uint8 tensors: one image, and data sets decoded in memory or batch by batch."""

import fcntl
import hashlib
import io
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
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
from vitgan.data.sources import Archive, Labels
from vitgan.data.stream import core_count, map_in_workers
from vitgan.errors import InputError
from vitgan.files import atomic_write
from vitgan.progress import progress_line

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


LARGE = 2**24
"""Pixels from which on an image is decoded while no other process decodes such a one, and reduced before all else."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes an orientation of EXIF."""
PNG = b"\x89PNG\r\n\x1a\n"


def decode_image(data: bytes, image_size: int, channels: int) -> NDArray[np.uint8]:
    """One image file as uint8 (channels, image_size, image_size); of an animation, the first frame.

    The camera's orientation is applied where it can be read. Colours are taken as sRGB: an ICC profile is not looked
    at. Any exception of the decoder's may come out of broken data.
    """
    if not data:
        raise InputError("the file is empty")
    try:
        with warnings.catch_warnings(action="ignore"):  # of large images, and of metadata
            image = Image.open(io.BytesIO(_pixels_of_png(data) if data.startswith(PNG) else data))
    except UnidentifiedImageError:
        raise InputError("not an image, or of a format that Pillow cannot read") from None
    except Image.DecompressionBombError:
        raise InputError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: scale it down first") from None
    with image, _turn(image.width * image.height), warnings.catch_warnings(action="ignore"):
        # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, in a fraction of the time. Twice the wanted
        # size is enough for the resampling that follows.
        image.draft(None, (2 * image_size, 2 * image_size))
        if image.format == "PNG" and data[24] != 8 and image.mode in ("L", "RGB") and "transparency" in image.info:
            if image.mode == "RGB":
                raise InputError("a transparent colour of 16 bits: convert the file to 8 bits, or give it alpha")
            image.info["transparency"] *= 255 // (2 ** data[24] - 1)  # Pillow scales the pixels alone
        image.load()
        try:
            turn = UPRIGHT.get(int(image.getexif().get(ExifTags.Base.Orientation) or 1))
        except Exception:  # of broken EXIF; the pixels are fine
            turn = None
        eight = _to_eight_bits(image)
        factor = min(eight.size) // (3 * image_size)
        if eight.width * eight.height > LARGE and factor > 1 and eight.mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
            eight = eight.reduce(factor)
        return fit_image(eight if turn is None else eight.transpose(turn), image_size, channels)


def _pixels_of_png(data: bytes) -> bytes:
    """A PNG without texts, dates and the like, for which Pillow refuses files where they are large or broken."""
    kept, at = [PNG], len(PNG)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind, checksum = data[at + 4 : at + 8], int.from_bytes(data[end - 4 : end])
        if kind[:1].isupper() or (kind in (b"tRNS", b"eXIf") and zlib.crc32(data[at + 4 : end - 4]) == checksum):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


@contextmanager
def _turn(pixels: int) -> Iterator[None]:
    """Wait until no other process decodes a large image, if this is one: each takes hundreds of megabytes."""
    if pixels <= LARGE:
        yield
        return
    with Path(__file__).open() as file:  # a file that all processes have
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fit_image(image: Image.Image, image_size: int, channels: int) -> NDArray[np.uint8]:
    """The largest centred square of `image`, scaled to uint8 (channels, image_size, image_size).

    Alpha is kept with 2 or 4 channels, laid onto white with 1 or 3, and opaque where the image has none.
    """
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if channels in (1, 3):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode != MODES[channels]:  # else it would be copied
        image = image.convert(MODES[channels])
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side)
    image = image.resize((image_size, image_size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    pixels = np.asarray(image).reshape(image_size, image_size, channels)
    return pixels.transpose(2, 0, 1)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits scaled to eight; Pillow's own conversion would clip it at 255."""
    if image.mode == "F":
        raise InputError("pixels are floating-point numbers: convert the file to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    most = 2 ** min(bits, 16) - 1
    wide = np.asarray(image).astype(np.int64)
    if wide.min() < 0 or wide.max() > most:
        raise InputError(f"pixels are numbers of {bits} bits: convert the file to 8 or 16 bits")
    eight = ((wide * 255 + most // 2) // most).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        eight = 255 - eight
    if (transparent := image.info.get("transparency")) is None:
        return Image.fromarray(eight)
    return Image.fromarray(np.stack([eight, np.where(wide == transparent, 0, 255).astype(np.uint8)], axis=-1))


WORTH_KEEPING_SECONDS = 2.0
"""What was decoded faster than this is not kept on disk."""

_CHUNK_BYTES = 2 * 2**20
_CACHE_FORMAT = 2


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
    chunk = max(1, min(256, _CHUNK_BYTES // (files.nbytes // len(files)), len(files) // (4 * core_count())))
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
