"""Progress of long work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """Progress in images, with rate, time left and losses.

    Args:
        total: images of the whole run.
        done: images of it that are done already.
        console: where to write.
    """

    def __init__(self, total: int, done: int, console: Console) -> None:
        self.total = total
        self.console = console
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}", markup=False))
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("starting", total=total, completed=done)

    def __enter__(self) -> "TrainingProgress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, images: int) -> None:
        """Move the bar to the images done."""
        self.bar.update(self.task, completed=images)

    def update(self, images: int, *, rate: float, left: float, scalars: dict[str, float]) -> None:
        """Show the images done, the rate in images a second, the seconds left, and the losses."""
        losses = "  ".join(f"{name} {value:.3f}" for name, value in scalars.items() if name.endswith("_loss"))
        eta = timedelta(seconds=round(left))
        text = f"{images:,} of {self.total:,} images  {rate:.0f} images/s  {eta} left  {losses}"
        self.bar.update(self.task, completed=images, description=text)
        if self.bar.disable:
            self.console.print(text, soft_wrap=True, markup=False)

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.console.print(text, soft_wrap=True, markup=False)


_PATIENCE_SECONDS = 1.0


@contextmanager
def progress_line(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the amount just done. The line shows on stderr from the first second on.

    A `total` of 0 means that it is not known.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    line = Progress(*columns, console=Console(stderr=True), transient=True)
    task = line.add_task(title, total=total or None)
    patience = threading.Timer(_PATIENCE_SECONDS, line.start)
    patience.start()
    try:
        yield lambda amount: line.advance(task, amount)
    finally:
        patience.cancel()
        patience.join()
        if line.live.is_started:
            line.stop()
