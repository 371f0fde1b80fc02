"""What importing vitgan_kernels costs and does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Start-up time is in benchmarks/test_start_up.py; here is what decides it.
REPORT = """
import json, sys
import torch
before = set(sys.modules)
started = []
watched = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.fork")
sys.addaudithook(lambda event, args: started.append(event) if event in watched else None)
import vitgan_kernels
print(json.dumps({"new": sorted(set(sys.modules) - before), "started": started}))
"""


@pytest.fixture(scope="module")
def first_import(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The modules that importing vitgan_kernels adds to a process that has imported torch, and what it starts."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", REPORT]
    output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    found: dict[str, list[str]] = json.loads(output)
    assert "vitgan_kernels" in found["new"], "it must be the first import"
    return found


def test_brings_in_nothing_that_takes_long(first_import: dict[str, list[str]]) -> None:
    packages = {name.partition(".")[0] for name in first_import["new"]} - sys.stdlib_module_names
    assert packages <= {"vitgan_kernels", "torch", "einops"}, "vitgan_kernels needs no more than torch and einops"
    slow = ("torch._dynamo", "torch._inductor", "torch.testing", "torch.distributed.tensor")
    assert [name for name in first_import["new"] if name.startswith(slow)] == []


def test_starts_no_program(first_import: dict[str, list[str]]) -> None:
    assert first_import["started"] == [], "nothing is compiled at import"


def test_the_extension_is_not_loaded_before_it_is_used(tmp_path: Path) -> None:
    code = "import sys, vitgan_kernels; sys.exit('vitgan_kernels._native' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_vitgan_names_what_it_loads_later() -> None:
    code = "import vitgan; print(*(n for n in dir(vitgan) if n[0] != '_')); vitgan.models.Generator; vitgan.metrics"
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert {"Generator", "Discriminator", "models", "metrics"} <= set(said)
