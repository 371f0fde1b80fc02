"""How long a new process takes: imports, the command line, and torch.compile of an operator with nothing cached."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.environment import pick_device
from benchmarks.measure import Call, Implementation, Role, measure

COMPILE = """
import torch
from vitgan_kernels import l2_attention, reference
device = "cuda" if torch.cuda.is_available() else "cpu"
function = {function}
x = torch.randn(8, 6, 65, 64, device=device, requires_grad=True)
torch.compile(lambda x: function(x, None, x), fullgraph=True)(x).sum().backward()
"""
CODE = {  # what: {name: code}, ours first
    "import": {
        "vitgan_kernels": "import vitgan_kernels",
        "vitgan": "import vitgan; vitgan.Generator",  # alone, `import vitgan` imports nothing more
        "torch": "import torch",
    },
    "vitgan --help": {"vitgan --help": "from vitgan.cli import main; main(['--help'])", "python": ""},
    "torch.compile": {
        "vitgan_kernels.l2_attention": COMPILE.format(function="l2_attention"),
        "reference.l2_attention": COMPILE.format(function="reference.l2_attention"),
    },
}


def process(code: str) -> Call:
    """Run it in a new process, without the caches of compilers."""
    environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    command = [sys.executable, "-c", code]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


@pytest.mark.parametrize("what", CODE)
def test_start_up(what: str, record: Callable[..., None]) -> None:
    def implementation(name: str, code: str) -> Implementation:
        role: Role = "ours" if name.startswith("vitgan") else "other"
        return Implementation(name, lambda: ([], process(code)), role)

    found = [implementation(*each) for each in CODE[what].items()]
    record(measure(found, [], 0, pick_device(), 0), "start-up", what, "", "")
