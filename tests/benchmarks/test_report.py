"""The report: who is compared with whom, and that README, page and charts cannot say anything else."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import charts, report
from benchmarks.charts import Bar
from benchmarks.report import BEGIN, END, Comparison, comparisons, digits, main, seconds
from benchmarks.result_files import load, write
from tests.benchmarks.helpers import output, row

ROWS = [
    row("vitgan_kernels", 1, "ours", backend="cpp"),
    row("vitgan_kernels, compiled", 0.8, "ours"),
    row("vitgan_kernels, reference", 0.1, "other"),
    row("slow", 8),
    row("fast", 2),
]


@pytest.fixture
def repository(tmp_path: Path) -> list[str]:
    """The arguments for a repository with a result file and a README that has an empty section."""
    write(tmp_path / "results" / "cpu.json", output(*ROWS))
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"Before\n\n{BEGIN}\n{END}\n\nAfter\n")
    return ["--root", str(tmp_path), "--results", str(tmp_path / "results")]


def compared(tmp_path: Path, *rows: object) -> list[Comparison]:
    write(tmp_path / "run.json", output(*rows))  # type: ignore[arg-type]
    return comparisons(load(tmp_path / "run.json"))


def test_a_speedup_is_of_the_faster_of_ours_against_the_fastest_baseline(tmp_path: Path) -> None:
    (found,) = compared(tmp_path, *ROWS)
    assert found.ours is not None
    assert found.baseline is not None
    assert (found.ours.name, found.baseline.name) == ("vitgan_kernels, compiled", "fast")
    assert found.speedup == pytest.approx((1.9 / 0.84, 2.5, 2.1 / 0.76))
    assert found.verdict == "2.50×"


def test_a_ratio_within_its_quartiles_is_noise(tmp_path: Path) -> None:
    (near,) = compared(tmp_path, row("vitgan_kernels", 1, "ours"), row("a", 1.04))
    assert near.verdict == "1.04× (within noise)"


def test_other_cases_are_not_compared(tmp_path: Path) -> None:
    found = compared(tmp_path, row("vitgan_kernels", 1, "ours"), row("a", 2, group="l2_attention, other"))
    assert [each.verdict for each in found] == ["", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (seconds(1.234), "1.23 s"),
        (seconds(0.01234), "12.3 ms"),
        (seconds(1.2e-5), "12.0 µs"),
        (digits(1234.5), "1,234"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


def test_everything_is_written_and_then_agrees(repository: list[str], tmp_path: Path) -> None:
    assert main(["--check", *repository]) == 1
    assert main(repository) == 0
    assert main(["--check", *repository]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before\n\n")
    assert text.endswith("\n\nAfter\n")
    assert "torch 2.13.0, commit 0000000, 2026-01-02." in text
    line = (
        "| l2_attention, (8, 65), float32, forward | vitgan_kernels, compiled: 800 µs | fast: 2.00 ms | 2.50× | 62 % |"
    )
    assert line in text
    assert "Not measured on a GPU." in text
    page = (tmp_path / report.PAGE).read_text()
    assert line in page
    assert "| vitgan_kernels (cpp) | 1.00 ms | 950 µs to 1.05 ms | 1.00 | 1.0e-07 (5.0e-07) | 1.0 MiB |" in page
    assert "| l2_attention | broken | no \\| such &lt;kernel> |" in page
    assert sorted(path.name for path in (tmp_path / report.CHARTS).iterdir()) == ["cpu.png", "headlines.png"]


@pytest.mark.parametrize("path", ["README.md", "docs/benchmarks.md"])
def test_a_number_changed_by_hand_is_found(path: str, repository: list[str], tmp_path: Path) -> None:
    main(repository)
    (tmp_path / path).write_text((tmp_path / path).read_text().replace("2.50×", "4.00×"))
    assert main(["--check", *repository]) == 1


def test_an_old_chart_or_a_new_result_is_found(repository: list[str], tmp_path: Path) -> None:
    main(repository)
    left = tmp_path / report.CHARTS / "left-over.png"
    left.write_text("")
    assert main(["--check", *repository]) == 1
    main(repository)
    assert not left.exists()
    write(tmp_path / "results" / "cpu.json", output(*ROWS[:-1]))
    runs = report.load_all(tmp_path / "results")
    assert len(report.differences(tmp_path, runs)) == 4, "two texts and two charts"


def test_charts_are_checked_without_matplotlib(
    repository: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "matplotlib", None)
        assert main(repository) == 1
        assert "pip install -e '.[charts]'" in capsys.readouterr().err
    assert main(repository) == 0
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["--check", *repository]) == 0
    assert main(repository) == 0, "nothing has to be drawn"


def test_a_chart_shows_faster_and_slower(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "chart.png"
    bars = [Bar("one", 2.0, "eager"), Bar("two", 0.5, "SDPA")]
    charts.draw(path, "title", bars)
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}
    for shown in (charts.OURS, charts.BASELINE):
        assert tuple(bytes.fromhex(shown[1:])) in colours
    assert charts.is_of(path, "title", bars)
    assert not charts.is_of(path, "title", bars[:1])
    assert not charts.is_of(tmp_path / "none.png", "title", bars)


def test_a_readme_without_markers_is_an_error(
    repository: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("nothing")
    assert main(["--check", *repository]) == 1
    assert "benchmarks: begin" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["--check"]])
@pytest.mark.parametrize(("folder", "words"), [("none", "is no folder"), ("docs", "has no result file")])
def test_no_results_are_an_error(
    command: list[str],
    folder: str,
    words: str,
    repository: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (tmp_path / "README.md").read_text()
    assert main([*command, *repository, "--results", str(tmp_path / folder)]) == 1
    assert words in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before
