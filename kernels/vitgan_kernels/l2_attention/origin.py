"""Where distances are measured from: the expanded square loses digits far from the origin."""

import torch
from torch import Tensor

GROUP = 16  # keys: with so few the origin lies near enough to their middle, and the sum is quick


def centred(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys seen from among the keys, which changes no distance and so no derivative.

    Far from the origin the expanded square is a small difference of large numbers. The new origin is, feature by
    feature, the median of the means of three groups of keys: one key far from the others does not move it.
    """
    keys = k.shape[-2]
    each = min(max(keys // 3, 1), GROUP)
    stride = max(keys // (3 * each), 1)
    left_out = max(keys - 3 * each * stride, 0)  # at both ends alike: early and late keys may differ
    chosen = k.detach()[..., left_out // 2 :: stride, :].narrow(-2, 0, min(3 * each, keys))
    means = chosen.unflatten(-2, (each, -1)).mean(-3).unbind(-2)
    low, high = torch.minimum(means[0], means[-1]), torch.maximum(means[0], means[-1])
    centre = torch.maximum(low, torch.minimum(high, means[len(means) // 2])).unsqueeze(-2)
    shifted = k - centre
    return shifted if q is k else q - centre, shifted
