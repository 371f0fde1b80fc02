"""The memory that L2 attention's results are written to."""

import torch
from torch import Tensor


def empty_like(x: Tensor, width: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """(B, H, N, width), tokens outside heads in memory where x has them so: then heads merge without a copy."""
    b, h, n, d = x.shape
    width = d if width is None else width
    if h > 1 and 0 < x.stride(1) < x.stride(2):
        return x.new_empty((b, n, h, width), dtype=dtype).transpose(1, 2)
    return x.new_empty((b, h, n, width), dtype=dtype)


def row_sums(q: Tensor) -> Tensor:
    """A float32 number for each query: (B, H, N)."""
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def empty_lse(q: Tensor) -> Tensor:
    """The log-sum-exp of each query and what its rounding left over, at least float32: (2, B, H, N)."""
    return q.new_empty((2, *q.shape[:3]), dtype=torch.promote_types(q.dtype, torch.float32))
