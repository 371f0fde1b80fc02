"""The command line."""

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from vitgan.errors import VitganError, ran_out_of_memory
from vitgan.process import lasting_streams

COMMANDS = {
    "train": "train on shapes, CIFAR-10, or a folder or zip of images",
    "sample": "make images with a trained generator: grids, folders, npz, GIF, MP4",
    "eval": "score a trained generator against data: FID and others",
    "project": "find the latent whose image is most like a given one",
    "export": "write a trained generator as ONNX, and as safetensors with a model card",
    "classify": "train an image classifier on folders of classes, and predict with it",
    "doctor": "say what is installed and built here, and check it against float64",
}
LINES = "\n".join(f"  vitgan {name:12}{what}" for name, what in COMMANDS.items())
USAGE = f"""\
usage: vitgan COMMAND ...

Image generation with vision transformers (ViTGAN, arXiv 2107.04589).

{LINES}

Each command explains itself with --help.
"""

REMEDIES = {
    errno.EACCES: "choose another place, or change who may read and write it",
    errno.EPERM: "choose another place, or change who may read and write it",
    errno.EEXIST: "a folder is needed there: choose another place, or move away what is in the way",
    errno.ENOTDIR: "a folder is needed in the path, and a file is in its place",
    errno.EISDIR: "a file is needed there, not a folder",
    errno.ENOENT: "look at the spelling of the path",
    errno.ENOSPC: "make room, or choose another disk",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Expected failures are one line on standard error."""
    try:
        with lasting_streams():
            return _main(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        if arguments is None:  # a second one, while Python ends, would print a traceback
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        return 130


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(version("vitgan"))
        return 0
    if arguments[0] not in COMMANDS:
        print(f"vitgan: no command {arguments[0]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        return _command(arguments[0])(arguments[1:])
    except VitganError as error:
        return _failed(arguments[0], str(error))
    except OSError as error:
        return _failed(arguments[0], _of_the_system(error))
    except Exception as error:  # also what nobody expects
        return _failed(arguments[0], _explained(error))


def _command(name: str) -> Callable[[list[str]], int]:
    """Imported when called: a command does not wait for, nor fail by, what another one needs."""
    with _interrupted_at_once():
        command: Callable[[list[str]], int] = import_module(f"vitgan.commands.{name}").main
    return command


@contextmanager
def _interrupted_at_once() -> Iterator[None]:
    """Ctrl-C ends the process in the block, where nothing is at work yet: the imports of compiled modules lose it."""
    main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _of_the_system(error: OSError) -> str:
    """What the operating system refused, where, and what to do."""
    if error.filename is None or error.errno is None:
        return str(error)
    place = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    what_to_do = REMEDIES.get(error.errno, "choose another place")
    return f"{place}: {(error.strerror or os.strerror(error.errno)).lower()}: {what_to_do}"


def _explained(error: Exception) -> str:
    """What to tell of an error that this package does not raise itself, after a traceback where nobody expects it."""
    from vitgan_kernels.backends import BackendError  # which imports PyTorch, as what failed has done already

    if isinstance(error, BackendError):
        return str(error)
    if ran_out_of_memory(error):
        first_line = str(error).partition("\n")[0]
        return f"the memory ran out ({first_line}): choose smaller sizes, or another --device"
    traceback.print_exception(error)
    return "this is a fault of vitgan, not of what it was given: please report it, with the lines above"


def _failed(command: str, message: str) -> int:
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"vitgan {command}: {message}", markup=False)
    return 1
