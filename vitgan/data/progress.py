"""A progress line for work that may turn out to be long."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_PATIENCE_SECONDS = 1.0


@contextmanager
def progress_line(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the amount just done. The line shows on stderr from the first second on.

    A `total` of 0 means that it is not known.
    """
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    line = Progress(*columns, console=Console(stderr=True), transient=True)
    task = line.add_task(title, total=total or None)
    begin = time.monotonic()
    started = False

    def advance(amount: int) -> None:
        nonlocal started
        line.advance(task, amount)
        if not started and time.monotonic() - begin > _PATIENCE_SECONDS:
            line.start()
            started = True

    try:
        yield advance
    finally:
        if started:
            line.stop()
