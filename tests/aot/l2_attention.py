"""The cases of L2 attention: shapes of the paper's discriminator, and what lies beside them.

Not here, because they spill: the second order in float32, and wider than 64 in 16 bits. They run, and more slowly.
"""

from collections.abc import Callable
from itertools import product

import torch

from tests.aot.compiler import Case
from vitgan_kernels.l2_attention import launch


def cases() -> list[Case]:
    """Orders, lengths (short path and tiled), widths, dtypes, tied or not, both distances."""
    found = [
        Case(f"order {order} N={tokens} d=64 bf16", _run(order, tokens), quick=True)
        for order, tokens in product((0, 1, 2), (65, 257))
    ]
    found += [
        Case(f"order {order} N={tokens} d=64 bf16 untied", _run(order, tokens, tied=False))
        for order, tokens in product((0, 1, 2), (65, 257))
    ]
    found += [
        Case(f"order {order} N={tokens} d={width} bf16", _run(order, tokens, width=width))
        for order, tokens, width in [*product((0, 1, 2), (65, 257), (32,)), *product((0, 1), (65, 257), (128, 256))]
    ]
    found += [
        Case(f"order {order} N=257 d={width} fp32", _run(order, 257, width=width, dtype=torch.float32), False)
        for order, width in ((0, 64), (1, 64), (0, 128))
    ]
    return found


def _run(
    order: int, tokens: int, *, width: int = 64, dtype: torch.dtype = torch.bfloat16, tied: bool = True
) -> Callable[[], object]:
    def run() -> object:
        q, k, v, grad, out, a, b, c = (torch.empty(2, 6, tokens, width, dtype=dtype, device="meta") for _ in range(8))
        lse = torch.empty(2, 2, 6, tokens, device="meta")
        keys, keys_cotangent = (None, None) if tied else (k, b)
        if order == 0:
            return launch.forward(q, keys, v, 0.125, False)
        if order == 1:
            return launch.backward(grad, q, keys, v, out, lse, 0.125, False)
        return launch.double_backward(a, keys_cotangent, c, grad, q, keys, v, out, lse, 0.125, False)

    return run
