"""python -m benchmarks.report [--check]: writes docs/benchmarks.md, charts and the README's section from the results.

--check changes nothing and exits with status 1 where they differ from the result files.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import charts
from benchmarks.charts import Bar
from benchmarks.result_files import FOLDER, ResultError, Row, Run, load_all

ROOT = Path(__file__).parents[1]
PAGE, CHARTS = Path("docs/benchmarks.md"), Path("docs/benchmarks")
BEGIN, END = "<!-- benchmarks: begin (python -m benchmarks.report) -->", "<!-- benchmarks: end -->"
INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results`. `python -m pytest benchmarks/
--benchmark-json=benchmarks/results/NAME.json` measures; `--benchmark-compare=FILE` compares with an earlier file.

Every result is checked against float64 before it is timed: an error above twice that of plain PyTorch in the same
dtype excludes it, unless it is marked approximate. Implementations take turns within one run; a ratio is the median
over rounds of the time divided by ours in the same round. The speed-up is the ratio of the fastest baseline, eager or
compiled, to the faster of ours, eager or compiled. The floor is the time that the least bytes and operations of a row
take at the rates of a large copy and a large matrix product, measured in the same run. In parentheses: the backend.
"""


@dataclass(frozen=True)
class Comparison:
    """The rows of one case in one order of derivative and one dtype."""

    rows: list[Row]

    @property
    def ours(self) -> Row | None:
        return _fastest([row for row in self.rows if row.role == "ours"])

    @property
    def baseline(self) -> Row | None:
        return _fastest([row for row in self.rows if row.role == "baseline"])

    @property
    def case(self) -> str:
        """The group without the suite."""
        return self.rows[0].group.partition(", ")[2]

    @property
    def speedup(self) -> tuple[float, float, float] | None:
        """Of ours, as (first quartile, median, third); None where one side has no time."""
        ours, baseline = self.ours, self.baseline
        if ours is None or baseline is None or ours.relative is None or baseline.relative is None:
            return None
        pairs = zip(baseline.relative, reversed(ours.relative), strict=True)
        low, middle, high = (theirs / own for theirs, own in pairs)
        return low, middle, high

    @property
    def verdict(self) -> str:
        if self.speedup is None:
            return ""
        low, middle, high = self.speedup
        return f"{digits(middle)}×" + (" (within noise)" if low <= 1 <= high else "")


def comparisons(run: Run) -> list[Comparison]:
    """In the run's order."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in run.rows:
        found[row.group].append(row)
    return [Comparison(rows) for rows in found.values()]


def page(runs: Sequence[Run]) -> str:
    """The whole of docs/benchmarks.md."""
    parts = [INTRODUCTION]
    for run in runs:
        found = comparisons(run)
        parts.append(f"## {run.machine['device']}\n\n{_conditions(run)}\n")
        if _bars(found):
            parts.append(f"![speed-ups]({CHARTS.name}/{run.name}.png)\n")
        for suite in dict.fromkeys(each.rows[0].suite for each in found):
            own = [each for each in found if each.rows[0].suite == suite]
            rows = [line for each in own for line in _every_row(each)]
            parts.append(f"### {suite}\n\n{_table(own)}\n\n<details><summary>Every row</summary>\n\n" + "\n".join(rows))
            parts.append("\n</details>\n")
        if run.left_out:
            parts.append("### Without a time\n\n| case | implementation | why |\n|---|---|---|")
            parts += [f"| {each['group']} | {each['name']} | {_cell(each['why'])} |" for each in run.left_out] + [""]
    return "\n".join(parts)


def section(runs: Sequence[Run]) -> str:
    """What README.md says between its markers."""
    parts = [
        f"**{run.machine['device']}**. {_conditions(run)}\n\n{_table(_headlines(run))}\n"
        for run in runs
        if _headlines(run)
    ]
    if any(_bars(_headlines(run)) for run in runs):
        parts.append(f"![speed-ups]({CHARTS}/headlines.png)\n")
    if not any(run.machine["kind"] == "cuda" for run in runs):
        parts.append("Not measured on a GPU.\n")
    return "\n".join([*parts, f"Every row: [{PAGE}]({PAGE})."])


def pictures(runs: Sequence[Run]) -> dict[Path, tuple[str, list[Bar]]]:
    """Title and bars of every chart."""
    found = {CHARTS / f"{run.name}.png": (run.machine["device"], _bars(comparisons(run))) for run in runs}
    bars = [bar for run in runs for bar in _bars(_headlines(run))]
    found[CHARTS / "headlines.png"] = (" and ".join(run.machine["device"] for run in runs), bars)
    return {path: picture for path, picture in found.items() if picture[1]}


def texts(root: Path, runs: Sequence[Run]) -> dict[Path, str]:
    """README.md and the page as they should be. ValueError where README.md has no markers."""
    readme = (root / "README.md").read_text()
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md needs the line {BEGIN} once, and the line {END} once after it")
    before, rest = readme.split(BEGIN)
    return {
        Path("README.md"): f"{before}{BEGIN}\n\n{section(runs)}\n\n{END}{rest.split(END)[1]}",
        PAGE: page(runs),
    }


def differences(root: Path, runs: Sequence[Run]) -> list[str]:
    """Files that do not say what the result files say."""
    expected = pictures(runs)
    wrong = [path for path, text in texts(root, runs).items() if not _says(root / path, text)]
    wrong += [path for path, picture in expected.items() if not charts.is_of(root / path, *picture)]
    found = (path.relative_to(root) for path in sorted((root / CHARTS).glob("*.png")))
    return [*map(str, wrong), *(f"{path}: no result file has it" for path in found if path not in expected)]


def write(root: Path, runs: Sequence[Run]) -> None:
    """Write the page, the README's section and the charts that have changed; others go."""
    expected, changed = pictures(runs), texts(root, runs)
    for path, picture in expected.items():
        if not charts.is_of(root / path, *picture):
            charts.draw(root / path, *picture)
    for path in (root / CHARTS).glob("*.png"):
        if path.relative_to(root) not in expected:
            path.unlink()
    for path, text in changed.items():
        (root / path).write_text(text)


def main(arguments: list[str] | None = None) -> int:
    """Write or check; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; status 1 where a file is out of date")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the result files (%(default)s)")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder of README.md and docs (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        runs = load_all(options.results)
        if not options.check:
            write(options.root, runs)
            return 0
        wrong = differences(options.root, runs)
    except (ResultError, ValueError, OSError, ImportError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 1
    print("\n".join(wrong) or "README.md, the page and the charts say what the result files say")
    if wrong:
        print("out of date: run python -m benchmarks.report", file=sys.stderr)
    return 1 if wrong else 0


def seconds(value: float) -> str:
    """With a unit that fits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if value * factor >= 1:
            return f"{digits(value * factor)} {unit}"
    return f"{digits(value * 1e9)} ns"


def digits(value: float) -> str:
    """Three significant ones, never in scientific notation."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".") if value >= 1e-3 else f"{value:.2g}"


def _says(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text() == text


def _fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row.relative[1] if row.relative else row.seconds[1], default=None)


def _headlines(run: Run) -> list[Comparison]:
    return [each for each in comparisons(run) if each.rows[0].headline]


def _bars(found: Sequence[Comparison]) -> list[Bar]:
    return [
        Bar(each.rows[0].group, each.speedup[1], f"against {each.baseline.name}")
        for each in found
        if each.speedup is not None and each.baseline is not None
    ]


def _conditions(run: Run) -> str:
    shown = [f"{key} {value}" for key, value in run.machine.items() if value and key not in ("device", "kind", "cpu")]
    dirty = " with changes" if run.commit["dirty"] else ""
    return ", ".join([*shown, f"commit {run.commit['id'][:7]}{dirty}", run.date[:10]]) + "."


def _table(found: Sequence[Comparison]) -> str:
    lines = ["| | ours | best baseline | speed-up | of the floor |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(_cells(each))} |" for each in found])


def _cells(found: Comparison) -> list[str]:
    ours, sides = found.ours, (found.ours, found.baseline)
    share = f"{100 * ours.floor / ours.seconds[1]:.0f} %" if ours and ours.floor else ""
    times = [f"{_who(row)}: {seconds(row.seconds[1])}" if row else "" for row in sides]
    return [found.rows[0].group, *times, found.verdict, share]


def _every_row(found: Comparison) -> list[str]:
    lines = [
        f"\n{found.case}\n",
        "| implementation | median | quartiles | ratio to ours | error (allowed) | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in found.rows:
        ratio = "" if row.relative is None else f"{digits(row.relative[1])}"
        error = "" if row.error is None or not row.allowed else f"{row.error:.1e} ({row.allowed:.1e})"
        memory = "" if row.peak_memory is None else f"{row.peak_memory / 2**20:,.1f} MiB"
        spread = f"{seconds(row.seconds[0])} to {seconds(row.seconds[2])}"
        lines.append(f"| {_who(row)} | {seconds(row.seconds[1])} | {spread} | {ratio} | {error} | {memory} |")
    return lines


def _who(row: Row) -> str:
    return f"{row.name} ({row.backend})" if row.backend else row.name


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main())
