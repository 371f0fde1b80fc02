"""L2 attention as PyTorch knows it: three operators, each the backward of the one before, and any further order.

    vitgan_kernels::l2_attention                    O and lse
    vitgan_kernels::l2_attention_backward           the gradients of q, k, v
    vitgan_kernels::l2_attention_double_backward    the gradients of dO, q, k, v

Tensors are (B, H, N, width); k is None where it is q, and its gradient then an empty tensor. `kernels` says who
computes: "cpp" (native.py), "triton" (launch.py) or "closed_form" (any dtype). `lse` is what the backward passes of the
same kernels restore the probabilities from. Order 3 and more differentiate the closed form of order 2.

In eager mode the chain is of autograd.Functions, which cost less than registered operators. Those are for what is
compiled, and for tensors that do not hold their numbers themselves.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from vitgan_kernels import triton_support
from vitgan_kernels.l2_attention import closed_form, native
from vitgan_kernels.l2_attention.layout import empty_like, empty_lse

LIBRARY = torch.library.Library("vitgan_kernels", "FRAGMENT")
INPUTS = "Tensor q, Tensor? k, Tensor v"
SAVED = f"{INPUTS}, Tensor out, Tensor lse"
SETTINGS = "Scalar scale, bool euclidean, str kernels"  # a float there would tie a graph to its value
LIBRARY.define(f"l2_attention({INPUTS}, {SETTINGS}) -> (Tensor out, Tensor lse)")
LIBRARY.define(f"l2_attention_backward(Tensor grad, {SAVED}, {SETTINGS}) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    f"l2_attention_double_backward(Tensor a, Tensor? b, Tensor c, Tensor grad, {SAVED}, {SETTINGS}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
OPS = torch.ops.vitgan_kernels
PLAIN = (Tensor, torch.nn.Parameter)


def l2_attention(q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool, kernels: str) -> Tensor:
    """(B, H, N, d), (B, H, M, d), (B, H, M, e) -> (B, H, N, e). Derivatives: reverse mode, any order."""
    if torch.compiler.is_compiling() or not _holds_numbers(q, k, v):
        return OPS.l2_attention.default(q, k, v, scale, euclidean, kernels)[0]
    if torch.is_grad_enabled() and (q.requires_grad or v.requires_grad or (k is not None and k.requires_grad)):
        return Attention.apply(q, k, v, scale, euclidean, kernels)
    return forward(q, k, v, scale, euclidean, kernels)[0]


def _holds_numbers(q: Tensor, k: Tensor | None, v: Tensor) -> bool:
    """Whether all are plain tensors, and nobody watches what is dispatched."""
    plain = type(q) in PLAIN and type(v) in PLAIN and (k is None or type(k) in PLAIN)
    return plain and torch._C._len_torch_dispatch_stack() == 0


def forward(
    q: Tensor, k: Tensor | None, v: Tensor, scale: float, euclidean: bool, kernels: str
) -> tuple[Tensor, Tensor]:
    """O and lse."""
    if kernels == "cpp":
        return native.forward(q, k, v, scale, euclidean)
    if kernels == "triton":
        from vitgan_kernels.l2_attention import launch  # here, because Triton is optional and slow to import

        with _on_device(q):
            return launch.forward(q, k, v, scale, euclidean)
    return closed_form.forward(q, k, v, scale, euclidean)


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    euclidean: bool,
    kernels: str,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """dQ, dK (None where K is Q), dV."""
    if _transformed(grad):
        kernels = "closed_form"
    if kernels == "cpp":
        return native.backward(grad, q, k, v, lse, scale, euclidean)
    if kernels == "triton":
        from vitgan_kernels.l2_attention import launch

        with _on_device(q):
            return launch.backward(grad, q, k, v, out, lse, scale, euclidean)
    return closed_form.backward(grad, q, k, v, scale, euclidean)


def double_backward(
    a: Tensor,
    b: Tensor | None,
    c: Tensor,
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    euclidean: bool,
    kernels: str,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """ddO, dQ2, dK2 (None where K is Q), dV2."""
    if _transformed(a, c, grad):
        kernels = "closed_form"
    if kernels == "cpp":
        return native.double_backward(a, b, c, grad, q, k, v, lse, scale, euclidean)
    if kernels == "triton":
        from vitgan_kernels.l2_attention import launch

        with _on_device(q):
            return launch.double_backward(a, b, c, grad, q, k, v, out, lse, scale, euclidean)
    return closed_form.double_backward(a, b, c, grad, q, k, v, scale, euclidean)


def _transformed(*grads: Tensor) -> bool:
    """Whether a vmap is under way, of torch.func or autograd's own (is_grads_batched)."""
    batched = any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)
    return batched or triton_support.transform() is not None


def _on_device(x: Tensor) -> Any:
    """Triton launches on the current CUDA device."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


# --- In eager mode


class Attention(Function):
    """O. Its backward is an operation of its own, so that it can be differentiated."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor | None, v: Tensor, *settings: Any) -> Tensor:
        out, lse = forward(q, k, v, *settings)
        ctx.settings = settings
        ctx.save_for_backward(q, k, v, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        run = AttentionBackward.apply if _records() else backward
        return *run(grad, *ctx.saved_tensors, *ctx.settings), None, None, None


class AttentionBackward(Function):
    """dQ, dK, dV. O and lse are functions of the inputs, whose gradients are whole: nothing flows through the two."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, ctx.scale, ctx.euclidean, ctx.kernels = inputs
        ctx.save_for_backward(*tensors)
        return backward(*inputs)

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor | None, c: Tensor) -> tuple[Tensor | None, ...]:
        grad, q, k, v, out, lse = ctx.saved_tensors
        settings = (ctx.scale, ctx.euclidean, ctx.kernels)
        inputs = (a, None if k is None else b, c, grad, q, k, v, out, lse, *settings)
        run = AttentionDoubleBackward.apply if _records() else double_backward
        ddo, dq, dk, dv = run(*inputs)
        return ddo, dq, dk, dv, None, None, None, None, None


class AttentionDoubleBackward(Function):
    """ddO, dQ2, dK2, dV2."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor | None, ...]:
        *tensors, ctx.scale, ctx.euclidean, _ = inputs
        ctx.save_for_backward(*tensors[:7])
        return double_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        return *third_order(ctx.saved_tensors, ctx.scale, ctx.euclidean, cotangents), None, None, None, None, None


def _records() -> bool:
    """Whether a graph is asked for, of which no transform of torch.func keeps the record itself."""
    return torch.is_grad_enabled() and triton_support.transform() is None


def third_order(
    inputs: tuple[Tensor | None, ...], scale: float, euclidean: bool, cotangents: tuple[Tensor | None, ...]
) -> list[Tensor | None]:
    """The gradients of a, b, c, dO, q, k, v, themselves differentiable where a graph is asked for."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [None if x is None else _as_leaf(x) for x in inputs]
        results = closed_form.double_backward(*leaves, scale, euclidean)  # type: ignore[arg-type, call-arg]
        pairs = [(x, y) for x, y in zip(results, cotangents, strict=True) if x is not None and y is not None]
        given = [x for x in leaves if x is not None]
        outputs, directions = zip(*pairs, strict=True)
        grads = iter(torch.autograd.grad(outputs, given, directions, create_graph=create_graph, allow_unused=True))
    return [None if x is None else next(grads) for x in leaves]


def _as_leaf(x: Tensor) -> Tensor:
    """The same numbers as a tensor of its own, where a gradient ends."""
    return x.view_as(x) if x.requires_grad else x.detach().requires_grad_()


# --- Registered


def _registered_forward(*args: Any) -> tuple[Tensor, ...]:
    _check_tangents(args)
    return _as_declared(forward(*args), _fake_forward(*args))


def _registered_backward(*args: Any) -> tuple[Tensor, ...]:
    _check_tangents(args)
    return _as_declared(backward(*args), _fake_backward(*args))


def _registered_double_backward(*args: Any) -> tuple[Tensor, ...]:
    _check_tangents(args)
    return _as_declared(double_backward(*args), _fake_double_backward(*args))


def _check_tangents(args: tuple[Any, ...]) -> None:
    """Raise where a tangent would be lost, as when a function compiled before meets dual tensors."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(
            "l2_attention: the fused kernels have no forward-mode derivative. Differentiate the function that was not "
            "compiled, or compile it with backend='reference'."
        )


def _as_declared(results: tuple[Tensor | None, ...], declared: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """With an empty tensor for None, and laid out in memory as the compiler was told."""
    pairs = zip(results, declared, strict=True)
    return tuple(fake if x is None else x if x.stride() == fake.stride() else fake.copy_(x) for x, fake in pairs)


def _fake_forward(q: Tensor, k: Tensor | None, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return empty_like(q, v.shape[-1]), empty_lse(q)


def _fake_backward(grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return empty_like(q), q.new_empty(0) if k is None else empty_like(k), empty_like(v)


def _fake_double_backward(
    a: Tensor, b: Tensor | None, c: Tensor, grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, out: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return empty_like(out), *_fake_backward(grad, q, k, v)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _first_order(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    q, k, v, out, lse = ctx.saved_tensors
    dq, dk, dv = OPS.l2_attention_backward.default(grad, q, k, v, out, lse, *ctx.settings)
    return dq, None if k is None else dk, dv, None, None, None


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.scale, ctx.euclidean, ctx.kernels = inputs
    ctx.save_for_backward(*tensors)


def _second_order(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor | None, ...]:
    grad, q, k, v, out, lse = ctx.saved_tensors
    settings = (ctx.scale, ctx.euclidean, ctx.kernels)
    ddo, dq, dk, dv = OPS.l2_attention_double_backward.default(
        a, None if k is None else b, c, grad, q, k, v, out, lse, *settings
    )
    return ddo, dq, None if k is None else dk, dv, None, None, None, None, None


def _third_order(ctx: Any, ddo: Tensor, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors[:7]
    cotangents = (ddo, dq, None if inputs[5] is None else dk, dv)
    return *third_order(inputs, ctx.scale, ctx.euclidean, cotangents), None, None, None, None, None


def _register(
    name: str, run: Callable[..., Any], fake: Callable[..., Any], save: Callable[..., Any], gradient: Callable[..., Any]
) -> None:
    LIBRARY.impl(name, run, "CPU")
    LIBRARY.impl(name, run, "CUDA")
    torch.library.register_fake(f"vitgan_kernels::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"vitgan_kernels::{name}", gradient, setup_context=save, lib=LIBRARY)


_register("l2_attention", _registered_forward, _fake_forward, _save_forward, _first_order)
_register("l2_attention_backward", _registered_backward, _fake_backward, _save, _second_order)
_register("l2_attention_double_backward", _registered_double_backward, _fake_double_backward, _save, _third_order)
