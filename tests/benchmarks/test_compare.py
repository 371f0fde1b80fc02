"""What `python -m benchmarks.compare` calls a change, and its exit status."""

from pathlib import Path

import pytest

from benchmarks.compare import changes, main, repeat_noise
from benchmarks.records import Row, Run, Times
from tests.benchmarks.helpers import row, run


def timed(median: float, width: float = 0.01, again: float = 1.0, **more: object) -> Row:
    """A row of so many milliseconds, p20 and p80 a share below and above, and `again` times as many at the repeat."""
    first = Times(median * (1 - width), median, median * (1 + width))
    second = Times(*(again * x for x in (first.p20, first.median, first.p80)))
    return row(milliseconds=first, repeat_milliseconds=second, **more)


def verdicts(before: Row, after: Row) -> list[str]:
    return [change.what for change in changes(run(before), run(after))]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (timed(2.0), timed(2.0), []),
        (timed(2.0), timed(2.5), ["slower"]),
        (timed(2.5), timed(2.0), ["faster"]),
        (timed(2.0, width=0.3), timed(2.5), []),  # the ranges overlap
        (timed(2.0, again=1.25), timed(2.5), []),  # the repeat reaches as far
        (timed(2.0, again=1.15), timed(2.4), ["slower"]),
    ],
)
def test_a_time_changes_beyond_its_ranges(before: Row, after: Row, expected: list[str]) -> None:
    assert verdicts(before, after) == expected


def test_a_time_changes_beyond_what_the_run_repeats_to() -> None:
    """A row that looks steady, in a run whose other rows were twice as slow the second time."""
    noisy = [timed(1.0, again=2.0, case=f"other {i}") for i in range(9)]
    assert [c.what for c in changes(run(timed(2.0)), run(timed(2.5)))] == ["slower"]
    assert changes(run(timed(2.0), *noisy), run(timed(2.5), *noisy)) == []
    assert [c.what for c in changes(run(timed(2.0), *noisy), run(timed(5.0), *noisy))] == ["slower"]


def test_noise_of_a_run() -> None:
    assert repeat_noise(run(row(repeat_milliseconds=None))) == 0
    assert repeat_noise(run(timed(1.0, again=1.1))) == pytest.approx(0.0953, abs=1e-4)


def test_times_that_are_lost_and_gained() -> None:
    absent = row(milliseconds=None, repeat_milliseconds=None, matched=False, why="error 1 of 0.1 allowed")
    assert verdicts(timed(2.0), absent) == ["lost"]
    assert verdicts(absent, timed(2.0)) == ["gained"]
    assert verdicts(absent, absent) == []


def test_a_row_of_ours_that_is_gone_is_lost() -> None:
    ours, slow = timed(2.0, who="ours (cpp)", ours=True), timed(99.0, who="ours (reference)", ours=True)
    peer = timed(3.0, who="peer", ours=False)
    (change,) = changes(run(ours, peer), run(slow, peer))
    assert (change.what, change.after.who, change.counts) == ("lost", "ours (cpp)", True)
    assert changes(run(ours, peer), run(ours)) == []
    assert changes(run(ours, timed(1.0, case="other")), run(ours)) == []  # a case that was not run


@pytest.mark.parametrize(("after", "expected"), [(1001, ["more memory"]), (999, ["less memory"]), (1000, [])])
def test_memory(after: int, expected: list[str]) -> None:
    assert verdicts(row(peak_memory_bytes=1000), row(peak_memory_bytes=after)) == expected


def saved(folder: Path, **runs: Run) -> list[str]:
    for name, each in runs.items():
        each.save(folder / f"{name}.json")
    return [str(folder / f"{name}.json") for name in runs]


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        (timed(2.0), timed(2.5), 1),
        (timed(2.5), timed(2.0), 0),
        (timed(2.0), timed(2.0), 0),
        (timed(2.0, ours=False), timed(2.5, ours=False), 0),
        (timed(2.0), timed(2.0, case="n257"), 2),
    ],
)
def test_exit_status(before: Row, after: Row, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(saved(tmp_path, before=run(before), after=run(after))) == status
    printed = capsys.readouterr()
    if status == 1:
        assert "slower       2 to 2.5 ms (x 1.25)" in printed.out
    if status == 2:
        assert "no row in common" in printed.err


def test_our_losses_come_first_and_ceilings_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = run(timed(2.0, who="peer", ours=False), timed(2.0))
    after = run(timed(9.0, who="peer", ours=False), timed(4.0))
    assert main(saved(tmp_path, before=before, after=after)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" · ")[0].split()[-1] for line in lines[-2:]] == ["vitgan_kernels", "peer"]
    assert lines[2] == "ceilings, after / before: copy x 1.00, float32 product x 1.00"


def test_a_file_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.json").write_text("{}")
    (good,) = saved(tmp_path, good=run(row()))
    assert main([good, str(tmp_path / "bad.json")]) == 2
    assert "bad.json" in capsys.readouterr().err
    assert main([good, str(tmp_path / "absent.json")]) == 2
