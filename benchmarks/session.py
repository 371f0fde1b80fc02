"""One run of the suites: a case is measured once, its contenders in turns; each contender is then a test of its own.

pytest-benchmark draws the tables. Its clock is ours: it replays the times that the turns have taken.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine
from benchmarks.cases import Case, Contender
from benchmarks.measure import Measured, measure
from benchmarks.records import FOLDER, Row
from vitgan_kernels.backends import OPERATORS

SECONDS = {"small": 0.25, "paper": 0.5}  # for each contender, twice


class Clock:
    """A timer that lets given durations pass, one between each two readings, and the true time otherwise."""

    def __init__(self) -> None:
        self.left: list[float] = []
        self.now = 0.0
        self.running = False

    def load(self, seconds: Sequence[float]) -> None:
        """Take durations to replay."""
        self.left = list(reversed(seconds))

    def __call__(self) -> float:
        if not self.left:
            return time.perf_counter()
        if self.running:
            self.now += self.left.pop()
        self.running = not self.running
        return self.now


CLOCK = Clock()


class Session:
    """What the suites share: the device, the size, and every row measured so far."""

    def __init__(self, size: str) -> None:
        self.size = size
        self.device = machine.pick_device()
        self.code = machine.code()  # as it was when the run began
        self.ceilings = machine.measure_ceilings(self.device)
        self.measured: dict[object, dict[tuple[str, str], Measured]] = {}

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order of measurement."""
        return [one.row for group in self.measured.values() for one in group.values()]

    def case(self, case: Case, measures: str, contenders: Callable[[], Sequence[Contender]], who: str) -> Measured:
        """One contender's part; all of the case are measured when the first is asked for."""

        def run() -> list[Measured]:
            seconds = SECONDS[self.size]
            return measure(case, measures, contenders(), self.device, self.ceilings, seconds)

        return self.group((case.suite, case.name, case.dtype, measures), run)[case.name, who]

    def group(self, key: object, run: Callable[[], list[Measured]]) -> dict[tuple[str, str], Measured]:
        """What `run` measures, the first time that the key is asked for, by case and contender."""
        if key not in self.measured:
            self.measured[key] = {(one.row.case, one.row.who): one for one in run()}
        return self.measured[key]

    def save(self, name: str, folder: Path = FOLDER) -> Path:
        """Write the result file."""
        run = machine.describe(self.device, self.code, self.size, self.ceilings, self.rows)
        path = folder / run.folder / f"{name}.json"
        run.save(path)
        return path


def show(measured: Measured, benchmark: Any) -> None:
    """Give the row to pytest-benchmark; skip where there is no time, fail where what is ours was tried in vain."""
    row = measured.row
    if row.milliseconds is None:
        (pytest.fail if row.ours and measured.tried else pytest.skip)(f"{row.who}: {row.why}")
    benchmark.group = ", ".join(part for part in row.group if part)
    benchmark.extra_info = {"error": row.error, "allowed": row.allowed, "floor_milliseconds": row.floor_milliseconds}
    CLOCK.load([sample / 1000 for sample in measured.samples])
    benchmark.pedantic(lambda: None, rounds=len(measured.samples))


def name_of_ours(operator: str, *arguments: Any, **options: Any) -> str:
    """The name of this project's contender: with the implementation that serves such a call here."""
    return f"vitgan_kernels ({OPERATORS[operator].select(None, *arguments, **options).backend})"


def fits(device: torch.device) -> list[torch.dtype]:
    """The dtypes that the suites run in: what training uses."""
    return [torch.bfloat16] if device.type == "cuda" else [torch.float32]
