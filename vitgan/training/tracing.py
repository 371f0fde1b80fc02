"""Where the time of a step goes: a trace of a few steps, and a table of it."""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, schedule

TRACE = "profile.json"
WAIT, WARM_UP, STEPS = 2, 1, 3
"""Steps left out (they allocate and, if asked for, compile), steps to warm the tracer up, and steps traced."""
PREFIX = "vitgan: "


class StepTracer:
    """Traces STEPS steps of a run, after the first WAIT + WARM_UP, into RUN/profile.json.

    Tracing slows these few steps down; shares of the time are what to read from it.
    """

    def __init__(self, run: Path, device: torch.device) -> None:
        self.run = run
        self.on_cuda = device.type == "cuda"
        self.steps = 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_cuda
        self.profiler = profile(
            activities=activities,
            schedule=schedule(wait=WAIT, warmup=WARM_UP, active=STEPS, repeat=1),
            acc_events=True,  # there is one cycle; PyTorch 2.11 warns of those before the last
        )
        self.profiler.start()

    def step(self) -> str | None:
        """Call after every step; after the last one that is traced, a table of where its time went."""
        if self.steps == WAIT + WARM_UP + STEPS:
            return None
        self.steps += 1
        self.profiler.step()
        if self.steps < WAIT + WARM_UP + STEPS:
            return None
        self.profiler.stop()
        self.profiler.export_chrome_trace(str(self.run / TRACE))
        return self._report()

    def end(self) -> str | None:
        """Call when the run ends, however it ends; what to do where it was too short."""
        if self.steps == WAIT + WARM_UP + STEPS:
            return None
        self.profiler.stop()
        return (
            f"no profile: the run ended after {self.steps} steps, and the steps traced are those from "
            f"{WAIT + WARM_UP + 1} to {WAIT + WARM_UP + STEPS}: profile a longer run"
        )

    def _report(self) -> str:
        events = self.profiler.key_averages()

        def total(event: object, own: bool) -> float:
            name = f"{'self_' if own else ''}{'device' if self.on_cuda else 'cpu'}_time_total"
            return float(getattr(event, name)) / 1000 / STEPS

        ours = {e.key.removeprefix(PREFIX): total(e, own=False) for e in events if e.key.startswith(PREFIX)}
        operators = [(e.key, total(e, own=True)) for e in events if not e.key.startswith((PREFIX, "ProfilerStep"))]
        table = Table(
            "part",
            "ms a step",
            title=f"{STEPS} steps, {'device' if self.on_cuda else 'CPU'} time",
            caption="backward and optimiser are parts of discriminator and generator",
        )
        for name, time in sorted(ours.items(), key=lambda item: -item[1]):
            table.add_row(name, f"{time:.2f}")
        table.add_section()
        for name, time in sorted(operators, key=lambda item: -item[1])[:10]:
            table.add_row(name, f"{time:.2f}")
        console = Console(width=100)
        with console.capture() as capture:
            console.print(table)
        return f"{capture.get()}trace: {self.run / TRACE} (open it in chrome://tracing or ui.perfetto.dev)"
