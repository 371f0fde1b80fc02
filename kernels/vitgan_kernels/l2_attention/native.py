"""The call into the compiled extension: L2 attention and its two orders of backward on the CPU (csrc/l2_attention.h).

Tensors are (B, H, tokens, features) of one dtype, float32 or bfloat16, on the CPU; k is None where it is q. What is
computed, and the names, are those of `closed_form.py`; `lse` (2, B, H, N) holds what is subtracted from the scores of a
row, in base 2, and 1 / sum_j 2^(score - that), from which the backward passes restore the probabilities.
"""

import torch
from torch import Tensor

from vitgan_kernels import native_support
from vitgan_kernels.l2_attention.layout import empty_like

DTYPES = (torch.float32, torch.bfloat16)


def forward(q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool) -> tuple[Tensor, Tensor]:
    """O in the dtype of the inputs, and lse in float32."""
    q, v = _adjacent(q), _adjacent(v)
    keys = q if k is None else _adjacent(k)
    out = empty_like(q, v.shape[-1])
    lse = q.new_empty((2, *q.shape[:3]), dtype=torch.float32)
    native_support.load().l2_attention_forward(
        *_settings(q, k, v, lse, scale, euclidean), *_view(q), *_view(keys), *_view(v), *_view(out)
    )
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, lse: Tensor, scale: float, euclidean: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dQ, dK (None where K is Q), dV."""
    grad, q, v = _adjacent(grad), _adjacent(q), _adjacent(v)
    keys = q if k is None else _adjacent(k)
    dq, dv = empty_like(q), empty_like(v)
    dk = None if k is None else empty_like(keys)
    native_support.load().l2_attention_backward(
        *_settings(q, k, v, lse, scale, euclidean),
        *(*_view(grad), *_view(q), *_view(keys), *_view(v)),
        *(*_view(dq), *_view(dq if dk is None else dk), *_view(dv)),
    )
    return dq, dk, dv


def double_backward(
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    lse: Tensor,
    scale: float,
    euclidean: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """ddO, dQ2, dK2 (None where K is Q), dV2, from the cotangents a of dQ, b of dK (None where K is Q) and c of dV."""
    a, c, grad, q, v = (_adjacent(x) for x in (a, c, grad, q, v))
    b, keys = a if b is None else _adjacent(b), q if k is None else _adjacent(k)
    ddo, dq, dv = empty_like(grad), empty_like(q), empty_like(v)
    dk = None if k is None else empty_like(keys)
    native_support.load().l2_attention_double_backward(
        *_settings(q, k, v, lse, scale, euclidean),
        *(*_view(a), *_view(b), *_view(c), *_view(grad), *_view(q), *_view(keys), *_view(v)),
        *(*_view(ddo), *_view(dq), *_view(dq if dk is None else dk), *_view(dv)),
    )
    return ddo, dq, dk, dv


def _adjacent(x: Tensor) -> Tensor:
    """The kernels take any strides but those of the last dimension: its numbers must be adjacent, or are copied."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _view(x: Tensor) -> tuple[int, tuple[int, ...]]:
    return x.data_ptr(), x.stride()


def _settings(q: Tensor, k: Tensor | None, v: Tensor, lse: Tensor, scale: float, euclidean: bool) -> tuple[object, ...]:
    threads = torch.get_num_threads()
    return threads, scale, euclidean, q.dtype == torch.bfloat16, k is None, q.shape, v.shape, lse.data_ptr()
