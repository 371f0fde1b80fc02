"""What importing vitgan_kernels costs and does."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

# torch is imported once and the process forks: each child then pays for vitgan_kernels alone, and the
# measurement does not depend on the seconds that torch itself takes.
MEASURE = """
import json, os, sys, time
import torch
for _ in range({repeats}):
    read, write = os.pipe()
    if os.fork() == 0:
        before = set(sys.modules)
        started = []
        watched = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork")
        sys.addaudithook(lambda event, args: started.append(event) if event in watched else None)
        start = time.perf_counter()
        import vitgan_kernels
        seconds = time.perf_counter() - start
        new = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})
        os.write(write, json.dumps({{"seconds": seconds, "new": new, "started": started}}).encode())
        os._exit(0)
    os.close(write)
    print(os.fdopen(read).read())
    os.wait()
"""


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Seven imports of vitgan_kernels, each in a process that has imported torch and nothing else."""
    output = subprocess.run(
        [sys.executable, "-c", MEASURE.format(repeats=7)],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [json.loads(line) for line in output.splitlines()]


def test_takes_no_longer_than_torch_and_a_tenth_of_a_second(imports: list[dict]) -> None:
    assert len(imports) == 7
    assert statistics.median(one["seconds"] for one in imports) < 0.1


def test_brings_in_no_triton_and_starts_no_program(imports: list[dict]) -> None:
    for one in imports:
        assert "vitgan_kernels" in one["new"], "the measurement must be of a first import"
        assert "triton" not in one["new"]
        assert "vitgan" not in one["new"], "vitgan_kernels must not depend on vitgan"
        assert one["started"] == [], "nothing is compiled at import"


def test_the_extension_is_not_loaded_before_it_is_used(tmp_path: Path) -> None:
    code = "import sys, vitgan_kernels; sys.exit('vitgan_kernels._native' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
