"""Every kernel of the modulated SIREN as compiled: values and gradients, accesses and races."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vitgan_kernels.accuracy import assert_as_accurate
from vitgan_kernels import triton_support

stack = pytest.importorskip("vitgan_kernels.modulated_siren.stack", reason="Triton is not installed")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OMEGA = 1.5


@dataclass(frozen=True)
class Case:
    """Sizes and form of a network; widths from x to the output."""

    batch: int
    points: int
    widths: tuple[int, ...]
    dtype: torch.dtype
    shared: bool = True
    scaled: bool = False
    sine: bool = False
    tf32: bool = False
    target: str = "cuda"

    def tensors(self) -> tuple[Tensor, list[tuple[Any, ...]], Tensor]:
        """x, (weight, style, scale, bias) of every layer, and the gradient of the output."""
        x = torch.randn(*(() if self.shared else (self.batch,)), self.points, self.widths[0])
        layers = [
            (
                (torch.randn(o, i) / i**0.5).to(self.dtype),
                torch.randn(self.batch, i).to(self.dtype),
                torch.rand(self.batch, o) + 0.5 if self.scaled else None,
                torch.randn(o).to(self.dtype) if index % 2 == 0 else None,
            )
            for index, (i, o) in enumerate(pairwise(self.widths))
        ]
        return x.to(self.dtype), layers, torch.randn(self.batch, self.points, self.widths[-1]).to(self.dtype)


def plain(case: Case, dtype: torch.dtype, x: Tensor, layers: list[tuple[Any, ...]], grad: Tensor) -> list[Tensor]:
    """The output and every gradient by autograd, every step in one dtype."""
    x, *parts = (
        part.to(dtype).requires_grad_() for part in (x, *(p for layer in layers for p in layer if p is not None))
    )
    y, left = x, list(parts)
    for index, layer in enumerate(layers):
        weight, style = left.pop(0), left.pop(0)
        scale, bias = (None if part is None else left.pop(0) for part in layer[2:])
        y = (y * style.unsqueeze(1)) @ weight.mT
        y = y if scale is None else y * scale.unsqueeze(1)
        y = y if bias is None else y + bias
        if case.sine or index < len(layers) - 1:
            y = torch.sin(OMEGA * y)
    return [y.detach(), *torch.autograd.grad(y, [x, *parts], grad.to(dtype))]


CASES = [
    Case(3, 17, (8, 40, 3), BF16),  # one hidden layer and a linear head
    Case(2, 65, (40, 64, 5), FP16, shared=False, scaled=True, target="hip"),
    Case(2, 17, (17, 33, 70, 3), BF16, shared=False),  # two hidden layers
    Case(1, 9, (16, 40, 400, 3), FP16, scaled=True),  # the second too wide for 64 rows
    Case(1, 9, (16, 32, 400, 3), BF16, target="hip"),
    Case(5, 1, (40, 65), BF16, sine=True, scaled=True),  # one layer
    Case(1, 129, (8, 17), FP16, shared=False),
    Case(2, 17, (8, 40, 17), FP16, sine=True),  # too many outputs
    Case(3, 17, (8, 40, 3), FP32),
    Case(2, 17, (6, 8, 64, 3), FP32, shared=False, scaled=True),
    Case(3, 9, (8, 40, 3), FP32, tf32=True),
    Case(2, 9, (8, 40, 33, 3), FP32, shared=False, scaled=True, tf32=True, target="hip"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "target", lambda: case.target)
    monkeypatch.setattr(triton_support, "float32_precision", lambda: "tf32" if case.tf32 else "ieee")
    x, layers, grad = case.tensors()
    out = stack.forward(x, layers, OMEGA, case.sine)
    dx, gradients = stack.backward(grad, x, layers, OMEGA, case.sine, [True, True, True])
    actual = [out, dx, *(part for layer in gradients for part in layer if part is not None)]
    # half as many digits as float32 are what TF32 and float16 have alike
    usual = plain(case, FP16 if case.tf32 else case.dtype, x, layers, grad)
    exact = plain(case, torch.float64, x, layers, grad)
    assert_as_accurate(actual, [x.to(y.dtype) for x, y in zip(usual, actual, strict=True)], exact)
