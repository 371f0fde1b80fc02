"""Launches the Triton kernels of L2 attention: layouts, tiles, and the path that fits the length.

Tensors are (B, H, N, width) of one dtype; K is None where it is Q. No launch waits for the device, and nothing is
allocated but results and row sums, so that CUDA graphs can capture them.
"""

import math
from typing import Any

import torch
import triton
from torch import Tensor

from vitgan_kernels import triton_support
from vitgan_kernels.l2_attention import kernels_short as short
from vitgan_kernels.l2_attention import kernels_tiled as tiled
from vitgan_kernels.l2_attention import kernels_tiled_second as second
from vitgan_kernels.l2_attention import tiles
from vitgan_kernels.l2_attention.layout import empty_like, empty_lse, row_sums


def forward(q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool) -> tuple[Tensor, Tensor]:
    """O (B, H, N, e) and the log-sum-exp (2, B, H, N) in float32, as `closed_form.py` has it."""
    out, lse = empty_like(q, v.shape[-1]), empty_lse(q)
    call = _Call(0, q, k, v, scale, euclidean)
    q, keys, v = _loadable(q, call.keys, v)
    if call.short:
        call.run(short.forward, [q, keys, v, out, lse], [q, keys, v, out], per=None)
    else:
        call.run(tiled.forward, [q, keys, v, out, lse], [q, keys, v, out], per="rows")
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, out: Tensor, lse: Tensor, scale: float, euclidean: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dQ, dK (None where K is Q), dV."""
    call = _Call(1, q, k, v, scale, euclidean)
    dq, dk, dv = call.query_gradient(q), empty_like(call.keys), empty_like(v)
    grad, q, keys, v, out = _loadable(grad, q, call.keys, v, out)
    if call.short:
        call.run(short.backward, [grad, q, keys, v, dq, dk, dv], [grad, q, keys, v, dq, dk, dv], per=None)
    elif call.tied:
        call.run(tiled.backward_tied, [grad, q, v, out, lse, dk, dv], [grad, q, v, out, dk, dv], per="rows")
    else:
        delta = row_sums(q)
        call.run(
            tiled.backward_rows,
            [grad, q, keys, v, out, lse, delta, dq],
            [grad, q, keys, v, out, dq],
            per="rows",
        )
        call.run(tiled.backward_keys, [grad, q, keys, v, lse, delta, dk, dv], [grad, q, keys, v, dk, dv], per="keys")
    return (dk, None, dv) if call.tied else (dq, dk, dv)


def double_backward(
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    euclidean: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """ddO, dQ2, dK2 (None where K is Q), dV2, from the cotangents a of dQ, b of dK (None where K is Q) and c of dV."""
    call = _Call(2, q, k, v, scale, euclidean)
    ddo, dq, dk, dv = empty_like(out), call.query_gradient(q), empty_like(call.keys), empty_like(v)
    a, c, grad, q, keys, v, out = _loadable(a, c, grad, q, call.keys, v, out)
    b = a if b is None else _loadable(b)[0]
    inputs = [a, b, c, grad, q, keys, v]
    if call.short:
        results = [ddo, dq, dk, dv]
        call.run(short.double_backward, [*inputs, *results], [*inputs, *results], per=None)
    else:
        sums = [lse, row_sums(q), row_sums(q), row_sums(q)]
        call.run(second.second_order_sums, [*inputs, out, *sums], [*inputs, out], per="rows")
        call.run(second.second_order_rows, [*inputs, *sums, ddo, dq], [*inputs, ddo, dq], per="rows")
        call.run(second.second_order_keys, [*inputs, *sums, dq, dk, dv], [*inputs, dq, dk, dv], per="keys")
    return (ddo, dk, None, dv) if call.tied else (ddo, dq, dk, dv)


def _loadable(*tensors: Tensor) -> list[Tensor]:
    """The kernels take any strides but those of the last dimension, which must be 1: others are copied."""
    return [x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous() for x in tensors]


LOG2_E = 1 / math.log(2)


class _Call:
    """What the kernels of one order have in common: sizes, constants and tiles."""

    def __init__(self, order: int, q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool) -> None:
        self.tied = k is None
        self.keys = q if k is None else k
        (batches, heads, n, d), (m, e) = q.shape, v.shape[-2:]
        self.programs, self.n, self.m = batches * heads, n, m
        self.sizes = [heads, n, m, d, e, batches * heads * n, float(scale), scale * LOG2_E]
        self.shape = tiles.Shape(n, m, d, e, q.element_size(), euclidean)
        self.tile = tiles.short(order, self.shape)
        self.short = self.tile is not None
        self.constants = {
            "D": tiles.padded(d),
            "E": tiles.padded(e),
            "FULL_D": d == tiles.padded(d),
            "FULL_E": e == tiles.padded(e),
            "TIED": self.tied,
            "EUCLIDEAN": euclidean,
            "PRECISION": triton_support.float32_precision(),
        }

    def query_gradient(self, q: Tensor) -> Tensor:
        """Memory for dQ: a result, or with K = Q a part of the result that is yet to be added to dK."""
        return empty_like(q, dtype=torch.float32 if self.tied else q.dtype)

    def run(self, kernel: Any, pointers: list[Tensor], strided: list[Tensor], per: str | None) -> None:
        """Launch a kernel on pointers, then the strides of `strided`: one program a (batch, head), or a tile of it."""
        tile, programs = self.tile, self.programs
        if tile is None:
            tile = tiles.tiled(kernel.__name__, self.shape)
            length = self.n if per == "rows" else self.m
            programs *= triton.cdiv(length, tile["ROWS" if per == "rows" else "KEYS"])
        strides = [stride for x in strided for stride in x.stride()[:3]]
        kernel[(programs,)](*pointers, *strides, *self.sizes, **self.constants, **tile, enable_fp_fusion=True)
