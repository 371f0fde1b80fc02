"""The one way in which everything here is checked and timed.

The contenders of a case first show that they compute it: each result is held against float64, with the error that
plain PyTorch makes in the same dtype as the measure (at most twice that, plus one rounding). Only those that match are
timed. They take turns, a round each, so that what else the machine does falls on all alike; each call takes the next of
several sets of inputs, together larger than the cache. All is done twice, and the second time tells how far to trust
the first. A pass returns what its forward computes, too: a compiler would leave out what nobody reads.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate, cycle
from math import isfinite
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import CACHE_BYTES
from benchmarks.records import Ceilings, Row, percentiles

Function = Callable[..., Any]
Call = Callable[[], object]
Inputs = tuple[Sequence[Tensor], Sequence[Tensor]]

ROUND_SECONDS = {"cpu": 0.01, "cuda": 0.002}  # a round has as many calls as take this long
ROUNDS = (5, 40)  # the fewest and the most
INPUT_SETS = (2, 16)


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Args:
        who: its name.
        function: takes the case's inputs; returns a tensor or several.
        ours: it is this project's.
        compiled: a mode of torch.compile, for the whole pass as one graph, derivatives included.
        exact: its own definition, where it computes something else on purpose (a lower bound).
        unable: by what is measured, why it cannot take part. "*" stands for everything.
    """

    who: str
    function: Function
    ours: bool = False
    compiled: str | None = None
    exact: Function | None = None
    unable: dict[str, str] = field(default_factory=dict)

    def why_not(self, measures: str) -> str | None:
        """Why it cannot take part, or None."""
        return self.unable.get("*") or self.unable.get(measures)


@dataclass(frozen=True)
class Case:
    """What the contenders compute, in one size.

    Args:
        suite, name, shape, dtype: as in a `Row`.
        inputs: makes, from a seed, the inputs, and the cotangents of the results that a backward starts from.
        exact: the definition, called with the inputs in float64.
        plain: plain PyTorch in the case's dtype, whose error is the measure.
        wanted: positions of the inputs that derivatives are taken in.
        bytes, flops: by what is measured, the least that has to be moved and done.
    """

    suite: str
    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    inputs: Callable[[int], Inputs]
    exact: Function
    plain: Function
    wanted: tuple[int, ...]
    bytes: dict[str, float]
    flops: dict[str, float]


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
    exact = _results(case.exact, case, measures, torch.float64)
    allowed = 2 * largest_error(_results(case.plain, case, measures), exact)
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
            run = _runner(contender, measures, case.wanted)
            right = exact
            if contender.exact:
                right = _results(contender.exact, case, measures, torch.float64)
            error = largest_error(_detached(run(*_prepared(case, measures, 0))), right)
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


def take_turns(calls: dict[str, Call], device: torch.device, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of a call, one number a round: rounds of each in turn, until each had about `seconds`."""
    pace = {who: _seconds_of(call, 1, device) for who, call in calls.items()}  # the first call after a break
    pace = {who: min(pace[who], _seconds_of(call, 1, device)) for who, call in calls.items()}
    counts = {who: max(1, round(ROUND_SECONDS[device.type] / taken)) for who, taken in pace.items()}
    longest = max((pace[who] * counts[who] for who in calls), default=1.0)
    rounds = min(max(round(seconds / longest), ROUNDS[0]), ROUNDS[1])
    taken: dict[str, list[float]] = {who: [] for who in calls}
    for _ in range(rounds):
        for who, call in calls.items():
            taken[who].append(1000 * _seconds_of(call, counts[who], device))
    return taken


def _seconds_of(call: Call, count: int, device: torch.device) -> float:
    """Of one call among `count` in a row; on CUDA by the device's own events."""
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


def one_pass(function: Function, measures: str, wanted: tuple[int, ...]) -> Function:
    """(inputs, cotangents) -> the results of the forward and of what follows it: nothing, a backward, or the backward
    of a penalty on the gradients."""

    def forward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _tuple(function(*inputs))

    def forward_backward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = _tuple(function(*inputs))
        return *_values(out), *torch.autograd.grad(out, [inputs[i] for i in wanted], cotangents)

    def second_order(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out, variables = _tuple(function(*inputs)), [inputs[i] for i in wanted]
        gradients = torch.autograd.grad(out, variables, cotangents, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        return *_values(out), *torch.autograd.grad(penalty, variables)

    passes: dict[str, Function] = {
        "forward": forward,
        "forward_backward": forward_backward,
        "second_order": second_order,
    }
    return passes[measures]


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _values(results: tuple[Tensor, ...]) -> list[Tensor]:
    """Without their graph, which is used up: torch.compile would not let it out."""
    return [result.detach() for result in results]


def _runner(contender: Contender, measures: str, wanted: tuple[int, ...]) -> Function:
    run = one_pass(contender.function, measures, wanted)
    if contender.compiled is None:
        return run
    torch._dynamo.reset()  # a limit on versions of one function must not end in an eager run
    torch._dynamo.config.trace_autograd_ops = True
    compiled: Function = torch.compile(run, fullgraph=True, dynamic=False, mode=contender.compiled)
    return compiled


def _prepared(case: Case, measures: str, seed: int, dtype: torch.dtype | None = None) -> Inputs:
    """Inputs of their own, of which the wanted ones are leaves that require gradients, and cotangents."""
    inputs, cotangents = case.inputs(seed)
    wanted = case.wanted if measures != "forward" else ()
    return (
        [x.detach().to(dtype or x.dtype, copy=True).requires_grad_(i in wanted) for i, x in enumerate(inputs)],
        [x.to(dtype or x.dtype) for x in cotangents],
    )


def _results(function: Function, case: Case, measures: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    return _detached(one_pass(function, measures, case.wanted)(*_prepared(case, measures, 0, dtype)))


def _detached(results: Sequence[Tensor]) -> list[Tensor]:
    """Copies: compiled code may write its next results to the same memory."""
    return [result.detach().clone() for result in results]


def _rotating(run: Function, case: Case, measures: str, device: torch.device) -> Call:
    first = _prepared(case, measures, 0)
    size = sum(x.numel() * x.element_size() for part in first for x in part)
    count = min(max(CACHE_BYTES[device.type] // size + 1, INPUT_SETS[0]), INPUT_SETS[1])
    sets = [first, *(_prepared(case, measures, seed) for seed in range(1, count))]
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
        return Measured(replace(row, peak_memory_bytes=_peak_memory(call, device), launches=_launches(call)), first)
    return Measured(replace(row, peak_memory_bytes=_peak_memory_cpu(call), why="launches are counted on a GPU"), first)


def reason(failure: Exception) -> str:
    """Its kind and the first line of its text."""
    text = str(failure).strip() or "no message"
    return f"{type(failure).__name__}: {text.splitlines()[0][:160]}"


def _peak_memory(call: Call, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_memory_cpu(call: Call) -> int:
    """What PyTorch's allocator hands out and takes back during a call, added up in its order."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    assert trace.profiler is not None
    assert trace.profiler.kineto_results is not None
    events, changes = list(trace.profiler.kineto_results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events += event.children
        if event.tag == _EventType.Allocation:
            changes.append((event.start_time_ns, event.typed[1].alloc_size))
    sizes = [size for _, size in sorted(changes, key=itemgetter(0))]
    return max(accumulate(sizes, initial=0))


def _launches(call: Call) -> float:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as trace:
        call()
        torch.cuda.synchronize()
    return float(sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events()))
