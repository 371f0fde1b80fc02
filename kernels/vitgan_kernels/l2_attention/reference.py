"""The definition of L2-distance attention."""

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["sqeuclidean", "euclidean"]  # the names that scipy.spatial.distance gives them


def l2_attention(
    q: Tensor, k: Tensor | None, v: Tensor, *, scale: float | None = None, metric: Metric = "sqeuclidean"
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
        scores = scale * (2 * queries @ keys.transpose(-1, -2) - norms)
    return (torch.softmax(scores, dim=-1) @ v.to(precise)).to(v.dtype)


def centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys seen from among the keys, which changes no distance and so no derivative.

    Far from the origin the expanded square is a small difference of large numbers. The new origin is, feature by
    feature, the median of three means, each of every third key: one key far from the others does not move it.
    """
    k_fixed = k.detach()
    groups = [k_fixed[..., start::3, :].mean(-2, keepdim=True) for start in range(min(3, k.shape[-2]))]
    low, high = torch.minimum(groups[0], groups[-1]), torch.maximum(groups[0], groups[-1])
    centre = torch.maximum(low, torch.minimum(high, groups[len(groups) // 2]))
    keys = k - centre
    return keys if q is k else q - centre, keys


def squared_distances(q: Tensor, k: Tensor) -> Tensor:
    """||q_i - k_j||^2 from the differences: near 0 the difference of squares keeps no correct digit."""
    return (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)


def _root(x: Tensor) -> Tensor:
    """sqrt(x), with every derivative 0 where x = 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)
