"""The command line."""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version

from rich.console import Console

from vitgan.errors import VitganError, ran_out_of_memory

COMMANDS = {
    "train": "train on shapes, CIFAR-10, or a folder or zip of images",
    "sample": "make images with a trained generator: grids, folders, npz, GIF, MP4",
    "eval": "score a trained generator against data: FID and others",
    "project": "find the latent whose image is most like a given one",
    "export": "write a trained generator as ONNX, and as safetensors with a model card",
    "classify": "train an image classifier on folders of classes, and predict with it",
    "import-seed": "read a checkpoint of ViTGAN-pytorch, without running what is in it",
    "doctor": "say what is installed and built here, and check it against float64",
}
LINES = "\n".join(f"  vitgan {name:12}{what}" for name, what in COMMANDS.items())
USAGE = f"""\
usage: vitgan COMMAND ...

Image generation with vision transformers (ViTGAN, arXiv 2107.04589).

{LINES}

Each command explains itself with --help.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Expected failures are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(version("vitgan"))
        return 0
    if arguments[0] not in COMMANDS:
        print(f"vitgan: no command {arguments[0]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        # Imported when called: a command does not wait for, nor fail by, what another one needs.
        status: int = import_module(f"vitgan.commands.{arguments[0].replace('-', '_')}").main(arguments[1:])
    except KeyboardInterrupt:
        return 130
    except (VitganError, ValueError, OSError) as error:
        return _failed(arguments[0], str(error))
    except (RuntimeError, MemoryError) as error:
        if not ran_out_of_memory(error):
            raise
        first_line = str(error).partition("\n")[0]
        return _failed(arguments[0], f"the memory ran out ({first_line}): choose smaller sizes, or another --device")
    return status


def _failed(command: str, message: str) -> int:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"vitgan {command}: {message}", markup=False)
    return 1
