"""The cases of L2 attention: every kernel at every entry of the tables of `tiles.py`, in every precision."""

from collections.abc import Callable
from itertools import product

import torch

from tests.aot.compiler import Case
from vitgan_kernels.l2_attention import launch

ORDERS = (0, 1, 2)


def cases() -> list[Case]:
    """Orders, lengths (short path and tiled), widths, dtypes, tied or not, one query or all, both distances."""
    return [
        *(_case(order, tokens, quick=True) for order, tokens in product(ORDERS, (65, 257))),
        *(_case(order, tokens, tied=False) for order, tokens in [*product(ORDERS, (65,)), (1, 257)]),
        # a class token alone, whose number of queries is a constant to the compiler
        *(_case(order, tokens, queries=1, tied=False) for order, tokens in product(ORDERS, (65, 257))),
        *(_case(order, tokens, euclidean=True) for order, tokens in product(ORDERS, (65, 257))),
        _case(1, 128, euclidean=True),
        _case(2, 257, width=256, euclidean=True),
        *(_case(order, 65, width=32) for order in ORDERS),
        *(_case(order, 128, width=width) for order, width in product((0, 1), (32, 64))),
        *(_case(order, 65, width=128) for order in (0, 1)),
        *(_case(order, 257, width=width) for order, width in product(ORDERS, (128, 256))),
        *(_case(1, 257, width=width, tied=False) for width in (128, 256)),
        *(_case(order, 129, width=100) for order in ORDERS),
        *(_case(order, 257, "fp32", width=width) for order, width in product(ORDERS, (64, 128, 256))),
        *(_case(1, 257, "fp32", width=width, tied=False) for width in (64, 128, 256)),
        *(_case(order, 257, "fp32", euclidean=True) for order in ORDERS),
        *(_case(order, 257, "tf32", width=width) for order, width in product(ORDERS, (64, 256))),
        _case(1, 65, "fp16"),
    ]


def _case(
    order: int,
    tokens: int,
    precision: str = "bf16",
    *,
    width: int = 64,
    tied: bool = True,
    euclidean: bool = False,
    queries: int | None = None,
    quick: bool = False,
) -> Case:
    form = ("" if tied else " untied") + (f" queries={queries}" if queries else "")
    name = f"order {order} N={tokens} d={width} {precision}{form}{' euclidean' if euclidean else ''}"
    return Case(
        name, _run(order, tokens, queries or tokens, precision, width, tied, euclidean), precision != "fp32", quick
    )


def _run(
    order: int, tokens: int, queries: int, precision: str, width: int, tied: bool, euclidean: bool
) -> Callable[[], object]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)

    def launched() -> object:
        k, v, b, c = (torch.empty(2, 6, tokens, width, dtype=dtype, device="meta") for _ in range(4))
        q, grad, out, a = (torch.empty(2, 6, queries, width, dtype=dtype, device="meta") for _ in range(4))
        lse = torch.empty(2, 2, 6, queries, device="meta")
        keys, keys_cotangent = (None, None) if tied else (k, b)
        if order == 0:
            return launch.forward(q, keys, v, 0.125, euclidean)
        if order == 1:
            return launch.backward(grad, q, keys, v, out, lse, 0.125, euclidean)
        return launch.double_backward(a, keys_cotangent, c, grad, q, keys, v, out, lse, 0.125, euclidean)

    def run() -> object:
        setting = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        try:
            return launched()
        finally:
            torch.backends.cuda.matmul.fp32_precision = setting

    return run
