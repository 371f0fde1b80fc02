"""The result file of a run of the benchmarks: what was measured, on what, and against which ceilings.

benchmarks/results/<device>/<name>.json holds one `Run`. A row without a time says why.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

SCHEMA = 1
FOLDER = Path(__file__).parent / "results"
MEASURES = ("forward", "forward_backward", "second_order", "step", "start_up", "compile")


class ResultError(ValueError):
    """A file is not a result file of this schema; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class Times:
    """Milliseconds: the 20th percentile, the median and the 80th."""

    p20: float
    median: float
    p80: float


@dataclass(frozen=True)
class Ceilings:
    """What the machine reached in the same run: a large copy (bytes read and written) and large matrix products."""

    copy_bytes_per_second: float
    matmul_flops_per_second: dict[str, float]


@dataclass(frozen=True)
class Row:
    """One contender in one case.

    suite, case: what is computed, and in which size; rows of one (suite, case, dtype, measures) compare.
    shape: the sizes by name. dtype: of the inputs.
    measures: one of MEASURES; "second_order" is forward, backward and the backward of a gradient penalty.
    who, ours: the contender; ours is this project's.
    matched, error, allowed: whether the result was within `allowed` of float64, as the largest error relative to the
        largest value; nothing is timed otherwise.
    milliseconds, repeat_milliseconds: of one call; the same thing timed a second time in the same run.
    bytes, flops, launches: the least that the computation moves and does (formulas stand with the case), and the
        kernels it launched.
    floor_milliseconds: the greater of bytes and flops at the run's ceilings.
    peak_memory_bytes: beyond the inputs, during one call.
    why: where something above is missing, the reason.
    """

    suite: str
    case: str
    shape: dict[str, int]
    dtype: str
    measures: str
    who: str
    ours: bool
    matched: bool
    error: float | None
    allowed: float | None
    milliseconds: Times | None
    repeat_milliseconds: Times | None
    bytes: float | None
    flops: float | None
    launches: float | None
    floor_milliseconds: float | None
    peak_memory_bytes: int | None
    why: str | None

    def __post_init__(self) -> None:
        if self.measures not in MEASURES:
            raise ResultError(f"measures is {self.measures!r}: it must be one of {', '.join(MEASURES)}")
        if self.milliseconds is None and not self.why:
            raise ResultError(f"{self.who} in {self.case} has no time and no reason why")
        if self.milliseconds is not None and not self.matched:
            raise ResultError(f"{self.who} in {self.case} has a time although its result did not match")
        if self.milliseconds and not 0 < self.milliseconds.p20 <= self.milliseconds.median <= self.milliseconds.p80:
            raise ResultError(f"{self.who} in {self.case} has percentiles out of order: {self.milliseconds}")

    @property
    def group(self) -> tuple[str, str, str, str]:
        """What rows must share to be compared."""
        return self.suite, self.case, self.dtype, self.measures


@dataclass(frozen=True)
class Run:
    """One run of the benchmarks on one machine.

    kind is "cpu" or "cuda"; date is UTC, ISO 8601; dirty says that files differed from the commit; size is "small" or
    "paper".
    """

    device: str
    kind: str
    driver: str | None
    cpu: str
    threads: int
    python: str
    torch: str
    triton: str | None
    cuda: str | None
    commit: str
    dirty: bool
    date: str
    size: str
    ceilings: Ceilings
    rows: list[Row]
    schema: int = SCHEMA

    def save(self, path: Path) -> None:
        """Write the file whole, with its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file. Raises ResultError where it is not one, FileNotFoundError where there is none."""
        try:
            values = json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ResultError(f"{path} is not JSON ({error}): give a file that the benchmarks wrote") from error
        schema = values.get("schema") if isinstance(values, dict) else None
        if schema != SCHEMA:
            raise ResultError(f"{path} has schema {schema!r}, this code reads {SCHEMA}: run the benchmarks again")
        try:
            ceilings = _made(Ceilings, values.pop("ceilings"))
            rows = [_made(Row, row | {key: _times(row[key]) for key in TIMES}) for row in values.pop("rows")]
            return _made(cls, values | {"ceilings": ceilings, "rows": rows})
        except (KeyError, TypeError, AttributeError, ResultError) as error:
            raise ResultError(f"{path} does not fit the schema: {error}") from error

    @property
    def folder(self) -> str:
        """The device's name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")


TIMES = ("milliseconds", "repeat_milliseconds")


def all_runs(folder: Path = FOLDER) -> list[Run]:
    """Every run in a folder, by device and date. Raises ResultError where there is no such folder or nothing in it."""
    if not (paths := sorted(folder.glob("*/*.json"))):
        missing = "has no file <device>/<name>.json" if folder.is_dir() else "is no folder"
        raise ResultError(f"{folder} {missing}: give the one that `pytest benchmarks/ --record NAME` wrote")
    return sorted((Run.load(path) for path in paths), key=lambda run: (run.device, run.date))


def percentiles(milliseconds: list[float]) -> Times:
    """Of at least one time, by linear interpolation."""
    ordered = sorted(milliseconds)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low, high = math.floor(place), math.ceil(place)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return Times(at(0.2), at(0.5), at(0.8))


def _times(values: dict[str, float] | None) -> Times | None:
    return None if values is None else _made(Times, values)


def _made(kind: Any, values: dict[str, Any]) -> Any:
    unknown = set(values) - {field.name for field in fields(kind)}
    if unknown:
        raise ResultError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**values)
