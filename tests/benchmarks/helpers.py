"""A suite of toys in a repository of its own, and the JSON that it writes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest
from benchmarks.conftest import *
from benchmarks.measure import Implementation, measure

def row_of(name, role, call):
    return Implementation(name, lambda: ([], call), role)

@pytest.fixture(scope="session")
def ceilings(request):
    request.config.stash[CEILINGS] = {"copy": 1e9, "float32": 1e10, "bfloat16": 1e10}

@pytest.mark.parametrize("case", ["a", "b", "c"])
def test_toys(case, record):
    BEFORE
    def broken():
        raise RuntimeError("no | such <kernel>")
    found = [row_of("vitgan_kernels", "ours", lambda: None), row_of("eager", "baseline", lambda: sum(range(200))),
             Implementation("broken", broken), Implementation("unable", broken, unable="no compiler")]
    record(measure(found, [], 0, DEVICE, 1e-4), "toys", case, "float32", "forward_backward")
"""


def suite(folder: Path, before: str = "pass") -> Path:
    """A folder with the suite of toys, whose test runs `before` first."""
    folder.mkdir(exist_ok=True)
    (folder / "conftest.py").write_text(SUITE.split("def row_of")[0])
    (folder / "test_toys.py").write_text(SUITE.replace("BEFORE", before))
    return folder


def command(folder: Path, *options: str) -> list[str]:
    """pytest on it; the working directory must be ROOT."""
    return [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder), *options]


def run(folder: Path, *options: str) -> tuple[int, str]:
    """Exit status and output."""
    done = subprocess.run(command(folder, *options), cwd=ROOT, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def row(name: str, median: float, role: str = "baseline", **info: Any) -> dict[str, Any]:
    """A row as the files have it, 5 % to both sides of its median, the anchor's being 1 ms."""
    group = info.pop("group", "l2_attention, (8, 65), float32, forward")
    known = {"name": name, "suite": group.split(",")[0], "role": role, "dtype": "float32", "headline": True}
    relative = [1.0] * 3 if (role, median) == ("ours", 1) else [0.95 * median, median, 1.05 * median]
    stats = {"q1": 0.95e-3 * median, "median": 1e-3 * median, "q3": 1.05e-3 * median}
    measured = {"error": 1e-7, "allowed": 5e-7, "relative": relative, "floor": 5e-4, "peak_memory": 1 << 20}
    return {"group": group, "name": name, "fullname": f"{group}: {name}", "extra_info": known | measured | info,
            "stats": stats}  # fmt: skip


def output(*rows: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What pytest-benchmark gives to write, of a run on a CPU."""
    machine = {"device": "A CPU, 1 thread", "kind": "cpu", "threads": 1, "torch": "2.13.0", "cuda": None}
    return {
        "machine_info": machine,
        "commit_info": {"id": "0" * 40, "dirty": False},
        "benchmarks": list(rows),
        "left_out": [{"group": "l2_attention", "name": "broken", "why": "no | such <kernel>"}],
        "ceilings": {"copy": 1e9},
        "datetime": "2026-01-02T03:04:05",
        "version": "5.1.0",
    } | changes


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found
