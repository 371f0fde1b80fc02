"""Other ways to L2 attention: softmax_j(-c ||q_i - k_j||^2) v with k = q, or of the distance itself; c = d ** -0.5.

Tensors are (B, H, N, d). -c |q_i|^2 is the same along a row and leaves the softmax, so the scores are
2 c q_i . k_j - c |k_j|^2, which fused attentions for dot products can be made to compute.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention


def eager(q: Tensor, v: Tensor) -> Tensor:
    """The expansion, in the dtype of the inputs."""
    scores = 2 * q @ q.mT - q.square().sum(-1).unsqueeze(-2)
    return torch.softmax(q.shape[-1] ** -0.5 * scores, -1) @ v


def sdpa(q: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention of [2 q, 1] and [q, -|q|^2]: one feature more.

    Fused attentions want widths in multiples of 8, so the feature brings zeros with it.
    """
    width = q.shape[-1]
    more = -(width + 1) % 8
    norms = -q.square().sum(-1, keepdim=True)
    queries = torch.cat([2 * q, torch.ones_like(norms), q.new_zeros(*q.shape[:-1], more)], -1)
    keys = torch.cat([q, norms, q.new_zeros(*q.shape[:-1], more)], -1)
    return scaled_dot_product_attention(queries, keys, v, scale=width**-0.5)


def sdpa_math(q: Tensor, v: Tensor) -> Tensor:
    """`sdpa` on the backend that has a second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return sdpa(q, v)


class Flex:
    """FlexAttention, whose score_mod takes the keys' norms off; compiled when it is first called."""

    def __init__(self) -> None:
        self.attention: Callable[..., Tensor] | None = None

    def __call__(self, q: Tensor, v: Tensor) -> Tensor:
        if self.attention is None:
            from torch.nn.attention.flex_attention import flex_attention

            self.attention = torch.compile(flex_attention, dynamic=False)
        scale = q.shape[-1] ** -0.5
        norms = scale * q.float().square().sum(-1)

        def score(value: Tensor, batch: Tensor, head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
            return 2 * value - norms[batch, head, key]

        return self.attention(q, q, v, score_mod=score, scale=scale)


def cdist(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the distance itself, by `torch.cdist`."""
    dtype = q.dtype if q.dtype in (torch.float32, torch.float64) else torch.float32
    distances = torch.cdist(q.to(dtype), k.to(dtype)).to(q.dtype)
    return torch.softmax(-(q.shape[-1] ** -0.5) * distances, -1) @ v


def distances(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of the distance itself, from the expansion of its square: memory of N^2, and exact in float64 where q != k."""
    squares = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
    return torch.softmax(-(q.shape[-1] ** -0.5) * squares.clamp(min=0).sqrt(), -1) @ v
