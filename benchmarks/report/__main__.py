"""python -m benchmarks.report [--readme | --check]: the result files as a page, and as the README's section.

Without a flag, writes one self-contained HTML page. --readme rewrites the section of README.md and its charts from
the result files; --check changes nothing and exits with status 1 where they disagree, as continuous integration does.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import FOLDER, ResultError, Run, all_runs
from benchmarks.report import readme
from benchmarks.report.page import page

ROOT = Path(__file__).parents[2]


def latest(runs: Sequence[Run]) -> list[Run]:
    """The newest run of each device at each size; `runs` are by device and date."""
    return list({(run.device, run.size): run for run in runs}.values())


def unmeasured(runs: Sequence[Run]) -> list[str]:
    """What no run is of."""
    return [] if any(run.kind == "cuda" for run in runs) else ["any GPU"]


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--readme", action="store_true", help="rewrite the README's section and its charts")
    what.add_argument("--check", action="store_true", help="exit with status 1 where they differ from the result files")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of <device>/<name>.json (%(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "benchmarks.html", help="the page (%(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="where README.md is (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        runs = latest(all_runs(options.results))
        if options.check:
            wrong = readme.differences(options.root, runs, unmeasured(runs))
            print("\n".join(wrong) or "README.md and its charts say what the result files say")
            if wrong:
                print("run: python -m benchmarks.report --readme", file=sys.stderr)
            return 1 if wrong else 0
        if options.readme:
            readme.write(options.root, runs, unmeasured(runs))
            return 0
        if options.out.is_dir():
            raise ValueError(f"--out {options.out} is a folder: give the file that the page is to be, such as "
                             f"{options.out / 'benchmarks.html'}")  # fmt: skip
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(page(runs, unmeasured(runs)))
    except (ResultError, ValueError, OSError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
