"""An endless stream of batches that can be resumed at any of them."""

import hashlib
import os
import signal
from collections.abc import Iterator
from functools import lru_cache
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .base import ImageDataset


class BatchStream(Iterator[Tensor]):
    """Yields uint8 (batch_size, C, H, W) CPU tensors for ever.

    Batch n is a function of (dataset, batch_size, seed, n) alone: neither the workers nor where the stream started change it.
    Each epoch is a permutation of its own; batches run across the border between two epochs, so that no image is dropped and
    a data set smaller than a batch serves too.

    Args:
        dataset: where the images come from.
        batch_size: images a batch.
        seed: of the permutations.
        start: number of the first batch; give `position` of an earlier stream to go on where it stopped.
        workers: processes that decode ahead. None means none for data in memory, else one for each core but the one that trains.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_size: int,
        *,
        seed: int,
        start: int = 0,
        workers: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError(f"{dataset.name}: a stream needs at least one image")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        if workers is None:
            workers = 0 if dataset.in_memory else max(1, min(8, (os.cpu_count() or 1) - 1))
        self.position = start
        batches = BatchIndices(len(dataset), batch_size, seed, start)
        self._batches: Iterator[Tensor] | None
        if workers == 0:
            self._batches = map(dataset.fetch, batches)
        else:
            self._batches = iter(batch_loader(dataset, batches, workers))

    def __next__(self) -> Tensor:
        if self._batches is None:
            raise RuntimeError("this BatchStream is closed: make a new one with start=stream.position")
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """End the worker processes. May be called more than once."""
        self._batches = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class BatchIndices(Sampler[list[int]]):
    """The indices of batch `start`, `start` + 1, ...: consecutive pieces of all epochs' permutations laid end to end."""

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start * self.batch_size
        while True:
            yield self._span(first, first + self.batch_size)
            first += self.batch_size

    def _span(self, first: int, last: int) -> list[int]:
        pieces = []
        while first < last:
            epoch, offset = divmod(first, self.length)
            count = min(last - first, self.length - offset)
            pieces.append(epoch_order(self.length, self.seed, epoch)[offset : offset + count])
            first += count
        return torch.cat(pieces).tolist()


@lru_cache(maxsize=2)
def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """The permutation (length,) of one epoch."""
    digest = hashlib.blake2b(f"{seed}:{epoch}".encode(), digest_size=7).digest()
    return torch.randperm(length, generator=torch.Generator().manual_seed(int.from_bytes(digest)))


class _Fetcher(Dataset[Tensor]):
    """Hands whole batches of indices to `fetch`."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.dataset.fetch(indices)


def batch_loader(dataset: ImageDataset, batches: Sampler[list[int]], workers: int) -> DataLoader[Tensor]:
    """A loader that fetches `batches` in worker processes and returns them in order."""
    return DataLoader(
        _Fetcher(dataset),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_ignore_interrupt,
        # The loader draws a seed for its workers: not from the global generator, or resuming would shift the training's.
        generator=torch.Generator().manual_seed(0),
    )


def _as_is(batch: Tensor) -> Tensor:
    return batch


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal: the trainer still wants batches for the step that it is finishing.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
