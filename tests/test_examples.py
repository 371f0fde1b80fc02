"""The scripts in examples/, as their first lines say that they are run. Each checks its own result."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_trainer_with_the_operators_learns() -> None:
    assert "step 400" in run("examples/trainer.py")


def test_compiled_trainer() -> None:
    assert "step 40" in run("examples/compiled_trainer.py")


def test_compiled_trainer_in_two_processes() -> None:
    output = run(*TORCHRUN, "examples/compiled_trainer.py")
    assert "process 0 of 2 holds the same model" in output
    assert "process 1 of 2 holds the same model" in output


def test_swap_in_the_middle_of_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the picture is drawn by the extra `examples`")
    output = run("examples/swap_mid_training.py", str(tmp_path / "swap.png"))
    assert "4 of 4 swapped" in output
    assert (tmp_path / "swap.png").stat().st_size > 5000
