"""The result file: pytest-benchmark's own, complete after every case, and nothing else is taken for one."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.environment import commit_info
from benchmarks.result_files import ResultError, load, load_all, write
from tests.benchmarks.helpers import ROOT, command, output, read, row, run, suite


def test_rows_of_a_run_and_their_comparison(tmp_path: Path) -> None:
    folder, path = suite(tmp_path / "toys"), tmp_path / "first.json"
    status, told = run(folder, f"--benchmark-json={path}")
    assert status == 0, told
    found = load(path)
    assert [row.name for row in found.rows] == ["vitgan_kernels", "eager"] * 3
    assert [row.role for row in found.rows[:2]] == ["ours", "baseline"]
    assert found.rows[0].group == "toys, a, float32, forward + backward"
    assert found.rows[0].relative == (1.0, 1.0, 1.0)
    assert found.ceilings["copy"] == 1e9
    assert found.machine["torch"]
    assert [each["why"] for each in found.left_out[:2]] == ["RuntimeError: no | such <kernel>", "no compiler"]
    status, told = run(folder, f"--benchmark-compare={path}", "--benchmark-compare-fail=median:100000%")
    assert status == 0, told
    assert "(NOW)" in told
    assert "first" in told


def test_ours_that_fails_is_a_failed_test_and_the_others_are_recorded(tmp_path: Path) -> None:
    path = tmp_path / "first.json"
    folder = suite(tmp_path / "toys")
    test = folder / "test_toys.py"
    test.write_text(test.read_text().replace('"broken", broken)', '"ours", broken, "ours")'))
    status, told = run(folder, f"--benchmark-json={path}")
    assert status == 1
    assert "ours: RuntimeError: no | such <kernel>" in told
    assert [row.name for row in load(path).rows] == ["vitgan_kernels", "eager"] * 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_keeps_the_rows_so_far(how: signal.Signals, tmp_path: Path) -> None:
    path, reached = tmp_path / "first.json", tmp_path / "reached"
    wait = f"os.mkfifo({str(reached)!r}); pipe = open({str(reached)!r}, 'w'); time.sleep(600)"
    before = f"import os, time\n    if case == 'c': {wait}"
    folder = suite(tmp_path / "toys", before)
    process = subprocess.Popen(command(folder, f"--benchmark-json={path}"), cwd=ROOT, stdout=subprocess.DEVNULL)
    while not reached.exists():
        assert process.poll() is None, "it ended before its last case"
    with reached.open():  # returns as soon as the other side has opened it
        process.send_signal(how)
    process.wait()
    assert [row.group.split(", ")[1] for row in load(path).rows] == ["a", "a", "b", "b"]


def test_one_row_a_line_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "run.json"
    write(path, output(row("vitgan_kernels", 1, "ours"), row("eager", 2)))
    assert read(path) == output(row("vitgan_kernels", 1, "ours"), row("eager", 2))
    assert sum('"stats"' in line for line in path.read_text().splitlines()) == 2
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="JSON"):
        write(path, output(row("vitgan_kernels", 1, "ours", error=float("nan"))))
    assert read(path) == output(row("vitgan_kernels", 1, "ours"), row("eager", 2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("left_out"),
        lambda values: values["benchmarks"][0]["extra_info"].pop("role"),
        lambda values: values["benchmarks"][0]["stats"].update(median=9.0),
        lambda values: values["benchmarks"][0]["stats"].update(q1=0.0),
    ],
)
def test_files_that_do_not_fit(damage: Any, tmp_path: Path) -> None:
    values = output(row("vitgan_kernels", 1, "ours"))
    damage(values)
    (tmp_path / "run.json").write_text(json.dumps(values))
    with pytest.raises(ResultError, match=r"is not a result file"):
        load(tmp_path / "run.json")


@pytest.mark.parametrize("text", [b"", b"no JSON", b"[]", b"\xff"])
def test_files_that_are_no_results(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(ResultError):
        load(tmp_path / "run.json")


def test_gpus_come_first(tmp_path: Path) -> None:
    rows = row("vitgan_kernels", 1, "ours")
    write(tmp_path / "a.json", output(rows))
    write(tmp_path / "b.json", output(rows, machine_info=output()["machine_info"] | {"kind": "cuda"}))
    assert [each.name for each in load_all(tmp_path)] == ["b", "a"]


def test_changes_are_of_more_than_results(tmp_path: Path) -> None:
    for name in ("code.py", "benchmarks/results/a.json", "docs/benchmarks.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    commit = ("-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x")
    for arguments in (("init", "-q"), ("add", "."), commit):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    assert not commit_info(tmp_path)["dirty"]
    (tmp_path / "benchmarks/results/a.json").write_text("after")
    (tmp_path / "docs/benchmarks.md").write_text("after")
    assert not commit_info(tmp_path)["dirty"]
    (tmp_path / "code.py").write_text("after")
    assert commit_info(tmp_path)["dirty"]
