"""Work on batches of indices in worker processes, with results in order."""

import os
import pickle
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from vitgan.data.base import DataError
from vitgan.errors import first_line

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
    with _interrupts_blocked():
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
    while True:
        try:
            result = pickle.loads(next(batches))
        except StopIteration:
            return
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise DataError(
                f"a process that decodes images was ended from outside ({first_line(error)}): perhaps the memory ran "
                f"out. Fewer --workers need less"
            ) from error
        if isinstance(result, DataError):
            raise result
        yield result


def _as_is(batch: Any) -> Any:
    return batch


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, from their first moment: they inherit what is blocked here.

    Ctrl-C goes to every process of the terminal, while the trainer still wants a batch for its last step.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
