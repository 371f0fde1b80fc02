"""Every kernel of L2 attention as compiled: values to second order, accesses and races."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.vitgan_kernels.accuracy import assert_as_accurate
from tests.vitgan_kernels.l2_attention.problems import Problem, orders, plain
from vitgan_kernels import triton_support

launch = pytest.importorskip("vitgan_kernels.l2_attention.launch", reason="Triton is not installed")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def launched(tensors: dict[str, Tensor], problem: Problem) -> dict[str, Tensor]:
    """What the launchers return, by the names of `orders`."""
    q, k, v = tensors["q"], tensors.get("k"), tensors["v"]
    settings = problem.scale, problem.metric == "euclidean"
    out, lse = launch.forward(q, k, v, *settings)
    dq, dk, dv = launch.backward(tensors["grad"], q, k, v, out, lse, *settings)
    cotangents = tensors["q2"], tensors.get("k2"), tensors["v2"]
    ddo, dq2, dk2, dv2 = launch.double_backward(*cotangents, tensors["grad"], q, k, v, out, lse, *settings)
    named = {"out": out, "dq": dq, "dk": dk, "dv": dv, "dq2": dq2, "dk2": dk2, "dv2": dv2, "dgrad2": ddo}
    return {name: x for name, x in named.items() if x is not None}


@dataclass(frozen=True)
class Case:
    """A problem in a dtype and a layout, with the tiles of a target."""

    problem: Problem
    dtype: torch.dtype
    layout: str = "contiguous"
    target: str = "cuda"


def laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "heads merged":  # tokens outside heads in memory
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "padded":  # a part of a larger tensor whose rest is NaN
        larger = x.new_full((*x.shape[:-2], x.shape[-2] + 3, x.shape[-1] + 8), float("nan"))
        larger[..., : x.shape[-2], : x.shape[-1]] = x
        return larger[..., : x.shape[-2], : x.shape[-1]]
    if layout == "broadcast":
        return x[:, :1].expand_as(x)
    return x


EUCLIDEAN = "euclidean"
CASES = [
    # short path
    Case(Problem(65, 0, 64, 64, leading=(1, 2)), BF16),
    Case(Problem(17, 65, 40, 8, leading=(1, 2)), FP16, "heads merged"),
    Case(Problem(1, 17, 8, 40, leading=(2, 1)), BF16, "padded"),
    Case(Problem(1, 0, 8, 8, leading=(1, 3)), FP16),
    Case(Problem(17, 0, 40, 24, EUCLIDEAN, leading=(1, 2)), BF16, "broadcast"),
    Case(Problem(65, 17, 8, 8, EUCLIDEAN, leading=(1, 1)), FP16, target="hip"),
    # tiled
    Case(Problem(129, 0, 8, 24, leading=(1, 1)), FP16, "padded", target="hip"),
    Case(Problem(17, 129, 40, 8, leading=(1, 2)), BF16, "broadcast"),
    Case(Problem(1, 129, 64, 8, EUCLIDEAN, leading=(1, 2)), FP16, "heads merged"),
    Case(Problem(19, 0, 136, 200, scale=0.02, leading=(1, 1)), BF16),  # features in parts
    Case(Problem(17, 0, 64, 64, leading=(1, 2)), FP32, "heads merged"),
    Case(Problem(17, 33, 40, 8, leading=(1, 1)), FP32, "padded"),
    Case(Problem(33, 0, 8, 24, EUCLIDEAN, leading=(1, 1)), FP32),
    Case(Problem(1, 17, 8, 40, EUCLIDEAN, leading=(1, 2)), FP32, "broadcast"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_order(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "target", lambda: case.target)
    tensors = {name: laid_out(x, case.layout) for name, x in case.problem.tensors(case.dtype).items()}
    actual = launched(tensors, case.problem)
    usual, exact = (
        orders(plain, {name: x.to(dtype) for name, x in tensors.items()}, case.problem, 2)
        for dtype in (case.dtype, torch.float64)
    )
    if "k" not in tensors:  # where dQ is the whole gradient
        assert "dk" not in actual
    assert set(actual) == set(exact)
    assert_as_accurate(*([results[name] for name in exact] for results in (actual, usual, exact)))
