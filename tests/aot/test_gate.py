"""The ahead-of-time gate can fail: on what a compiled kernel shows, and as a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
FAULTY = '''
import torch
import triton
import triton.language as tl

from tests.aot.compiler import Case


@triton.jit
def spills(X, Y, D: tl.constexpr):
    """Two products whose operands and results are far more than one warp's registers."""
    at = tl.arange(0, D)[:, None] * D + tl.arange(0, D)[None, :]
    x = tl.load(X + at)
    tl.store(Y + at, tl.dot(x, x) + tl.dot(x, tl.trans(x)))


@triton.jit
def uses_no_tensor_cores(X, Y, D: tl.constexpr):
    at = tl.arange(0, D)
    tl.store(Y + at, tl.load(X + at) * 2)


def cases():
    x = torch.empty(128, 128, dtype=torch.bfloat16, device="meta")
    y = torch.empty(128, 128, device="meta")
    return [
        Case("too large", lambda: spills[(1,)](x, y, D=128, num_warps=1), quick=True),
        Case("no product", lambda: uses_no_tensor_cores[(1,)](x, y, D=128), quick=True),
        Case("no product wanted", lambda: uses_no_tensor_cores[(1,)](x, y, D=128), tensor_cores=False, quick=True),
        Case("nothing", lambda: None, quick=True),
    ]
'''


def test_every_fault_is_found(tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    program = """if True:
        import sys
        from tests.aot import gate

        gate.OPERATORS = ("faulty",)
        gate.cases = lambda operator: __import__(operator).cases()
        rows = [gate.check("faulty", index, "sm_80") for index in range(4)]
        print(*(wrong for case in rows for _, _, wrong in case), sep="\\n")
        print(len(rows[3]))
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path), environment.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    spilled, without, wanted_none, nothing = result.stdout.splitlines()
    assert spilled.startswith("['spills (")
    assert without == "['no tensor-core instruction (HMMA)']"
    assert wanted_none == "[]"
    assert nothing == "0"


def test_a_fault_is_an_exit_status() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    program = """if True:
        from tests.aot import gate

        class Pool:
            def __init__(self, *_, **__): pass
            def __enter__(self): return self
            def __exit__(self, *_): pass
            def map(self, _, operators, *__):
                return [[("kernel", None, list(wrong))] for operator in operators]

        gate.ProcessPoolExecutor = Pool
        wrong = []
        good = gate.main(["--target", "sm_80"])
        wrong = ["spills (4)"]
        print(good, gate.main(["--target", "sm_80"]))
    """
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "0 1"
