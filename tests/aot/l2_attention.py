"""The cases of L2 attention: shapes of the paper's discriminator, and what lies beside them."""

from collections.abc import Callable

import torch

from tests.aot.compiler import Case
from vitgan_kernels.l2_attention import launch


def cases() -> list[Case]:
    """Every order, tied, bfloat16: 64 patches and a class token (short path), and 256 (tiled)."""
    return [
        Case(f"order {order} N={tokens} d=64 bfloat16", _run(order, tokens), quick=order < 2 or tokens == 65)
        for order in (0, 1, 2)
        for tokens in (65, 257)
    ]


def _run(order: int, tokens: int) -> Callable[[], object]:
    def run() -> object:
        q, v, grad, out, a, c = (torch.empty(2, 6, tokens, 64, dtype=torch.bfloat16, device="meta") for _ in range(6))
        lse = torch.empty(2, 2, 6, tokens, device="meta")
        if order == 0:
            return launch.forward(q, None, v, 0.125, False)
        if order == 1:
            return launch.backward(grad, q, None, v, out, lse, 0.125, False)
        return launch.double_backward(a, None, c, grad, q, None, v, out, lse, 0.125, False)

    return run
