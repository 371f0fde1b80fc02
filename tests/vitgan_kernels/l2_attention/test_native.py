"""L2 attention in C++: values on every level, the same bits however it is run, and what is not a number."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import l2_attention, native_support
from vitgan_kernels.l2_attention import native

pytestmark = pytest.mark.skipif(not native_support.available()[0], reason="the extension is not built")

FUZZ = Path(__file__).parent / "fuzz.py"
LEVELS = native_support.build_info()["levels"].split() if native_support.available()[0] else []


@pytest.mark.parametrize("level", LEVELS)
def test_random_calls_are_as_exact_as_plain_pytorch(level: str) -> None:
    command = [sys.executable, str(FUZZ), "--calls", "8", "--seed", "0"]
    result = subprocess.run(
        command, env=os.environ | {"VITGAN_CPU_LEVEL": level}, capture_output=True, text=True, check=False
    )
    if "this build has, on this machine" in result.stdout:
        pytest.skip(f"this machine has no {level}")
    assert result.returncode == 0, result.stdout + result.stderr


def test_an_unknown_level_says_which_there_are() -> None:
    code = "from vitgan_kernels import explain; import torch; print(explain('l2_attention', *torch.ones(3, 2, 5, 4)))"
    environment = os.environ | {"VITGAN_CPU_LEVEL": "avx9"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "cpp       cannot: VITGAN_CPU_LEVEL is avx9, and this build has, on this machine, generic" in result.stdout


def all_orders(q: Tensor, k: Tensor | None, v: Tensor, grad: Tensor, euclidean: bool) -> list[Tensor]:
    """O, the gradients, and theirs, with the inputs themselves as cotangents."""
    out, lse = native.forward(q, k, v, 0.1, euclidean)
    first = native.backward(grad, q, k, v, lse, 0.1, euclidean)
    second = native.double_backward(q, k, v, grad, q, k, v, lse, 0.1, euclidean)
    return [x for x in (out, lse, *first, *second) if x is not None]


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads_and_any_split(tied: bool, euclidean: bool, dtype: torch.dtype) -> None:
    """Two heads, so that more threads cut the rows of a head too, of which there are enough for two chunks."""
    q, v, grad = (torch.randn(1, 2, 523, 24, dtype=dtype) for _ in range(3))
    k = None if tied else torch.randn(1, 2, 523, 24, dtype=dtype)
    expected = all_orders(q, k, v, grad, euclidean)
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            for _ in range(3):
                torch.testing.assert_close(all_orders(q, k, v, grad, euclidean), expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(1)
    keys = None if k is None else k[:, 1:]
    out, lse, *gradients = all_orders(q[:, 1:], keys, v[:, 1:], grad[:, 1:], euclidean)
    parts = [expected[0][:, 1:], expected[1][:, :, 1:], *(x[:, 1:] for x in expected[2:])]
    torch.testing.assert_close([out, lse, *gradients], parts, rtol=0, atol=0)


def test_threads_after_a_fork() -> None:
    code = """
import os, torch
from vitgan_kernels import l2_attention
torch.set_num_threads(4)
x = torch.randn(4, 4, 300, 64)
expected = l2_attention(x, None, x)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(l2_attention(x, None, x), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(l2_attention(x, None, x), expected)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["q", "k", "v", "grad"])
def test_what_is_not_a_number_comes_out_where_pytorch_has_it(where: str, value: float, metric: Any) -> None:
    results = []
    for backend in ("cpp", "reference"):
        torch.manual_seed(0)
        inputs = {name: torch.randn(1, 2, 20, 8) for name in ("q", "k", "v", "grad")}
        inputs[where][0, 1, 7, 3] = value
        q, k, v, grad = (x.requires_grad_() for x in inputs.values())
        out = l2_attention(q, k, v, metric=metric, backend=backend)
        first = torch.autograd.grad(out, (q, k, v), grad, create_graph=True)
        second = torch.autograd.grad(first, (q, k, v, grad), [torch.ones_like(x) for x in first])
        results.append([x.detach().isfinite() for x in (out, *first, *second)])
    for order, (ours, plain) in enumerate(zip(*results, strict=True)):
        assert not (ours & ~plain).any(), f"result {order} is finite where PyTorch's is not"
        assert ours[:, 0].all(), f"result {order} of the other head"
    assert not all(x.all() for x in results[0])
