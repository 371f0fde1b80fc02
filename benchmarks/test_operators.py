"""Times of the operators' reference on this machine: pytest benchmarks/

Tokens, widths, pixels of a patch and numbers of matrices are those of the presets; batches are small and matrices
square. Each time is taken after the result was checked against float64. It is of one machine at one moment: compare
only what one run prints.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import l2_attention, modulated_siren, spectral_norm

Arguments = tuple[Any, ...]


def attention(tokens: int, width: int) -> tuple[Callable[..., Tensor], Arguments]:
    q, v = (torch.randn(16, 2, tokens, width) for _ in range(2))
    return lambda q, v: l2_attention(q, None, v), (q, v)


def siren(patches: int, pixels: int, width: int) -> tuple[Callable[..., Tensor], Arguments]:
    x = torch.sin(torch.randn(pixels, width))
    weights = (torch.randn(width, width) * (2 / width) ** 0.5 / 30, torch.randn(3, width) / width)
    styles = (torch.randn(patches, width) + 1, torch.randn(patches, width) + 1)
    return lambda x, w0, w1, s0, s1: modulated_siren(x, [w0, w1], [s0, s1]), (x, *weights, *styles)


def normalisation(matrices: int, width: int) -> tuple[Callable[..., Tensor], Arguments]:
    def run(*weights: Tensor) -> Tensor:
        u, v = ([torch.ones(width).to(weights[0]) / width**0.5 for _ in weights] for _ in range(2))
        return torch.stack(spectral_norm(weights, u, v)[0])

    return run, tuple(torch.randn(width, width) for _ in range(matrices))


CASES: dict[str, Callable[[], tuple[Callable[..., Tensor], Arguments]]] = {
    "l2_attention, tiny": lambda: attention(17, 32),
    "l2_attention, cifar10": lambda: attention(65, 64),
    "modulated_siren, tiny": lambda: siren(256, 64, 32),
    "modulated_siren, cifar10": lambda: siren(256, 16, 384),
    "spectral_norm, tiny": lambda: normalisation(13, 64),
    "spectral_norm, cifar10": lambda: normalisation(23, 384),
}


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
@pytest.mark.parametrize("name", CASES)
def test_reference(name: str, backward: bool, benchmark: Any) -> None:
    torch.manual_seed(0)
    function, arguments = CASES[name]()
    exact = function(*(argument.double() for argument in arguments))
    assert (function(*arguments) - exact).abs().max() < 1e-3 * exact.abs().max()
    inputs = [argument.clone().requires_grad_(backward) for argument in arguments]

    def run() -> None:
        out = function(*inputs)
        if backward:
            torch.autograd.grad(out.sum(), inputs)

    benchmark(run)
