"""How long a run has trained."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from vitgan.devices import wait_for


class Stopwatch:
    """Seconds that the steps took, over all the times that a run went on; what is done between them does not count.

    Attributes:
        seconds: so far, the device's outstanding work apart (see `wait`).
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """The block is a part of training."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def wait(self, device: torch.device) -> None:
        """Let the device finish its steps, as a part of their time."""
        with self.running():
            wait_for(device)
