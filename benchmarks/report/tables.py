"""What the rows of a run say: who is faster at the same thing, how time grows, how far it is from the floor."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from benchmarks.records import Row, Run
from benchmarks.report.units import times

Quantity = Literal["time", "memory"]
LESS = "(a floor)"  # ends the name of what computes less
WHOLE = ("training", "start_up")  # suites whose cases are few and each of interest
MEASURES = {
    "forward": "forward",
    "forward_backward": "forward + backward",
    "second_order": "second order",
    "step": "one step",
    "start_up": "start-up",
    "compile": "compiling",
}


def median(row: Row) -> float | None:
    """Milliseconds, or None where the row has no time."""
    return None if row.milliseconds is None else row.milliseconds.median


def spread(row: Row) -> float | None:
    """How much the median changed when the same thing was timed again, as a share of it."""
    if row.milliseconds is None or row.repeat_milliseconds is None:
        return None
    return abs(row.repeat_milliseconds.median - row.milliseconds.median) / row.milliseconds.median


def share_of_floor(row: Row) -> float | None:
    """The floor's time by the row's: 1 is as fast as this machine's ceilings allow."""
    if row.milliseconds is None or row.floor_milliseconds is None:
        return None
    return row.floor_milliseconds / row.milliseconds.median


@dataclass(frozen=True)
class Comparison:
    """Rows of one run that computed the same thing: one of ours at least, or peers alone."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """A row, for what all have in common."""
        return self.rows[0]

    @property
    def name(self) -> str:
        """What was measured, within its suite."""
        return ", ".join(part for part in (self.first.case, MEASURES[self.first.measures], self.first.dtype) if part)

    @cached_property
    def ours(self) -> Row | None:
        """The fastest of ours that matched the reference in float64."""
        return _fastest([row for row in self.rows if row.ours])

    @cached_property
    def peer(self) -> Row | None:
        """The fastest peer that matched; what computes less than the operator, for orientation, is none."""
        return _fastest(self.peers)

    @property
    def peers(self) -> list[Row]:
        """All that compute the same and are not ours, with and without a time."""
        return [row for row in self.rows if not row.ours and not row.who.endswith(LESS)]

    @property
    def speedup(self) -> float | None:
        """Time of the best peer by ours; None where either has no time."""
        ours, peer = (None if row is None else median(row) for row in (self.ours, self.peer))
        return None if ours is None or peer is None else peer / ours

    @property
    def verdict(self) -> str:
        """The speed-up in words: "" where there is none, and a remark where it is no more than noise."""
        if self.speedup is None:
            return ""
        return times(self.speedup) + (" (within noise)" if abs(self.speedup - 1) <= self.noise else "")

    @property
    def noise(self) -> float:
        """The larger spread of the two that `speedup` compares: a ratio nearer to 1 says nothing."""
        found = (0.0 if row is None else spread(row) or 0.0 for row in (self.ours, self.peer))
        return max(found)


def comparisons(run: Run) -> list[Comparison]:
    """The rows of a run, together where they compare; in the run's order."""
    found: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in run.rows:
        found[row.group].append(row)
    return [Comparison(tuple(rows)) for rows in found.values()]


def main_cases(run: Run) -> list[Comparison]:
    """Of each operator the case with the most contenders that have a time, everything that was measured of it; and all
    of WHOLE."""
    found = [comparison for comparison in comparisons(run) if comparison.ours is not None]
    contenders: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for comparison in found:
        timed = sum(row.milliseconds is not None for row in comparison.rows)
        contenders[comparison.first.suite][comparison.first.case] += timed
    chosen = {suite: max(cases, key=lambda case: cases[case]) for suite, cases in contenders.items()}
    return [c for c in found if c.first.suite in WHOLE or chosen[c.first.suite] == c.first.case]


@dataclass(frozen=True)
class Scaling:
    """Rows of one suite that differ in one size alone."""

    suite: str
    axis: str
    dtype: str
    measures: str
    rows: tuple[Row, ...]

    def series(self, quantity: Quantity) -> dict[str, list[tuple[float, float]]]:
        """Points (size, milliseconds or bytes) of everybody, ours first; none where nothing was measured."""
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: not row.ours):
            value = median(row) if quantity == "time" else row.peak_memory_bytes
            if row.matched and value:
                found[row.who].append((row.shape[self.axis], value))
        return {who: sorted(points) for who, points in found.items() if len(points) > 1}

    def floor(self) -> list[tuple[float, float]]:
        """Points (size, milliseconds) of what bytes and operations cost at the least."""
        return sorted({(row.shape[self.axis], row.floor_milliseconds) for row in self.rows if row.floor_milliseconds})


def scalings(run: Run, *, least: int = 3) -> list[Scaling]:
    """Every series of an operator's rows that differ in one size, which takes `least` values or more."""
    axes = dict.fromkeys(axis for row in run.rows for axis in row.shape)
    found = []
    for axis in axes:
        groups: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in run.rows:
            if axis in row.shape and row.suite not in WHOLE:
                others = tuple(sorted((name, size) for name, size in row.shape.items() if name != axis))
                groups[row.suite, row.dtype, row.measures, others].append(row)
        for rows in groups.values():
            if len({row.shape[axis] for row in rows if row.matched}) >= least:
                first = rows[0]
                found.append(Scaling(first.suite, axis, first.dtype, first.measures, tuple(rows)))
    return found


def _fastest(rows: Sequence[Row]) -> Row | None:
    timed = [row for row in rows if row.matched and row.milliseconds is not None]
    return min(timed, key=lambda row: median(row) or 0.0, default=None)
