"""The compiled modulated SIREN on CPU tensors: calls into `vitgan_kernels._native`, and the chain of their gradients.

In eager mode each order is one `autograd.Function`, which costs a fraction of a registered operator; `torch_ops.py`
has those for torch.compile. The gradient of a gradient is made of PyTorch operations (`closed_form.py`), and so are all
orders after it.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from vitgan_kernels import native_support, triton_support
from vitgan_kernels.checks import without_autocast
from vitgan_kernels.modulated_siren import closed_form
from vitgan_kernels.modulated_siren.closed_form import Stack
from vitgan_kernels.native_support import address

DTYPES = (torch.float32, torch.bfloat16)
_module = functools.cache(native_support.load)


def modulated_siren(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
) -> Tensor:
    """A stack of modulated layers, with a sine after the last one too if `sine`; eps is None without demodulation."""
    tensors = (x, *weights, *styles, *biases)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Forward.apply(omega, sine, eps, *tensors)
    return forward(Stack(x, weights, styles, [], biases), omega, sine, eps, keep=False)[0]


def forward(
    stack: Stack, omega: float, sine: bool, eps: float | None, *, keep: bool
) -> tuple[Tensor, list[Tensor], list[Tensor | None]]:
    """The output (B, P, O), the scales (those of the stack, or the demodulation where there is an eps), and products.

    keep: whether `backward` is to find the products, which saves it as much work as the forward pass is.
    """
    batch, points, depth = stack.styles[0].shape[0], stack.x.shape[-2], len(stack.weights)
    x, layers = stack.x.contiguous(), _contiguous(stack)
    out = torch.empty((batch, points, stack.weights[-1].shape[0]), dtype=x.dtype)
    scales = list(stack.scales) if eps is None else [torch.empty((batch, w.shape[0])) for w in stack.weights]
    products: list[Tensor | None] = [None] * depth
    if keep and not _products_are_cheap(x.dtype):
        count = depth if sine or scales else depth - 1
        products[:count] = [torch.empty((batch * points, _wide(w.shape[0]))) for w in stack.weights[:count]]
    arguments = [*_options(stack, omega, sine, eps), x.data_ptr(), out.data_ptr(), 0, 0]
    for index, (weight, style, scale, bias) in enumerate(layers):
        place = address(scales[index] if scales else scale)
        arguments += (weight.shape[1], weight.shape[0], weight.data_ptr(), style.data_ptr(), address(bias), place)
        arguments += (address(products[index]), 0, 0, 0, 0)
    _module().modulated_siren_forward(*arguments)
    return out, scales, products


def backward(
    grad: Tensor,
    stack: Stack,
    products: Sequence[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
    needed: Stack,
) -> Stack:
    """The gradients that are needed, each in the dtype of what it is the gradient of; the others are None.

    With an eps the scales in the stack are the demodulation, and have no gradients of their own. needed: bools, or
    empty lists for all False.
    """
    x, grad, layers = stack.x.contiguous(), grad.contiguous(), _contiguous(stack)
    found = Stack(torch.empty_like(x) if needed.x else None, [], [], [], [])
    arguments = [*_options(stack, omega, sine, eps), x.data_ptr(), 0, grad.data_ptr(), address(found.x)]
    for index, (parts, wanted) in enumerate(zip(layers, needed.layers(), strict=True)):
        weight, style, scale, bias = parts
        dw, ds, dg, db = (
            torch.empty_like(p) if p is not None and w else None for p, w in zip(parts, wanted, strict=True)
        )
        arguments += (weight.shape[1], weight.shape[0], weight.data_ptr(), style.data_ptr(), address(bias))
        arguments += (address(scale), address(products[index]), address(dw), address(ds), address(db), address(dg))
        for name, gradient in (("weights", dw), ("styles", ds), ("scales", dg), ("biases", db)):
            getattr(found, name).append(gradient)
    _module().modulated_siren_backward(*arguments)
    return replace(found, scales=found.scales if stack.scales else [], biases=found.biases if stack.biases else [])


def _options(stack: Stack, omega: float, sine: bool, eps: float | None) -> tuple[Any, ...]:
    """The first arguments of a native call."""
    x = stack.x
    sizes = (stack.styles[0].shape[0], x.shape[-2])
    flags = (sine, x.ndim == 2, x.dtype == torch.bfloat16, eps is not None)
    return (torch.get_num_threads(), *sizes, *flags, omega, eps or 0.0)


def _contiguous(stack: Stack) -> list[tuple[Any, ...]]:
    return [tuple(None if part is None else part.contiguous() for part in layer) for layer in stack.layers()]


def _wide(width: int) -> int:
    """Floats in a row of padded memory, as in csrc/modulated_siren.h."""
    return -(-width // 16) * 16


@functools.cache
def _products_are_cheap(dtype: torch.dtype) -> bool:
    """Whether to compute them twice costs less than to keep them."""
    return dtype == torch.bfloat16 and _module().cpu_level() == "amx"


class _Forward(torch.autograd.Function):
    """(omega, sine, eps, x, weights, styles, biases) -> the output."""

    @staticmethod
    def forward(ctx: Any, omega: float, sine: bool, eps: float | None, *tensors: Any) -> Tensor:
        stack = _stack(tensors)
        out, scales, products = forward(stack, omega, sine, eps, keep=True)
        ctx.options = omega, sine, eps
        ctx.save_for_backward(*tensors, *scales, *products)
        ctx.count = len(tensors), len(scales)
        ctx.set_materialize_grads(False)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        needed = ctx.needs_input_grad[3:]
        if grad is None:
            return (None,) * (3 + len(needed))
        tensors, kept = ctx.saved_tensors[: ctx.count[0]], ctx.saved_tensors[ctx.count[0] :]
        if triton_support.transform() is not None or is_legacy_batchedtensor(grad):  # begun after the forward pass
            with without_autocast(grad):
                omega, sine, eps = ctx.options
                found = tuple(_flat(closed_form.backward(grad, _stack(tensors), omega, sine, eps)))
        elif torch.is_grad_enabled():
            found = _Backward.apply(ctx.options, needed, ctx.count[1], grad, *tensors, *kept)
        else:
            found = _first_order(ctx.options, needed, ctx.count[1], grad, tensors, kept)
        return None, None, None, *found


class _Backward(torch.autograd.Function):
    """(options, needed, number of scales, gradient, x, weights, styles, biases, scales, products) -> the gradients."""

    @staticmethod
    def forward(ctx: Any, options: Any, needed: Any, scales: int, grad: Tensor, *tensors: Any) -> Any:
        given = tensors[: len(needed)]
        ctx.options, ctx.needed = options, needed
        ctx.save_for_backward(grad, *given)
        ctx.set_materialize_grads(False)
        return _first_order(options, needed, scales, grad, given, tensors[len(needed) :])

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> tuple[Any, ...]:
        grad, *tensors = ctx.saved_tensors
        omega, sine, eps = ctx.options
        with without_autocast(grad):
            dgrad, found = closed_form.double_backward(_stack(cotangents), grad, _stack(tensors), omega, sine, eps)
        kept = [None] * (len(ctx.needs_input_grad) - 4 - len(tensors))
        return None, None, None, dgrad, *_flat(found), *kept


def _first_order(
    options: tuple[float, bool, float | None],
    needed: Sequence[bool],
    scales: int,
    grad: Tensor,
    tensors: Sequence[Any],
    kept: Sequence[Any],
) -> tuple[Any, ...]:
    stack = _stack(tensors)
    stack.scales = kept[:scales]
    return tuple(_flat(backward(grad, stack, kept[scales:], *options, _stack(needed))))


def _stack(tensors: Sequence[Any]) -> Stack:
    """The opposite of `_flat`."""
    depth = len(tensors) // 3
    weights, styles, biases = tensors[1 : 1 + depth], tensors[1 + depth : 1 + 2 * depth], tensors[1 + 2 * depth :]
    return Stack(tensors[0], weights, styles, [], biases)


def _flat(stack: Stack) -> list[Any]:
    """x, weights, styles, biases."""
    return [stack.x, *stack.weights, *stack.styles, *stack.biases]
