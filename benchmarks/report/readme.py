"""What the README says of speed: made from the committed result files, never by hand."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.records import Run
from benchmarks.report import charts, png, svg
from benchmarks.report.svg import Drawing
from benchmarks.report.tables import Comparison, main_cases, median, share_of_floor
from benchmarks.report.units import milliseconds, percent

BEGIN = "<!-- benchmarks: begin (python -m benchmarks.report --readme) -->"
END = "<!-- benchmarks: end -->"
CHARTS = Path("docs/benchmarks")


def section(runs: Sequence[Run], unmeasured: Sequence[str]) -> str:
    """The text between the markers, for the latest run of each device at each size."""
    parts = [_device(run) for run in runs]
    if unmeasured:
        parts.append(f"Not measured: {', '.join(unmeasured)}.")
    return "\n\n".join(parts)


def drawings(runs: Sequence[Run]) -> dict[Path, str]:
    """The charts that the section shows, by path, as SVG: each in every theme."""
    return {
        _path(run, what, theme): svg.standalone(found, _columns(found), theme)
        for run in runs
        for what, found in _charts(run).items()
        for theme in svg.THEMES
    }


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
        if not png.is_of(root / path, drawing):
            wrong.append(f"{path}: not the chart of the result files")
    folder = root / CHARTS
    wrong += [f"{path.relative_to(root)}: no result file has it" for path in sorted(folder.glob("*.png"))
              if path.relative_to(root) not in expected]  # fmt: skip
    return wrong


def write(root: Path, runs: Sequence[Run], unmeasured: Sequence[str]) -> None:
    """Put the section into README.md and the charts beside it; charts that nothing has any more go.

    ValueError where a chart has changed and cannot be drawn here; then nothing has changed.
    """
    readme = root / "README.md"
    text = written_into(readme.read_text(), section(runs, unmeasured))
    expected = drawings(runs)
    for path, drawing in expected.items():
        if not png.is_of(root / path, drawing):
            png.write(root / path, drawing)
    for path in (root / CHARTS).glob("*.png"):
        if path.relative_to(root) not in expected:
            path.unlink()
    readme.write_text(text)


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
    for what, found in _charts(run).items():
        alt, width = f"{what}, {run.device}, {run.size} sizes", svg.standalone_width(_columns(found))
        light, dark = (_path(run, what, theme).as_posix() for theme in ("light", "dark"))
        text += [
            "",
            "<picture>",
            f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">',
            f'  <img alt="{alt}" src="{light}" width="{width}">',
            "</picture>",
        ]
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


def _charts(run: Run) -> dict[str, list[Drawing]]:
    found = {"speed-ups": charts.all_speedups(run), "scaling": charts.all_scalings(run)}
    return {what: some for what, some in found.items() if some}


def _columns(drawings: Sequence[Drawing]) -> int:
    return min(2, len(drawings))


def _path(run: Run, what: str, theme: str) -> Path:
    return CHARTS / f"{what}-{run.folder}-{run.size}-{theme}.png"
