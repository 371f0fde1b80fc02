"""Check, then time in turns: what pytest-benchmark has no way to do.

Only implementations that compute the case are timed. They take turns, a round each, so that other work on the machine
falls on all alike; a round's time is divided by that of the anchor, the first of ours, in the same round.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from math import inf, isfinite
from operator import itemgetter
from typing import Any, Literal

import torch
from torch import Tensor

Call = Callable[[], object]
Tensors = Sequence[Tensor]
Role = Literal["ours", "baseline", "other"]

ROUND_SECONDS = {"cpu": 0.01, "cuda": 0.002}  # of the calls in a round
ROUNDS = (5, 40)  # the fewest and the most
quartiles = partial(statistics.quantiles, n=4, method="inclusive")


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case; `prepare` returns the results to check and the call to time.

    role: "other" is shown and compared with nothing. unable: why it cannot take part. exact: the results of its own
    definition, if it has one. approximate: its error is told and excludes it from nothing. info: more to say of it.
    """

    name: str
    prepare: Callable[[], tuple[Tensors, Call]]
    role: Role = "baseline"
    unable: str | None = None
    exact: Callable[[], Tensors] | None = None
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
    implementations: Sequence[Implementation], exact: Tensors, allowed: float, device: torch.device, seconds: float
) -> list[Row]:
    """Check all against `exact`, then time those that match, each for about `seconds`; rows in the order given."""
    rows, calls = [], {}
    for each in implementations:
        row = Row(each.name, each.role, dict(each.info), reason=each.unable)
        rows.append(row)
        if each.unable:
            continue
        try:
            found, call = each.prepare()
            error = largest_error(found, each.exact() if each.exact else exact)
            row.info |= {"error": error if isfinite(error) else None, "allowed": allowed}
            if error <= (inf if each.approximate else allowed):
                calls[each.name] = call
            else:
                row.reason = f"error {error:.1e} of the largest value, {allowed:.1e} allowed"
        except Exception as failure:  # a limit of an implementation is a result; of ours it fails the test
            row.reason = f"{type(failure).__name__}: {(str(failure).strip() or 'no message').splitlines()[0][:160]}"
        row.failed = row.reason is not None
    timed = take_turns(calls, device, seconds)
    anchor = next((row.name for row in rows if row.role == "ours" and row.name in calls), None)
    for row in (row for row in rows if row.name in calls):
        row.seconds = timed[row.name]
        if anchor:
            row.info["relative"] = quartiles([a / b for a, b in zip(row.seconds, timed[anchor], strict=True)])
        if exact:
            row.info["peak_memory"] = peak_memory(calls[row.name], device)
    return rows


def largest_error(results: Tensors, exact: Tensors) -> float:
    """The largest error of any result, relative to its largest exact value. ValueError where they would broadcast."""
    shapes, expected = ([tuple(each.shape) for each in some] for some in (results, exact))
    if shapes != expected:
        raise ValueError(f"results have shapes {shapes}, and not {expected}")
    pairs, tiny = zip(results, exact, strict=True), torch.finfo(torch.float64).tiny
    errors = [(result.double() - right).abs().max() / right.abs().max().clamp(min=tiny) for result, right in pairs]
    return torch.stack(errors).max().item() if errors else 0.0


def take_turns(calls: dict[str, Call], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Seconds of a call, one number a round: rounds of each in turn, until each had about `seconds`."""
    pace = {name: min(seconds_of(call, 1, device) for _ in range(2)) for name, call in calls.items()}
    counts = {name: max(1, round(ROUND_SECONDS[device.type] / taken)) for name, taken in pace.items()}
    longest = max((pace[name] * counts[name] for name in calls), default=1.0)
    rounds, taken = min(max(round(seconds / longest), ROUNDS[0]), ROUNDS[1]), {name: [] for name in calls}
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
    began = time.perf_counter()
    for _ in range(count):
        call()
    if device.type != "cuda":
        return (time.perf_counter() - began) / count
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / count


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

    options = {"profile_memory": True, "acc_events": True}  # acc_events: PyTorch 2.11 warns without it
    with profile(activities=[ProfilerActivity.CPU], **options) as trace:
        call()
    events, changes = list(trace.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.typed[1].alloc_size))
    return max(accumulate((size for _, size in sorted(changes, key=itemgetter(0))), initial=0))
