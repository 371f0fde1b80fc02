"""What a process lives with: signals that ask it to stop, and streams that nobody reads any more."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, a system that shuts down, a terminal that closes, and warnings of batch systems."""


class LastingStream:
    """A text stream that is given up when it cannot be written: work goes on without a reader or with a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self.stream.flush)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            with suppress(OSError):  # what is still in a buffer goes nowhere, also when Python flushes it at its end
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            if isinstance(sys.stderr, LastingStream) and self is not sys.stderr:
                print(f"standard output is lost ({error.strerror}): going on without it", file=sys.stderr)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Standard output and error last through the block; characters that they cannot show are escaped."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, LastingStream(stream)) if stream else stream for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream:
                stream.flush()
        sys.stdout, sys.stderr = before
