"""What every test shares: one thread, a fixed seed, and memory that shows where nothing was written to it.

Where there is no GPU, Triton kernels run in Triton's interpreter, on the CPU.
"""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of the kernels, which fixes it

# On a GPU, what plain PyTorch computes repeats bit for bit with this alone, and in float32 rounds nothing to TF32.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
torch.backends.cudnn.allow_tf32 = False

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the programs that tests start, too

# The tensors of these tests are too small to share out, and sums of one thread repeat bit for bit.
torch.set_num_threads(1)

settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")


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
