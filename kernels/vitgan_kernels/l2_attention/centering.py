"""Where distances are measured from: the expanded square loses digits far from the origin."""

import torch
from torch import Tensor

GROUP = 16  # keys: with so few the origin lies near enough to their middle, and the sum is quick


def centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys seen from among the keys, which changes no distance and so no derivative.

    Far from the origin the expanded square is a small difference of large numbers. The new origin is, feature by
    feature, the median of the means of three groups of keys: one key far from the others does not move it.
    """
    chosen = k.detach()
    means = _group_means_traced(chosen) if torch.compiler.is_compiling() else _group_means(chosen)
    low, high = torch.minimum(means[0], means[-1]), torch.maximum(means[0], means[-1])
    centre = torch.maximum(low, torch.minimum(high, means[len(means) // 2])).unsqueeze(-2)
    shifted = k - centre
    return shifted if q is k else q - centre, shifted


def _group_means(k: Tensor) -> tuple[Tensor, ...]:
    keys = k.shape[-2]
    each = min(max(keys // 3, 1), GROUP)
    stride = max(keys // (3 * each), 1)
    left_out = max(keys - 3 * each * stride, 0)  # at both ends alike: early and late keys may differ
    chosen = k[..., left_out // 2 :: stride, :].narrow(-2, 0, min(3 * each, keys))
    return chosen.unflatten(-2, (each, -1)).mean(-3).unbind(-2)


def _group_means_traced(k: Tensor) -> tuple[Tensor, ...]:
    """Of keys whose number may be a symbol, which no shape here depends on: some keys twice where there are few."""
    chosen = k.index_select(-2, torch.arange(3 * GROUP, device=k.device) * k.shape[-2] // (3 * GROUP))
    return chosen.unflatten(-2, (GROUP, 3)).mean(-3).unbind(-2)
