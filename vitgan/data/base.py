"""What every data set looks like to the trainer: a length, and a batch of bytes for given indices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitgan.devices import copy_to
from vitgan.errors import InputError

IN_MEMORY_LIMIT = 4 * 2**30
"""Bytes of decoded images that are kept in memory; larger data sets are decoded batch by batch."""

Indices = Sequence[int] | Tensor


class DataError(InputError):
    """The images cannot be used as they are. The message says which, why, and what to do."""


class ImageDataset:
    """A fixed, indexable set of images, all of one size.

    A subclass sets the attributes and implements `__len__` and `fetch`.

    Attributes:
        name: for logs.
        image_size: side in pixels.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.
        in_memory: whether `fetch` costs next to nothing, so that no worker process is worth its core.
        labels: (N,) int64 class indices, or None where the source tells no classes.
        class_names: a name for each class index, or None.
        left_out: a word on files of the source that are not used.
        identity: tells files from others, also where they have moved; empty where the name does.
    """

    name: str
    image_size: int
    channels: int
    in_memory: bool = True
    labels: Tensor | None = None
    class_names: list[str] | None = None
    left_out: str = ""
    identity: str = ""

    def __len__(self) -> int:
        raise NotImplementedError

    def fetch(self, indices: Indices) -> Tensor:
        """Images at `indices`, in that order: uint8 (B, C, H, W), the caller's to change.

        They are on the CPU, those of a `DeviceDataset` on its device.

        Raises:
            IndexError: an index is out of range.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        size = self.image_size
        words = [f"{self.name!r}, {len(self)} images, {self.channels} x {size} x {size}"]
        if self.labels is not None:
            counts = torch.bincount(self.labels, minlength=len(self.class_names or [])).tolist()
            names = self.class_names or range(len(counts))
            each = [f"{name} {count}" for name, count in zip(names, counts, strict=True)]
            words.append(f"{len(each)} classes: {', '.join(each[:12])}{', ...' * (len(each) > 12)}")
        if self.left_out:
            words.append(f"left out: {self.left_out}")
        return f"{type(self).__name__}({'; '.join(words)})"


def labels_for(dataset: ImageDataset, indices: Tensor, classes: int) -> Tensor | None:
    """The labels of these images, for samples to have too; None, for an even draw, unless there are so many classes."""
    if dataset.labels is None or classes != len(dataset.class_names or dataset.labels.unique()):
        return None
    return dataset.labels[indices]


class TensorDataset(ImageDataset):
    """Images already decoded: `images` is uint8 (N, C, S, S)."""

    def __init__(
        self,
        images: Tensor,
        *,
        name: str = "tensor",
        labels: Tensor | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3]:
            raise DataError(f"images must be uint8 (N, C, S, S), got {images.dtype} {tuple(images.shape)}")
        if len(images) == 0:
            raise DataError(f"{name}: no images")
        if labels is not None and labels.shape != images.shape[:1]:
            raise DataError(f"labels must be ({len(images)},), one an image, got {tuple(labels.shape)}")
        self.images = images
        self.name = name
        self.channels, self.image_size = images.shape[1], images.shape[2]
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Indices) -> Tensor:
        return self.images[check_indices(indices, len(self))]


def check_indices(indices: Indices, length: int) -> Tensor:
    """`indices` as an int64 tensor (B,), each of them in [0, length)."""
    index = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
    if len(index) and (int(index.min()) < 0 or int(index.max()) >= length):
        raise IndexError(f"index out of range: there are {length} images, numbered from 0 to {length - 1}")
    return index


def check_format(image_size: int, channels: int) -> None:
    """ValueError unless images can be made in this size and with these channels."""
    if channels not in (1, 2, 3, 4):
        raise InputError(f"channels must be 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGBA), got {channels}")
    if image_size < 1:
        raise InputError(f"image_size must be at least 1, got {image_size}")


MAX_GPU_SHARE = 0.25
"""Of a GPU's free memory: larger data sets stay on the host, and batches are copied."""

_CHUNK = 4096


class DeviceDataset(ImageDataset):
    """All images of a data set on a device, as uint8. Labels stay on the host.

    `fetch` gives what the data set's own does, but on the device, and does not wait for it.

    Args:
        dataset: the images; each is fetched once, now.
        device: where they are kept.
    """

    def __init__(self, dataset: ImageDataset, device: torch.device) -> None:
        self.name = dataset.name
        self.image_size, self.channels = dataset.image_size, dataset.channels
        self.labels, self.class_names, self.left_out = dataset.labels, dataset.class_names, dataset.left_out
        shape = (len(dataset), self.channels, self.image_size, self.image_size)
        self.images = torch.empty(shape, dtype=torch.uint8, device=device)
        for span in torch.arange(len(dataset)).split(_CHUNK):
            self.images[int(span[0]) : int(span[-1]) + 1] = dataset.fetch(span).to(device)

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Indices) -> Tensor:
        return self.images.index_select(0, copy_to(self.images.device, check_indices(indices, len(self))))


def keep_on_device(dataset: ImageDataset, device: torch.device) -> ImageDataset:
    """The data set on the device where that is a GPU with room for it, else as it is."""
    if device.type != "cuda" or not dataset.in_memory:
        return dataset
    free, _ = torch.cuda.mem_get_info(device)
    size = len(dataset) * dataset.channels * dataset.image_size**2
    return DeviceDataset(dataset, device) if size <= MAX_GPU_SHARE * free else dataset
