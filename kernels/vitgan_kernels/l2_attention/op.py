"""The public function: argument checks and the choice of an implementation."""

from typing import Any

import torch
from torch import Tensor, broadcast_shapes

from vitgan_kernels import native_support, triton_support
from vitgan_kernels.backends import Implementation, Operator, always
from vitgan_kernels.checks import autocast, check_finite_number, check_tensors, without_autocast
from vitgan_kernels.l2_attention import native, reference, tiles, torch_ops
from vitgan_kernels.l2_attention.centering import centred
from vitgan_kernels.l2_attention.reference import Metric

METRICS = ("sqeuclidean", "euclidean")
CPU_DTYPES = (*native.DTYPES, torch.float16)  # the last by conversion


def l2_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    *,
    scale: float | Tensor | None = None,
    metric: Metric = "sqeuclidean",
    backend: str | None = None,
) -> Tensor:
    """Attention whose score is a distance: softmax_j(-scale * ||q_i - k_j||^2) @ v.

    With q = k (k=None, or q itself) and bounded inputs this attention is Lipschitz, which dot-product attention
    is not (Kim, Papamakarios, Mnih, "The Lipschitz constant of self-attention", 2021; ViTGAN section 3.2).

    Args:
        q: (..., N, d) queries, floating point.
        k: (..., M, d) keys, or None, which means q itself: one load, one gradient.
        v: (..., M, e) values. Leading dimensions of q, k and v broadcast.
        scale: score per distance, of either sign, or a tensor of one number; None means d ** -0.5.
        metric: "sqeuclidean", or "euclidean" for softmax_j(-scale * ||q_i - k_j||). The second has no derivative where
            a query is a key; 0 is taken there, as for PyTorch's norms.
        backend: see `use_backend`.

    Returns:
        (..., N, e) in the dtype of the inputs (under autocast, its dtype).

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: shapes or devices do not fit, there is no key, scale is not finite, or metric is not known.

    Derivatives: reverse mode to any order, fused to order 2; order 3 and more come from the closed form of order 2 in
    plain PyTorch. Forward mode, torch.func, and a scale that is a tensor run the reference, which has any order.

    Precision: scores, softmax and sums are float32 for lower dtypes. The scores of "sqeuclidean" come from the expanded
    square, whose rounding grows with the square of the tokens' size: the reference, and the kernels in float32, first
    move the origin among the keys. That helps where the tokens of a sequence lie together; where they lie in groups far
    apart, a score is wrong by about eps * scale * (distance between the groups)^2. In the kernels, tokens of 16 bits
    may stay where they are: shift them to the origin where they lie far from it, before they are rounded to 16 bits.
    The kernels may round probabilities to bfloat16 before they multiply values of it; products of float32 on a GPU
    follow PyTorch's setting (`torch.set_float32_matmul_precision`). Of "euclidean", the Triton kernels' derivatives
    lose accuracy where a query nearly is a key, in proportion to |q| / distance; the reference and the C++ kernels,
    which subtract first, do not.
    """
    (q, k, v), settings = _arguments(q, k, v, scale=scale, metric=metric)
    with without_autocast(q):
        kernels = OPERATOR.select(backend, q, k, v, **settings).backend
        if kernels == "reference":
            return reference.l2_attention(q, k, v, **settings)
        return _fused(q, k, v, kernels=kernels, **settings)


def _arguments(
    q: Tensor, k: Tensor | None, v: Tensor, *, scale: float | Tensor | None = None, metric: Metric = "sqeuclidean"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the implementations take, checked."""
    if k is q:
        k = None
    q, k, v = autocast(q, k, v)  # type: ignore[assignment]
    check_tensors("l2_attention", optional="k", q=q, k=k, v=v)
    _check_shapes(q, q if k is None else k, v)
    return (q, k, v), {"scale": check_settings("l2_attention", scale, metric), "metric": metric}


def check_settings(op: str, scale: float | Tensor | None, metric: str) -> float | Tensor | None:
    """The scale as a number, a symbol or a tensor of one number; ValueError unless it and the metric are legal."""
    if metric not in METRICS:
        raise ValueError(f"{op}: metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if scale is None or (isinstance(scale, Tensor) and scale.ndim == 0 and scale.is_floating_point()):
        return scale
    return check_finite_number(op, "scale", scale)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise _misfit("q, k, v need at least 2 dimensions (tokens, features)", q, k, v)
    if q.shape[-1] != k.shape[-1]:
        raise _misfit("q and k must have the same number of features", q, k, v)
    if k.shape[-2] != v.shape[-2]:
        raise _misfit("k and v must have the same number of tokens", q, k, v)
    if k.shape[-2] == 0 or q.shape[-1] == 0:
        raise _misfit("a softmax needs at least one key of at least one feature", q, k, v)
    try:
        _leading(q, k, v)
    except RuntimeError:
        raise _misfit("the leading dimensions do not broadcast", q, k, v) from None


def _leading(q: Tensor, k: Tensor, v: Tensor) -> torch.Size:
    """All dimensions but two, broadcast; RuntimeError where they do not."""
    shapes = q.shape[:-2], k.shape[:-2], v.shape[:-2]
    return shapes[0] if shapes[0] == shapes[1] == shapes[2] else broadcast_shapes(*shapes)


def _misfit(what: str, q: Tensor, k: Tensor, v: Tensor) -> ValueError:
    return ValueError(f"l2_attention: {what}, got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}")


def _fused(
    q: Tensor, k: Tensor | None, v: Tensor, *, kernels: str, scale: float | None, metric: Metric = "sqeuclidean"
) -> Tensor:
    """The kernels, which know exactly two leading dimensions."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    dtype = v.dtype
    if kernels == "cpp" and dtype == torch.float16:
        q, k, v = q.float(), None if k is None else k.float(), v.float()
    elif kernels == "triton" and dtype == torch.float32 and metric == "sqeuclidean":
        q, shifted = centred(q, q if k is None else k)
        k = None if k is None else shifted
    leading = _leading(q, q if k is None else k, v)
    keys = None if k is None else _two_leading(k, leading)
    out = torch_ops.l2_attention(
        _two_leading(q, leading), keys, _two_leading(v, leading), scale, metric == "euclidean", kernels
    )
    out = out if out.dtype == dtype else out.to(dtype)
    return out if len(leading) == 2 else out.reshape(*leading, *out.shape[-2:])


def _two_leading(x: Tensor, leading: torch.Size) -> Tensor:
    if x.shape[:-2] != leading:
        x = x.expand(*leading, *x.shape[-2:])
    if len(leading) == 2:
        return x
    if len(leading) > 2:
        return x.flatten(0, -4)
    return x.reshape((1,) * (2 - len(leading)) + x.shape)


def _on_cpu(q: Tensor, k: Tensor | None, v: Tensor, *, scale: object = None, metric: str = "") -> tuple[bool, str]:
    why_not = native_support.unable(q, CPU_DTYPES) or _no_kernels(q, v, scale)
    if why_not is not None:
        return False, why_not
    return True, f"{native_support.available()[1]}, reverse mode fused to order 2"


def _on_gpu(q: Tensor, k: Tensor | None, v: Tensor, **settings: Any) -> tuple[bool, str]:
    return _by_triton(q, k, v, interpreted=False, **settings)


def _on_interpreter(q: Tensor, k: Tensor | None, v: Tensor, **settings: Any) -> tuple[bool, str]:
    return _by_triton(q, k, v, interpreted=True, **settings)


def _by_triton(
    q: Tensor, k: Tensor | None, v: Tensor, *, interpreted: bool, scale: object = None, metric: str = ""
) -> tuple[bool, str]:
    why_not = triton_support.unable(q, k, v, interpreted=interpreted) or _no_kernels(q, v, scale)
    if why_not is not None:
        return False, why_not
    d, e = q.shape[-1], v.shape[-1]
    if d > tiles.WIDEST or e > tiles.WIDEST:
        return False, f"d and e go to {tiles.WIDEST}, and here one is larger"
    where = "interpreted on the CPU" if interpreted else "fused"
    if torch.compiler.is_compiling():  # where sizes may be symbols, which a message would fix
        return True, f"{where}, reverse mode fused to order 2"
    shape = tiles.Shape(q.shape[-2], v.shape[-2], d, e, q.element_size(), metric == "euclidean")
    return True, f"{where}, reverse mode fused to order 2; {tiles.reason(shape)}"


def _no_kernels(q: Tensor, v: Tensor, scale: object) -> str | None:
    if isinstance(scale, Tensor):
        return "scale is a tensor, and the kernels have no derivative in it"
    if q.numel() == 0 or v.numel() == 0:
        return "a tensor is empty"
    return None


OPERATOR = Operator(
    "l2_attention",
    _arguments,
    [
        Implementation("cpp", _fused, _on_cpu),
        Implementation("triton", _fused, _on_gpu),
        Implementation("reference", reference.l2_attention, always),
    ],
)
if triton_support.INTERPRETED:  # after the reference, so that it runs only where it is asked for
    OPERATOR.implementations.append(Implementation("triton", _fused, _on_interpreter))
