"""The clock: contenders in turns, and what one call needs of memory and launches."""

import time
from collections.abc import Callable
from itertools import accumulate
from operator import itemgetter

import torch

Call = Callable[[], object]

ROUND_SECONDS = {"cpu": 0.01, "cuda": 0.002}  # a round has as many calls as take this long
ROUNDS = (5, 40)  # the fewest and the most


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


def peak_memory(call: Call, device: torch.device) -> int:
    """Bytes that a call has allocated at a time, at the most, on CUDA."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory_cpu(call: Call) -> int:
    """What PyTorch's allocator hands out and takes back during a call, added up in its order."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    # acc_events: PyTorch 2.11 warns without it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as trace:
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


def launches(call: Call) -> float:
    """How many kernels a call launches on CUDA, copies among them."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as trace:
        call()
        torch.cuda.synchronize()
    return float(sum(event.device_type == torch.autograd.DeviceType.CUDA for event in trace.events()))
