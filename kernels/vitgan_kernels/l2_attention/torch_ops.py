"""L2 attention as operators registered with PyTorch: a chain in which each is the backward of the one before.

    vitgan_kernels::l2_attention                    O and the log-sum-exp
    vitgan_kernels::l2_attention_backward           the gradients of q, k, v
    vitgan_kernels::l2_attention_double_backward    the gradients of dO, q, k, v; it has none itself

Tensors are (B, H, N, width); k is None where it is q, and its gradient then an empty tensor. On CUDA devices the Triton
kernels run; on the CPU the closed forms of `closed_form.py`, or the kernels where Triton's interpreter is on.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vitgan_kernels import triton_support
from vitgan_kernels.l2_attention import closed_form
from vitgan_kernels.l2_attention.layout import empty_like, empty_lse

LIBRARY = torch.library.Library("vitgan_kernels", "FRAGMENT")
INPUTS = "Tensor q, Tensor? k, Tensor v"
SETTINGS = "float scale, bool euclidean"
LIBRARY.define(f"l2_attention({INPUTS}, {SETTINGS}) -> (Tensor out, Tensor lse)")
LIBRARY.define(
    f"l2_attention_backward(Tensor grad, {INPUTS}, Tensor out, Tensor lse, {SETTINGS}) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    f"l2_attention_double_backward(Tensor a, Tensor? b, Tensor c, Tensor grad, {INPUTS}, Tensor out, Tensor lse, "
    f"{SETTINGS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
OPS = torch.ops.vitgan_kernels


def l2_attention(q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool) -> Tensor:
    """The chain's first operator, without its log-sum-exp: (B, H, N, d), (B, H, M, d), (B, H, M, e) -> (B, H, N, e).

    Derivatives: reverse mode to order 2; order 3 is an error.
    """
    return OPS.l2_attention.default(q, k, v, scale, euclidean)[0]


def _kernels() -> ModuleType:
    from vitgan_kernels.l2_attention import launch  # here, because Triton is optional and slow to import

    return launch


def _on_cpu(name: str) -> Callable[..., tuple[Tensor, ...]]:
    def run(*args: Any) -> tuple[Tensor, ...]:
        first = _checked(args)
        if triton_support.INTERPRETED and first.dtype in triton_support.DTYPES:
            return _without_none(getattr(_kernels(), name)(*args))
        results = _without_none(getattr(closed_form, name)(*args))
        return tuple(_laid_out(x, like) for x, like in zip(results, FAKES[name](*args), strict=True))

    return run


def _on_cuda(name: str) -> Callable[..., tuple[Tensor, ...]]:
    def run(*args: Any) -> tuple[Tensor, ...]:
        first = _checked(args)
        if first.device.index == torch.cuda.current_device():
            return _without_none(getattr(_kernels(), name)(*args))
        with torch.cuda.device(first.device):  # Triton launches on the current one
            return _without_none(getattr(_kernels(), name)(*args))

    return run


def _checked(args: tuple[Any, ...]) -> Tensor:
    """The first tensor. Raises where a tangent would be lost, as when a function compiled before meets dual tensors."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            "l2_attention: the fused kernels have no forward-mode derivative. Differentiate the function that was not "
            "compiled, or compile it with backend='reference'."
        )
    return tensors[0]


def _without_none(results: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    first = results[0]
    assert first is not None
    return tuple(first.new_empty(0) if x is None else x for x in results)


def _laid_out(x: Tensor, like: Tensor) -> Tensor:
    return x if x.stride() == like.stride() else like.copy_(x)


def _fake_forward(q: Tensor, k: Tensor | None, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return empty_like(q, v.shape[-1]), empty_lse(q)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    if k is None:
        return empty_like(q), q.new_empty(0), empty_like(v)
    return empty_like(q), empty_like(k), empty_like(v)


def _fake_double_backward(
    a: Tensor, b: Tensor | None, c: Tensor, grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, out: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return empty_like(out), *_fake_backward(grad, q, k, v)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.euclidean = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    q, k, v, out, lse = ctx.saved_tensors
    dq, dk, dv = OPS.l2_attention_backward.default(grad, q, k, v, out, lse, ctx.scale, ctx.euclidean)
    return dq, None if k is None else dk, dv, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.euclidean = inputs
    ctx.save_for_backward(*tensors)


def _double_backward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor | None, ...]:
    # out and lse are functions of q, k and v, and these gradients are the whole ones: nothing flows through the two.
    grad, q, k, v, out, lse = ctx.saved_tensors
    ddo, dq, dk, dv = OPS.l2_attention_double_backward.default(
        a, None if k is None else b, c, grad, q, k, v, out, lse, ctx.scale, ctx.euclidean
    )
    return ddo, dq, None if k is None else dk, dv, None, None, None, None


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    pass


def _third_order(ctx: Any, *_: Tensor) -> None:
    raise RuntimeError(
        "l2_attention: the fused kernels have derivatives to order 2, and a third was asked for. "
        "Use backend='reference', which has any order."
    )


FAKES: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "forward": _fake_forward,
    "backward": _fake_backward,
    "double_backward": _fake_double_backward,
}
CHAIN: dict[str, tuple[str, Callable[..., Any], Callable[..., None]]] = {
    "forward": ("l2_attention", _backward, _save_forward),
    "backward": ("l2_attention_backward", _double_backward, _save_backward),
    "double_backward": ("l2_attention_double_backward", _third_order, _save_nothing),
}
for _name, (_operator, _gradient, _save) in CHAIN.items():
    LIBRARY.impl(_operator, _on_cpu(_name), "CPU")
    LIBRARY.impl(_operator, _on_cuda(_name), "CUDA")
    torch.library.register_fake(f"vitgan_kernels::{_operator}", FAKES[_name], lib=LIBRARY)
    torch.library.register_autograd(f"vitgan_kernels::{_operator}", _gradient, setup_context=_save, lib=LIBRARY)
