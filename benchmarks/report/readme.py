"""What the README says of speed: made from the committed result files, never by hand."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import Run
from benchmarks.report import charts, svg
from benchmarks.report.tables import Comparison, main_cases, median, share_of_floor
from benchmarks.report.units import milliseconds, percent

BEGIN = "<!-- benchmarks: begin (python -m benchmarks.report --readme) -->"
END = "<!-- benchmarks: end -->"
CHARTS = Path("docs/benchmarks")


def section(runs: Sequence[Run], unmeasured: Sequence[str]) -> str:
    """The text between the markers, for the latest run of each device."""
    parts = [_device(run) for run in runs]
    if unmeasured:
        parts.append(f"Not measured: {', '.join(unmeasured)}.")
    return "\n\n".join(parts)


def drawings(runs: Sequence[Run]) -> dict[Path, str]:
    """The charts that the section shows, by path."""
    found = {}
    for run in runs:
        bars = charts.all_speedups(run)
        if bars:
            found[_path(run, "speedups")] = svg.standalone(bars, min(2, len(bars)))
        lines = charts.all_scalings(run)
        if lines:
            found[_path(run, "scaling")] = svg.standalone(lines, min(2, len(lines)))
    return found


def written_into(readme: str, text: str) -> str:
    """The README with the section replaced. ValueError where it has no markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md needs the line {BEGIN} once, and the line {END} once after it")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def differences(root: Path, runs: Sequence[Run], unmeasured: Sequence[str]) -> list[str]:
    """What the repository says of speed and its result files do not, or the other way round."""
    wrong = []
    readme = (root / "README.md").read_text()
    if written_into(readme, section(runs, unmeasured)) != readme:
        wrong.append("README.md: the section on benchmarks does not say what the result files say")
    expected = drawings(runs)
    for path, drawing in expected.items():
        if not (root / path).is_file() or (root / path).read_text() != drawing:
            wrong.append(f"{path}: not the chart of the result files")
    folder = root / CHARTS
    wrong += [f"{path.relative_to(root)}: no result file has it" for path in sorted(folder.glob("*.svg"))
              if path.relative_to(root) not in expected]  # fmt: skip
    return wrong


def write(root: Path, runs: Sequence[Run], unmeasured: Sequence[str]) -> None:
    """Put the section into README.md and the charts beside it; charts that nothing has any more go."""
    readme = root / "README.md"
    readme.write_text(written_into(readme.read_text(), section(runs, unmeasured)))
    expected = drawings(runs)
    for path in (root / CHARTS).glob("*.svg"):
        if path.relative_to(root) not in expected:
            path.unlink()
    for path, drawing in expected.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(drawing)


def _device(run: Run) -> str:
    software = [f"torch {run.torch}"]
    software += [f"{name} {version}" for name, version in (("triton", run.triton), ("CUDA", run.cuda)) if version]
    software += [f"driver {run.driver}"] if run.driver else []
    dirty = " with changes" if run.dirty else ""
    text = [
        f"**{run.device}** ({run.threads} thread{'' if run.threads == 1 else 's'}, {', '.join(software)}, "
        f"commit {run.commit[:7]}{dirty}, {run.date[:10]}, {run.size} sizes):",
        "",
        "| | ours | best peer that matched | speed-up | of the floor |",
        "|---|---|---|---|---|",
    ]
    text += [_line(comparison) for comparison in main_cases(run)]
    for path in drawings([run]):
        text += ["", f"![{path.stem.split('-')[0]}, {run.device}]({path.as_posix()})"]
    return "\n".join(text)


def _line(comparison: Comparison) -> str:
    ours, peer = comparison.ours, comparison.peer
    assert ours is not None
    share = share_of_floor(ours)
    cells = [
        f"{comparison.first.suite}, {comparison.name}",
        f"{ours.who}: {milliseconds(median(ours) or 0)}",
        "none" if peer is None else f"{peer.who}: {milliseconds(median(peer) or 0)}",
        comparison.verdict,
        "" if share is None else percent(share),
    ]
    return f"| {' | '.join(cells)} |"


def _path(run: Run, what: str) -> Path:
    return CHARTS / f"{what}-{run.folder}.svg"
