"""The report: who is compared with whom, what is drawn, and that the README cannot say anything else."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.records import Row, Times
from benchmarks.report import charts, png, readme, svg, units
from benchmarks.report.__main__ import latest, main, unmeasured
from benchmarks.report.page import page
from benchmarks.report.tables import comparisons, main_cases, scalings
from tests.benchmarks import helpers
from tests.benchmarks.helpers import run


def row(who: str, time: float | None, *, tokens: int = 65, ours: bool = False, matched: bool = True) -> Row:
    """A row of that time, 5 % slower when measured again."""
    return helpers.row(
        case=f"(2, {tokens})",
        shape={"batch": 2, "tokens": tokens},
        who=who,
        ours=ours,
        matched=matched,
        milliseconds=None if time is None else Times(time * 0.9, time, time * 1.1),
        repeat_milliseconds=None if time is None else Times(time, time * 1.05, time * 1.1),
        floor_milliseconds=0.5 * tokens / 65,
        why="it is <unable>" if time is None else None,
    )


GROWING = run(
    *(row(who, time * n, tokens=n, ours=who == "ours") for n in (16, 65, 256) for who, time in (("ours", 1), ("a", 3)))
)


def test_a_speedup_is_against_the_fastest_peer_that_matched() -> None:
    rows = [
        row("ours, slow", 3, ours=True),
        row("ours", 2, ours=True),
        row("a", 8),
        row("b", 5),
        row("c", None),
        row("less (a floor)", 1),
    ]
    (comparison,) = comparisons(run(*rows, row("wrong", None, matched=False)))
    assert comparison.ours is not None
    assert comparison.peer is not None
    assert (comparison.ours.who, comparison.peer.who, comparison.speedup) == ("ours", "b", 2.5)
    assert comparison.verdict == "2.50×"


def test_other_sizes_dtypes_and_measures_are_not_compared() -> None:
    ours, peer = row("ours", 1, ours=True), row("a", 2)
    others = [replace(peer, dtype="bfloat16"), replace(peer, measures="step"), row("a", 2, tokens=17)]
    assert all(comparison.speedup is None for comparison in comparisons(run(ours, *others)))


def test_what_has_no_peers_is_in_no_chart_of_speedups() -> None:
    alone = [row("ours", 1, ours=True, tokens=17), row("less (a floor)", 1, tokens=17)]
    (chart,) = charts.all_speedups(run(*alone, row("ours", 1, ours=True), row("a", 2)))
    assert any("(2, 65)" in mark for mark in chart.marks)
    assert not any("(2, 17)" in mark for mark in chart.marks)


def test_a_ratio_within_the_spread_says_so() -> None:
    (near,) = comparisons(run(row("ours", 1, ours=True), row("a", 1.04)))
    assert near.verdict == "1.04× (within noise)"


def test_main_case_has_the_most_contenders() -> None:
    rows = [row("ours", 1, ours=True, tokens=17), row("ours", 1, ours=True), row("a", 1), row("a", None, tokens=17)]
    assert [comparison.first.case for comparison in main_cases(run(*rows))] == ["(2, 65)"]
    assert len(main_cases(run(*(replace(one, suite="training") for one in rows)))) == 2


def test_scaling_takes_three_sizes() -> None:
    (scaling,) = scalings(GROWING)
    assert scaling.axis == "tokens"
    assert scaling.series("time") == {"ours": [(16, 16), (65, 65), (256, 256)], "a": [(16, 48), (65, 195), (256, 768)]}
    assert [size for size, _ in scaling.floor()] == [16, 65, 256]
    assert scalings(run(*GROWING.rows[:4])) == []
    assert scalings(run(*(replace(one, suite="training") for one in GROWING.rows))) == []


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("high", [1.5, 3, 17, 1e3, 1e6, 1e12])
def test_ticks_lie_on_the_axis(high: float, binary: bool) -> None:
    axis = svg.LogAxis(1.0, high, 0.0, 100.0)
    ticks = axis.ticks(binary=binary)
    assert 1 <= len(ticks) <= 6
    assert all(0 <= axis.at(tick) <= 100 + 1e-9 for tick in ticks)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.milliseconds(1234), "1.23 s"),
        (units.milliseconds(12.34), "12.3 ms"),
        (units.milliseconds(0.0123), "12.3 µs"),
        (units.size(1536), "1.50 KiB"),
        (units.rate(4.8e12, "B/s"), "4.80 TB/s"),
        (units.percent(0.0456), "4.56 %"),
        (units.percent(0.456), "46 %"),
        (units.tick(1025), "1025"),
        (units.tick(2e6), "2M"),
        (units.short("10.0 ms"), "10 ms"),
    ],
)
def test_numbers_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected


def test_the_page_stands_alone_and_is_well_formed() -> None:
    rows = [*GROWING.rows, row("<unable>", None)]
    text = page([run(*rows)], ["NVIDIA H200"])
    assert "<strong>Not measured:</strong> NVIDIA H200" in text
    assert "it is &lt;unable&gt;" in text
    assert "&lt;unable&gt;" in text
    assert not re.search(r"<script|<link|@import|url\(|src=|href=|http", text)
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag != "meta":
                open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: object) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(text)
    assert open_tags == []


def test_charts_are_well_formed_and_the_same_every_time() -> None:
    for drawings in (charts.all_speedups(GROWING), charts.all_scalings(GROWING), charts.all_rooflines(GROWING)):
        for theme, other in (("light", "dark"), ("dark", "light")):
            text = svg.standalone(drawings, 2, theme)
            ElementTree.fromstring(text)
            assert "nan" not in text
            assert "var(" not in text, "what draws files knows no variables"
            assert svg.THEMES[theme]["s0"] in text
            assert text == svg.standalone(drawings, 2, theme) != svg.standalone(drawings, 2, other)
    assert len(charts.all_scalings(GROWING)) == 2


def test_more_contenders_than_colours_are_told_apart() -> None:
    shown = []
    for series in range(2 * svg.SERIES - 1):
        drawing = svg.Drawing()
        drawing.dot(0, 0, series)
        shown += drawing.marks
    assert len(set(shown)) == len(shown)
    assert [svg.hue(series) for series in range(len(shown))].count(0) == 1


def test_the_newest_run_of_a_device_at_a_size_counts() -> None:
    old, new, paper = run(date="2026-01-01"), run(date="2026-01-02"), run(date="2025-01-01", size="paper")
    other = run(device="NVIDIA H200", kind="cuda")
    assert latest([other, paper, old, new]) == [other, paper, new]
    assert unmeasured([new, other]) == []
    assert unmeasured([new]) == ["any GPU"]


@pytest.fixture
def repository(tmp_path: Path) -> list[str]:
    """The arguments for a repository with a result file and a README that has an empty section."""
    GROWING.save(tmp_path / "results" / GROWING.folder / "run.json")
    (tmp_path / "README.md").write_text(f"Before\n\n{readme.BEGIN}\n{readme.END}\n\nAfter\n")
    return ["--root", str(tmp_path), "--results", str(tmp_path / "results"), "--out", str(tmp_path / "page.html")]


def test_the_readme_is_written_and_then_agrees(repository: list[str], tmp_path: Path) -> None:
    assert main(["--check", *repository]) == 1
    assert main(["--readme", *repository]) == 0
    assert main(["--check", *repository]) == 0
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Before\n\n")
    assert text.endswith("\n\nAfter\n")
    assert "torch 2.13.0, commit 0000000, 2026-01-02" in text
    assert "| l2_attention, (2, 16), forward, float32 | ours: 16.0 ms | a: 48.0 ms | 3.00× | 0.769 % |" in text
    shown = re.findall(r'(?:src|srcset)="(.*?)"', text)
    assert sorted(tmp_path / path for path in shown) == sorted((tmp_path / readme.CHARTS).iterdir())
    assert len(shown) == 4, "speed-ups and scaling, light and dark"
    assert main(repository) == 0
    assert "Every row" in (tmp_path / "page.html").read_text()


def test_a_number_changed_by_hand_is_found(repository: list[str], tmp_path: Path) -> None:
    main(["--readme", *repository])
    path = tmp_path / "README.md"
    path.write_text(path.read_text().replace("3.00×", "4.00×"))
    assert main(["--check", *repository]) == 1


def test_an_old_chart_or_a_new_result_is_found(repository: list[str], tmp_path: Path) -> None:
    main(["--readme", *repository])
    left = tmp_path / readme.CHARTS / "left-over.png"
    left.write_text("")
    assert main(["--check", *repository]) == 1
    main(["--readme", *repository])
    assert not left.exists()
    slower = [replace(one, milliseconds=Times(9, 9, 9)) for one in GROWING.rows]
    next_run = replace(GROWING, date="2026-02-01T00:00:00+00:00", rows=slower)
    next_run.save(tmp_path / "results" / GROWING.folder / "next.json")
    found = readme.differences(tmp_path, [next_run], [])
    assert len(found) == 5, "the text and four charts"


def test_a_chart_is_drawn_at_twice_its_size_with_its_text(tmp_path: Path) -> None:
    drawing = svg.Drawing(height=40)
    drawing.text(0, 20, "words", kind="title")
    path = tmp_path / "folder" / "chart.png"
    png.write(path, svg.standalone([drawing], 1, "light"))
    with Image.open(path) as image:
        assert image.size == (2 * svg.standalone_width(1), 2 * (40 + 2 * svg.GAP))
        inside = (2 * svg.GAP, 2 * svg.GAP, image.width - 2 * svg.GAP, image.height - 2 * svg.GAP)
        shades = image.convert("RGBA").convert("L").crop(inside)
    assert min(shades.tobytes()) < 60, "there is dark text on the light card"
    assert png.is_of(path, svg.standalone([drawing], 1, "light"))
    assert not png.is_of(path, svg.standalone([drawing], 1, "dark"))
    assert not png.is_of(tmp_path / "none.png", "")


def test_charts_are_checked_where_none_can_be_drawn(
    repository: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tmp_path / "README.md").read_text()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "resvg_py", None)
        assert main(["--readme", *repository]) == 1
        assert "pip install -e '.[charts]'" in capsys.readouterr().err
        assert (tmp_path / "README.md").read_text() == before
    assert main(["--readme", *repository]) == 0
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["--check", *repository]) == 0
    assert main(["--readme", *repository]) == 0, "nothing has to be drawn"


def test_a_readme_without_markers_is_an_error(
    repository: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("nothing")
    assert main(["--check", *repository]) == 1
    assert "benchmarks: begin" in capsys.readouterr().err


def test_a_folder_cannot_be_the_page(repository: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*repository, "--out", str(tmp_path)]) == 1
    assert f"--out {tmp_path} is a folder: give the file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["--check"], ["--readme"]])
@pytest.mark.parametrize(("folder", "words"), [("none", "is no folder"), ("empty", "has no file")])
def test_no_results_are_an_error(
    command: list[str],
    folder: str,
    words: str,
    repository: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    before = (tmp_path / "README.md").read_text()
    assert main([*command, *repository, "--results", str(tmp_path / folder)]) == 1
    assert words in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == before
