"""The one way in which everything here is checked and timed.

The contenders of a case first show that they compute it: each result is held against float64, with the error that
plain PyTorch makes in the same dtype as the measure (at most twice that, plus one rounding). Only those that match are
timed. They take turns, a round each, so that what else the machine does falls on all alike; each call takes the next of
up to 16 sets of inputs, together larger than the cache where they are not very small: the smallest cases stay in it.
All is done twice, and the second time tells how far to trust the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import cycle
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, Function, computed, detached, prepared, runner
from benchmarks.machine import CACHE_BYTES
from benchmarks.records import Ceilings, Row, percentiles
from benchmarks.timing import Call, launches, peak_memory, peak_memory_cpu, take_turns

INPUT_SETS = (2, 16)


@dataclass(frozen=True)
class Measured:
    """A row, the times behind its first percentiles, and whether the contender was tried at all."""

    row: Row
    samples: list[float]
    tried: bool = True


def measure(
    case: Case, measures: str, contenders: Sequence[Contender], device: torch.device, ceilings: Ceilings, seconds: float
) -> list[Measured]:
    """Check and time all contenders, each for about `seconds` twice, in their order."""
    exact = computed(case.exact, case, measures, torch.float64)
    allowed = 2 * largest_error(computed(case.plain, case, measures), exact)
    allowed += torch.finfo(case.dtype).eps
    row_of = _rows_of(case, measures, ceilings, allowed)
    rows: list[Measured] = []
    calls: dict[str, Call] = {}
    for contender in contenders:
        row = row_of(contender.who, ours=contender.ours)
        if why := contender.why_not(measures):
            rows.append(Measured(replace(row, why=why), [], tried=False))
            continue
        try:
            run = runner(contender, measures, case.wanted)
            right = exact
            if contender.exact:
                right = computed(contender.exact, case, measures, torch.float64)
            error = largest_error(detached(run(*prepared(case, measures, 0))), right)
            row = judged(row, error, allowed)
            if row.matched:
                calls[contender.who] = _rotating(run, case, measures, device)
        except Exception as failure:  # a limit is a result, whatever it is; `show` fails the test where it is ours
            row = replace(row, matched=False, error=None, why=reason(failure))
        rows.append(Measured(row, []))
    first, second = (take_turns(calls, device, seconds) for _ in range(2))
    return [
        with_times(row, calls[row.who], first[row.who], second[row.who], device) if row.matched else one
        for one in rows
        for row in [one.row]
    ]


def judged(row: Row, error: float, allowed: float) -> Row:
    """The row with its error, if that is a number, and whether that is allowed."""
    if error <= allowed:
        return replace(row, error=error, allowed=allowed, matched=True)
    why = f"error {error:.1e} of the largest value, {allowed:.1e} allowed"
    return replace(row, error=error if isfinite(error) else None, allowed=allowed, matched=False, why=why)


def largest_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error of any result, each relative to the largest value of its exact counterpart; NaN if any is.

    Raises ValueError where results and exact ones differ in number or shape: they would broadcast.
    """
    shapes, expected = ([tuple(each.shape) for each in some] for some in (results, exact))
    if shapes != expected:
        raise ValueError(f"results have shapes {shapes}, and not {expected}")
    errors = [
        (result.double() - right).abs().max() / right.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        for result, right in zip(results, exact, strict=True)
    ]
    return torch.stack(errors).max().item()


def _rotating(run: Function, case: Case, measures: str, device: torch.device) -> Call:
    first = prepared(case, measures, 0)
    size = sum(x.numel() * x.element_size() for part in first for x in part)
    count = min(max(CACHE_BYTES[device.type] // size + 1, INPUT_SETS[0]), INPUT_SETS[1])
    sets = [first, *(prepared(case, measures, seed) for seed in range(1, count))]
    for each in sets:  # what is only done at the first sight of an input
        run(*each)
    turning = cycle(sets)
    return lambda: run(*next(turning))


def untimed(
    suite: str, case: str, shape: dict[str, int], dtype: torch.dtype, measures: str, **known: Any
) -> Callable[..., Row]:
    """Makes rows of one case: (who, ours=False, ...) -> a row that matches but has no time yet."""

    def row(who: str, **more: Any) -> Row:
        values: dict[str, Any] = dict.fromkeys(UNKNOWN) | {"ours": False, "matched": True, "why": "not timed yet"}
        values |= {"suite": suite, "case": case, "shape": shape, "measures": measures, "who": who}
        return Row(**values | {"dtype": str(dtype).removeprefix("torch.")} | known | more)

    return row


UNKNOWN = [each.name for each in fields(Row)]


def _rows_of(case: Case, measures: str, ceilings: Ceilings, allowed: float) -> Callable[..., Row]:
    moved, done = case.bytes.get(measures), case.flops.get(measures)
    rate = ceilings.matmul_flops_per_second.get(str(case.dtype).removeprefix("torch."))
    floor = None
    if moved is not None and done is not None and rate is not None:
        floor = 1000 * max(moved / ceilings.copy_bytes_per_second, done / rate)
    known = {"allowed": allowed, "bytes": moved, "flops": done, "floor_milliseconds": floor, "matched": False}
    return untimed(case.suite, case.name, case.shape, case.dtype, measures, **known)


def with_times(row: Row, call: Call | None, first: list[float], second: list[float], device: torch.device) -> Measured:
    """A row with the times of its first and second turn, and what one call needs besides."""
    row = replace(row, milliseconds=percentiles(first), repeat_milliseconds=percentiles(second), why=None)
    if call is None:
        return Measured(replace(row, why="memory and launches of another process are not counted"), first)
    if device.type == "cuda":
        return Measured(replace(row, peak_memory_bytes=peak_memory(call, device), launches=launches(call)), first)
    return Measured(replace(row, peak_memory_bytes=peak_memory_cpu(call), why="launches are counted on a GPU"), first)


def reason(failure: Exception) -> str:
    """Its kind and the first line of its text."""
    text = str(failure).strip() or "no message"
    return f"{type(failure).__name__}: {text.splitlines()[0][:160]}"
