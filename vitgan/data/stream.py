"""An endless stream of batches, decoded ahead in worker processes, that resumes at any batch."""

import hashlib
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitgan.data.base import DataError, DeviceDataset, ImageDataset
from vitgan.errors import InputError, first_line
from vitgan.process import STOP_SIGNALS


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
            raise InputError(f"{dataset.name}: a stream needs at least one image")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if start < 0:
            raise InputError(f"start must be at least 0, got {start}")
        if isinstance(dataset, DeviceDataset):
            workers = 0  # a process that is forked has no access to the device
        if workers is None:
            workers = 0 if dataset.in_memory else max(1, min(8, core_count() - 1))
        self.position = start
        if not 0 <= part[0] < part[1] or batch_size % part[1]:
            raise InputError(f"a batch of {batch_size} cannot be shared out as part {part[0]} of {part[1]}")
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


T = TypeVar("T")


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_workers(fetch: Callable[[list[int]], T], batches: Iterable[list[int]], workers: int) -> Iterator[T]:
    """`map(fetch, batches)`, computed ahead in `workers` processes, which end when the iterator is dropped.

    With 0 workers it is computed in this process, when asked for. A DataError of `fetch` is raised as it is, and so is
    one where a worker is gone.
    """
    if workers == 0:
        return map(fetch, batches)
    with _signals_blocked():
        results = iter(
            DataLoader(
                _Batches(fetch),
                batch_sampler=batches,
                num_workers=workers,
                collate_fn=_as_is,
                # The loader draws a seed for its workers. Drawn from the global generator, it would shift the
                # training's random numbers whenever a stream is opened, as on resuming.
                generator=torch.Generator().manual_seed(0),
            )
        )
    return _results(results)


class _Batches(Dataset[bytes], Generic[T]):
    """Hands the indices of a batch to `fetch` whole."""

    def __init__(self, fetch: Callable[[list[int]], T]) -> None:
        self.fetch = fetch

    def __getitems__(self, indices: list[int]) -> bytes:
        # Errors are given back instead of raised: the loader would wrap their message in a worker's traceback.
        # As bytes, through a pipe: tensors go through shared memory, of which containers have 64 MiB, and a worker
        # that finds it full loses the batch, for which the loader then waits for ever.
        try:
            return pickle.dumps(self.fetch(indices))
        except DataError as error:
            return pickle.dumps(error)


def _results(batches: Iterator[bytes]) -> Iterator[Any]:
    try:
        while True:
            result = pickle.loads(next(batches))
            if isinstance(result, DataError):
                raise result
            yield result
    except StopIteration:
        return
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error):
            raise
        raise DataError(
            f"a process that decodes images was ended from outside ({first_line(error)}): perhaps the memory ran "
            f"out. Fewer --workers need less"
        ) from error.with_traceback(None)
    finally:
        del batches  # ends the workers now: an error's traceback would keep them, and the lock of the run with them


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes that no wish to stop reaches, from their first moment: they inherit what is blocked here.

    Ctrl-C goes to every process of the terminal, while the trainer still wants a batch for its last step.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
