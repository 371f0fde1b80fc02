"""The definition of L2-distance attention."""

from typing import Literal

import torch
from torch import Tensor

from vitgan_kernels.l2_attention.centering import centred

Metric = Literal["sqeuclidean", "euclidean"]  # the names that scipy.spatial.distance gives them


def l2_attention(
    q: Tensor, k: Tensor | None, v: Tensor, *, scale: float | Tensor | None = None, metric: Metric = "sqeuclidean"
) -> Tensor:
    """softmax_j(-scale * distance(q_i, k_j)) @ v, computed in at least float32 and returned in the dtype of v.

    Of the squared distance, the term -scale * ||q_i||^2 is constant along a row and leaves the softmax, so the scores
    are 2 * scale * q_i . k_j - scale * ||k_j||^2, which is smooth everywhere, at q_i = k_j too. The distance itself has
    no derivative there: 0 is taken, to every order. k=None means k = q.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    queries = q.to(precise)
    keys = queries if k is None else k.to(precise)
    if metric == "euclidean":
        scores = -scale * _root(squared_distances(queries, keys))
    else:
        queries, keys = centred(queries, keys)
        norms = keys.square().sum(-1).unsqueeze(-2)
        scores = (2 * scale * queries) @ keys.transpose(-1, -2) - scale * norms
    return (torch.softmax(scores, dim=-1) @ v.to(precise)).to(v.dtype)


def squared_distances(q: Tensor, k: Tensor) -> Tensor:
    """||q_i - k_j||^2 from the differences: near 0 the difference of squares keeps no correct digit."""
    return (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)


def _root(x: Tensor) -> Tensor:
    """sqrt(x), with every derivative 0 where x = 0, and not-a-number where x is that."""
    zero = x == 0
    return torch.where(zero, 0, torch.where(zero, 1, x).sqrt())
