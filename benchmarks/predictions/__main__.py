"""python -m benchmarks.predictions [--compile | --check]: predicted times, from the figures of the compiled kernels."""

import argparse
import os
import sys

os.environ.pop("TRITON_INTERPRET", None)  # which would keep the kernels from being compiled

from benchmarks.predictions import figures, model


def main(arguments: list[str] | None = None) -> int:
    """Print the predictions; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.predictions", description=model.__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--compile", action="store_true", help="compile the kernels again first and keep their figures")
    what.add_argument(
        "--check", action="store_true", help="only say whether the kept figures are of the present kernels"
    )
    options = parser.parse_args(arguments)
    if options.compile:
        figures.write()
    if why := figures.why_stale():
        print(why, file=sys.stderr)
        return 1
    if not options.check:
        print(model.text(figures.load()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
