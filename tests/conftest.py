"""What every test shares: one thread, a fixed seed, and memory that shows where nothing was written to it.

Where there is no GPU, Triton kernels run in Triton's interpreter, on the CPU.
"""

import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the first import of the kernels, which fixes it

# On a GPU, what plain PyTorch computes repeats bit for bit with this alone, and in float32 rounds nothing to TF32.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.backends.cudnn.allow_tf32 = False

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start, too

# A shell's background job ignores Ctrl-C, and so would the programs that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tensors of these tests are too small to share out, and sums of one thread repeat bit for bit.
torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """Refuses a NumPy that the interpreter of triton 3.6 cannot work with: it makes numbers of arrays."""
    triton = version("triton") if find_spec("triton") else ""
    if triton.startswith("3.6.") and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        raise pytest.UsageError(f"triton {triton} needs numpy<2.4, not {np.__version__}: pip install 'numpy<2.4'")


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Seeds PyTorch, and fills what `torch.empty` and its like return: NaN, or the largest integer.

    PyTorch fills only in deterministic mode (`torch.utils.deterministic.fill_uninitialized_memory`, on by default).
    """
    torch.manual_seed(0)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
