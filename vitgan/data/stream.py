"""An endless stream of batches that can be resumed at any of them."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from vitgan.data.base import ImageDataset
from vitgan.data.device import DeviceDataset
from vitgan.data.workers import core_count, map_in_workers


class BatchStream(Iterator[Tensor]):
    """Yields uint8 (batch_size, C, H, W) tensors, where the data set fetches them to, for ever.

    Batch n is a function of (dataset, batch_size, seed, n) alone: neither the workers nor where the stream
    started change it. Each epoch is a permutation of its own. Batches run across the border between two
    epochs, so that no image is dropped and a data set smaller than a batch serves too.

    Args:
        dataset: where the images come from.
        batch_size: images a batch.
        seed: of the permutations.
        start: number of the first batch; with an earlier stream's `position`, it goes on where that stopped.
        part: (number, count) of the process among those that share each batch out; `batch_size` is a multiple of count.
        workers: processes that decode ahead; 0 fetches in this one, as always for data on a device. None means 0 for
            data in memory, else one for each core but the one that trains, up to 8.

    Attributes:
        position: number of the next batch, counted from the beginning of the training.
        labels: int64 (B,), the classes of the batch that was given last; None where the data has none.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        workers: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(f"{dataset.name}: a stream needs at least one image")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        if isinstance(dataset, DeviceDataset):
            workers = 0  # a process that is forked has no access to the device
        if workers is None:
            workers = 0 if dataset.in_memory else max(1, min(8, core_count() - 1))
        self.position = start
        if not 0 <= part[0] < part[1] or batch_size % part[1]:
            raise ValueError(f"a batch of {batch_size} cannot be shared out as part {part[0]} of {part[1]}")
        self.labels: Tensor | None = None
        self._classes = dataset.labels
        # Made anew beside the batches, which workers may hold ahead of what has been given out.
        self._indices = _part(batch_indices(len(dataset), batch_size, seed, start), *part)
        batches = _part(batch_indices(len(dataset), batch_size, seed, start), *part)
        self._batches: Iterator[Tensor] | None = map_in_workers(dataset.fetch, batches, workers)

    def __next__(self) -> Tensor:
        if self._batches is None:
            raise RuntimeError("this BatchStream is closed: make a new one with start=stream.position")
        batch = next(self._batches)
        self.position += 1
        if self._classes is not None:
            self.labels = self._classes[next(self._indices)]
        return batch

    def close(self) -> None:
        """End the worker processes. May be called more than once."""
        self._batches = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def batch_indices(length: int, batch_size: int, seed: int, start: int = 0) -> Iterator[list[int]]:
    """Indices of batch `start`, `start` + 1, ...: pieces of the epochs' permutations laid end to end."""
    first = start * batch_size
    while True:
        pieces, wanted = [], batch_size
        while wanted:
            epoch, offset = divmod(first, length)
            piece = epoch_order(length, seed, epoch)[offset : offset + wanted]
            pieces.append(piece)
            first += len(piece)
            wanted -= len(piece)
        yield torch.cat(pieces).tolist()


def _part(batches: Iterator[list[int]], number: int, count: int) -> Iterator[list[int]]:
    return (batch[number * len(batch) // count : (number + 1) * len(batch) // count] for batch in batches)


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The permutation (length,) of one epoch."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest))
    return torch.randperm(length, generator=generator)
