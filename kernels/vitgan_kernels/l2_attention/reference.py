"""The definition of L2-distance attention."""

import torch
from torch import Tensor


def l2_attention(q: Tensor, k: Tensor | None, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax_j(-scale * ||q_i - k_j||^2) @ v, computed in at least float32 and returned in the dtype of v.

    The term -scale * ||q_i||^2 is constant along a row and leaves the softmax, so the scores are
    2 * scale * q_i . k_j - scale * ||k_j||^2, which is smooth everywhere, at q_i = k_j too. k=None means k = q.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries = q.to(precise)
    keys = queries if k is None else k.to(precise)
    norms = keys.square().sum(-1).unsqueeze(-2)
    weights = torch.softmax(scale * (2 * queries @ keys.transpose(-1, -2) - norms), dim=-1)
    return (weights @ v.to(precise)).to(v.dtype)
