"""The result file: what goes in comes out, and what is not a result does not go in."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.machine import has_changes
from benchmarks.records import ResultError, Run, Times, all_runs, percentiles
from tests.benchmarks.helpers import row, run


def test_a_run_comes_back_as_it_was(tmp_path: Path) -> None:
    untimed = row(who="peer", ours=False, matched=False, milliseconds=None, repeat_milliseconds=None, why="no compiler")
    before = run(row(), untimed)
    path = tmp_path / before.folder / "first.json"
    before.save(path)
    assert Run.load(path) == before
    assert list(path.parent.iterdir()) == [path]  # nothing half-written beside it


def test_all_runs_by_device_and_date(tmp_path: Path) -> None:
    for device, date in (("B", "2026-01-01"), ("A", "2026-01-03"), ("A", "2026-01-02")):
        each = run(device=device, date=date)
        each.save(tmp_path / each.folder / f"{date}.json")
    found = [(each.device, each.date) for each in all_runs(tmp_path)]
    assert found == [("A", "2026-01-02"), ("A", "2026-01-03"), ("B", "2026-01-01")]


def test_folder_of_a_device() -> None:
    assert run(device="NVIDIA H100 80GB HBM3").folder == "nvidia-h100-80gb-hbm3"
    assert run(device="AMD EPYC (x)/y, 2 threads").folder == "amd-epyc-x-y-2-threads"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"matched": False}, "did not match"),
        ({"milliseconds": None}, "no reason why"),
        ({"milliseconds": Times(2.0, 1.0, 3.0)}, "out of order"),
        ({"milliseconds": Times(0.0, 1.0, 3.0)}, "out of order"),
        ({"measures": "speed"}, "must be one of"),
    ],
)
def test_rows_that_are_not_to_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ResultError, match=message):
        row(**changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda values: values.update(schema=0), "schema 0"),
        (lambda values: values.update(speed=1), "no speed"),
        (lambda values: values.pop("driver"), "does not fit"),
        (lambda values: values["rows"][0].pop("error"), "does not fit"),
        (lambda values: values["rows"][0].update(matched=False), "did not match"),
    ],
)
def test_files_that_do_not_fit(damage: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    run(row()).save(path)
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(ResultError, match=message):
        Run.load(path)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "\xff"])
def test_files_that_are_no_results(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ResultError):
        Run.load(path)


def test_a_number_that_is_none_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run(row(error=float("nan"))).save(tmp_path / "run.json")
    assert not (tmp_path / "run.json").exists()


def test_percentiles() -> None:
    assert percentiles([5, 1, 3, 2, 4, 0]) == Times(1, 2.5, 4)
    assert percentiles([7.0]) == Times(7, 7, 7)


def test_a_run_has_changes_where_more_than_results_has_changed(tmp_path: Path) -> None:
    for name in ("code.py", "benchmarks/cases.py", "benchmarks/results/cpu/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    commit = ("-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x")
    for command in (("init", "-q"), ("add", "."), commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert not has_changes(tmp_path / "benchmarks")
    (tmp_path / "benchmarks/results/cpu/a.json").write_text("after")
    assert not has_changes(tmp_path / "benchmarks")
    (tmp_path / "code.py").write_text("after")
    assert has_changes(tmp_path / "benchmarks")
