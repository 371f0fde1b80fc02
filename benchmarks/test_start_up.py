"""How long a new process takes: imports, the command line, and torch.compile of an operator with nothing cached."""

import os
import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from benchmarks.machine import pick_device
from benchmarks.measure import Measured, untimed, with_times
from benchmarks.session import CLOCK, Session, show

pytestmark = pytest.mark.benchmark(timer=CLOCK)

ROUNDS = {"import": 3, "vitgan --help": 3, "compile": 1}
COMPILE = """
import torch
from vitgan_kernels import l2_attention, reference
device = "cuda" if torch.cuda.is_available() else "cpu"
function = {function}
x = torch.randn(8, 6, 65, 64, device=device, requires_grad=True)
torch.compile(lambda x: function(x, None, x), fullgraph=True)(x).sum().backward()
"""
# what: {who: code}; the first of each is what the others are held against
CODE = {
    "import": {
        "torch (a floor)": "import torch",
        "vitgan_kernels": "import vitgan_kernels",
        "vitgan": "import vitgan; vitgan.Generator",  # alone, `import vitgan` imports nothing more
    },
    "vitgan --help": {
        "python (a floor)": "",
        "vitgan --help": "from vitgan.cli import main; main(['--help'])",
    },
    "compile": {
        "reference.l2_attention (a floor)": COMPILE.format(function="reference.l2_attention"),
        "vitgan_kernels.l2_attention": COMPILE.format(function="l2_attention"),
    },
}


def measured(what: str) -> list[Measured]:
    device = pick_device()
    base = untimed("start_up", what, {}, torch.float32, "compile" if what == "compile" else "start_up")
    taken: dict[str, list[float]] = {who: [] for who in CODE[what]}
    for _ in range(2 * ROUNDS[what]):
        for who, code in CODE[what].items():
            taken[who].append(milliseconds(code))
    rows = [base(who, ours=who.startswith("vitgan")) for who in taken]
    half = ROUNDS[what]
    return [with_times(row, None, taken[row.who][:half], taken[row.who][half:], device) for row in rows]


def milliseconds(code: str) -> float:
    began = time.perf_counter()
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=environment)
    return 1000 * (time.perf_counter() - began)


@pytest.mark.parametrize(("what", "who"), [(what, who) for what, codes in CODE.items() for who in codes])
def test_start_up(what: str, who: str, session: Session, benchmark: Any) -> None:
    show(session.group(("start_up", what), lambda: measured(what))[what, who], benchmark)
