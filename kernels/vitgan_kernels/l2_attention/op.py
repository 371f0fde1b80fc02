"""The public function: argument checks and the choice of an implementation."""

from torch import Tensor, broadcast_shapes

from vitgan_kernels.backends import Implementation, Operator, always
from vitgan_kernels.checks import autocast, check_finite_number, check_tensors, without_autocast
from vitgan_kernels.l2_attention import reference

OPERATOR = Operator("l2_attention", [Implementation("reference", reference.l2_attention, always)])


def l2_attention(
    q: Tensor, k: Tensor | None, v: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Attention whose score is a squared distance: softmax_j(-scale * ||q_i - k_j||^2) @ v.

    With q = k (k=None, or q itself) and bounded inputs this attention is Lipschitz, which dot-product attention
    is not (Kim, Papamakarios, Mnih, "The Lipschitz constant of self-attention", 2021; ViTGAN section 3.2).

    Args:
        q: (..., N, d) queries, floating point.
        k: (..., M, d) keys, or None, which means q itself: one load, one gradient.
        v: (..., M, e) values. Leading dimensions of q, k and v broadcast.
        scale: score per squared distance; None means d ** -0.5.
        backend: see `use_backend`.

    Returns:
        (..., N, e) in the dtype of the inputs (under autocast, its dtype).

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: shapes or devices do not fit, there is no key, or scale is not finite.

    Derivatives: reverse mode to any order, forward mode.
    """
    if k is q:
        k = None
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    check_tensors("l2_attention", optional="k", q=q, k=k, v=v)
    _check_shapes(q, q if k is None else k, v)
    if scale is not None:
        check_finite_number("l2_attention", "scale", scale)
    with without_autocast(q):
        return OPERATOR.select(backend, q, k, v, scale=scale).run(q, k, v, scale=scale)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ValueError(f"l2_attention: q, k, v need at least 2 dimensions (tokens, features), got {shapes}")
    if q.shape[-1] != k.shape[-1]:
        raise ValueError(f"l2_attention: q and k must have the same number of features, got {shapes}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"l2_attention: k and v must have the same number of tokens, got {shapes}")
    if k.shape[-2] == 0 or q.shape[-1] == 0:
        raise ValueError(f"l2_attention: a softmax needs at least one key of at least one feature, got {shapes}")
    try:
        broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    except RuntimeError:
        raise ValueError(f"l2_attention: the leading dimensions do not broadcast, got {shapes}") from None
