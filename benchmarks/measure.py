"""Check, then time in turns: what pytest-benchmark has no way to do.

The implementations of a case first show that they compute it; only those that match are timed. They take turns, a
round each, so that other work on the machine falls on all alike, and each round's time is divided by that of the
anchor, the first implementation of ours, in the same round.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf, isfinite
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

Call = Callable[[], object]
Role = Literal["ours", "baseline", "other"]

ROUND_SECONDS = {"cpu": 0.01, "cuda": 0.002}  # a round has as many calls as take this long
ROUNDS = (5, 40)  # the fewest and the most


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    Args:
        name, role: "other" is shown and compared with nothing, such as a lower bound that computes less.
        prepare: returns the results to check and the call to time.
        unable: why it cannot take part.
        exact: the results of its own definition, where that is not the case's.
        approximate: its error is told and excludes it from nothing.
        info: more to say of it.
    """

    name: str
    prepare: Callable[[], tuple[Sequence[Tensor], Call]]
    role: Role = "baseline"
    unable: str | None = None
    exact: Callable[[], Sequence[Tensor]] | None = None
    approximate: bool = False
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """What came of an implementation: seconds of a call, one number a round, or the reason why there are none."""

    name: str
    role: Role
    info: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    reason: str | None = None
    failed: bool = False


def measure(
    implementations: Sequence[Implementation],
    exact: Sequence[Tensor],
    allowed: float,
    device: torch.device,
    seconds: float,
    memory: bool = True,
) -> list[Row]:
    """Check all against `exact`, then time those that match, each for about `seconds`; rows in the order given."""
    rows: list[Row] = []
    calls: dict[str, Call] = {}
    for each in implementations:
        row = Row(each.name, each.role, dict(each.info), reason=each.unable)
        rows.append(row)
        if each.unable:
            continue
        try:
            results, call = each.prepare()
            error = largest_error(results, each.exact() if each.exact else exact)
            row.info |= {"error": error if isfinite(error) else None, "allowed": allowed}
            if error <= (inf if each.approximate else allowed):
                calls[each.name] = call
            else:
                row.reason, row.failed = f"error {error:.1e} of the largest value, {allowed:.1e} allowed", True
        except Exception as failure:  # a limit of an implementation is a result; of ours it fails the test
            text = (str(failure).strip() or "no message").splitlines()[0][:160]
            row.reason, row.failed = f"{type(failure).__name__}: {text}", True
    timed = take_turns(calls, device, seconds)
    anchor = next((row.name for row in rows if row.role == "ours" and row.name in calls), None)
    for row in rows:
        if row.name in calls:
            row.seconds = timed[row.name]
            if anchor:
                row.info["relative"] = quartiles([a / b for a, b in zip(row.seconds, timed[anchor], strict=True)])
            if memory:
                row.info["peak_memory"] = peak_memory(calls[row.name], device)
    return rows


def largest_error(results: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The largest error of any result, relative to the largest value of its exact counterpart; NaN if any is.

    Raises ValueError where results and exact ones differ in number or shape: they would broadcast.
    """
    shapes, expected = ([tuple(each.shape) for each in some] for some in (results, exact))
    if shapes != expected:
        raise ValueError(f"results have shapes {shapes}, and not {expected}")
    errors = [
        (result.double() - right).abs().max() / right.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
        for result, right in zip(results, exact, strict=True)
    ]
    return torch.stack(errors).max().item() if errors else 0.0


def quartiles(values: Sequence[float]) -> list[float]:
    """The first, the median and the third."""
    return statistics.quantiles(values, n=4, method="inclusive")


def take_turns(calls: dict[str, Call], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds of a call, one number a round: rounds of each in turn, until each had about `seconds`."""
    pace = {name: min(seconds_of(call, 1, device) for _ in range(2)) for name, call in calls.items()}
    counts = {name: max(1, round(ROUND_SECONDS[device.type] / taken)) for name, taken in pace.items()}
    longest = max((pace[name] * counts[name] for name in calls), default=1.0)
    rounds = min(max(round(seconds / longest), ROUNDS[0]), ROUNDS[1])
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken[name].append(seconds_of(call, counts[name], device))
    return taken


def seconds_of(call: Call, count: int, device: torch.device) -> float:
    """One call among `count` in a row; on CUDA by the device's own events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / count
    began = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - began) / count


def peak_memory(call: Call, device: torch.device) -> int:
    """The most bytes that a call has allocated at a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    # acc_events: PyTorch 2.11 warns without it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
        call()
    events, changes = list(trace.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.typed[1].alloc_size))
    return max(accumulate((size for _, size in sorted(changes, key=itemgetter(0))), initial=0))
