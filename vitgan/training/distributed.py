"""Several processes that train one model, started by torchrun: who this one is, and what they do together.

Every process draws the random numbers of the whole batch and keeps its own part of them, and gradients are averaged:
one global batch gives the same weights on any number of processes, to rounding.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from vitgan.errors import TrainingError, first_line

TIMEOUT = timedelta(hours=1)
"""Longer than the first process evaluates, while the others wait. torchrun itself ends them when one dies."""


class ProcessLostError(TrainingError):
    """Another process of the run is gone."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run. The default is the usual case: this one alone.

    Attributes:
        rank: number of this process; 0 is the one that writes.
        world_size: number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """This process's part of what all have: rows of a tensor (N, ...), N a multiple of the count."""
        return batch.chunk(self.world_size)[self.rank] if self.world_size > 1 else batch

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes, in one message."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        with _contact():
            dist.all_reduce(flat)
        flat /= self.world_size
        parts = flat.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of each number over the processes."""
        if self.world_size == 1 or not values:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        with _contact():
            dist.all_reduce(total)
        return dict(zip(values, (total / self.world_size).tolist(), strict=True))

    def max(self, number: int) -> int:
        """The greatest number that a process gives, in every process."""
        if self.world_size == 1:
            return number
        # On the CPU: a device is not waited for.
        all_of_them = torch.tensor(number)
        with _contact():
            dist.all_reduce(all_of_them, op=dist.ReduceOp.MAX)
        return int(all_of_them)

    def gather(self, part: Tensor) -> Tensor:
        """All processes' parts, as `shard` shares them out, put together again."""
        if self.world_size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world_size)]
        with _contact():
            dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)

    def broadcast(self, value: Any) -> Any:
        """The first process's value, in every process."""
        if self.world_size == 1:
            return value
        box = [value]
        with _contact():
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The block runs in the first process, and then in all others: for work that leaves its result in a cache."""
        if not self.is_main:
            self._wait()
        yield
        if self.is_main:
            self._wait()

    def _wait(self) -> None:
        if self.world_size > 1:
            with _contact():
                dist.barrier()


@contextmanager
def torchrun_ranks(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun, this one alone."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    use_cuda = torch.cuda.is_available() and (device is None or device.startswith("cuda"))
    if use_cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # Both: gradients go over NCCL, and what the CPU needs to know does not make it wait for the device.
    dist.init_process_group("cpu:gloo,cuda:nccl" if use_cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextmanager
def _contact() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = f"another process of this run ended or cannot be reached ({first_line(error)})"
        raise ProcessLostError(reason) from error
