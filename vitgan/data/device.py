"""Decoded images kept where training computes, so that a step copies nothing but indices."""

import torch
from torch import Tensor

from vitgan.data.base import ImageDataset, Indices, check_indices
from vitgan.devices import copy_to

SHARE = 0.25
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
    return DeviceDataset(dataset, device) if size <= SHARE * free else dataset
