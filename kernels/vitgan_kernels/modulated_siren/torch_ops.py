"""The fused modulated SIREN as PyTorch operators: schemas, shapes without values, autograd.

`modulated_siren` is a stack of modulated layers, of which one is `modulated_linear`. scales (B, O) in float32, the
demodulation, multiply the products before the biases; scales and biases are one a layer, or empty lists.
`modulated_siren_backward` is its gradient: of x, the weights and the styles as `needed` says, and of all scales and
biases, in one list. Both run Triton kernels; `modulated_siren_cpp` and `modulated_siren_cpp_backward` are the same in
C++, for torch.compile. The gradient of the second is made of PyTorch operations (`closed_form.py`), and so are all
orders after it.

The demodulation itself is made of PyTorch operations too, and autograd knows them: next to what the kernels do it is
smaller by the number of points.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels import native_support, triton_support
from vitgan_kernels.checks import without_autocast
from vitgan_kernels.modulated_siren import closed_form, native
from vitgan_kernels.modulated_siren.closed_form import Stack, demodulation

_STACK = "Tensor x, Tensor[] weights, Tensor[] styles, Tensor[] scales, Tensor[] biases, float omega, bool sine"
_library = torch.library.Library("vitgan_kernels", "FRAGMENT")
_ops = torch.ops.vitgan_kernels


def by_triton(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
) -> Tensor:
    """A stack of modulated layers by Triton kernels; eps is None without demodulation."""
    return _ops.modulated_siren(*_operands(x, weights, styles, biases, omega, sine, eps))


def by_cpp(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
) -> Tensor:
    """The same by C++, on CPU tensors."""
    return _ops.modulated_siren_cpp(*_operands(x, weights, styles, biases, omega, sine, eps))


def _operands(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
) -> tuple[Any, ...]:
    """The arguments of the operators.

    A graph would be tied to the value of omega, a number that may change between calls: while compiling in float32,
    where it loses no digits, it goes into the layers that have a sine.
    """
    scales = [] if eps is None else [demodulation(w, s, eps) for w, s in zip(weights, styles, strict=True)]
    factors: list[Any] = [1.0] * len(weights)
    if torch.compiler.is_compiling() and x.dtype == torch.float32:
        factors[: len(weights) if sine else -1] = [omega] * (len(weights) - (not sine))
        omega = 1.0
        biases = [b if b is None else b * f for b, f in zip(biases, factors, strict=True)]
        if scales:
            scales = [scale * f for scale, f in zip(scales, factors, strict=True)]
        else:
            weights = [w * f for w, f in zip(weights, factors, strict=True)]
    given: list[Tensor] = []
    if any(bias is not None for bias in biases):
        given = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return x, list(weights), list(styles), scales, given, omega, sine


def _forward(x: Tensor, *rest: Any) -> Tensor:
    from vitgan_kernels.modulated_siren import stack

    *parts, omega, sine = rest
    return stack.forward(x, Stack(x, *parts).layers(), omega, sine)


def _cpp_forward(*arguments: Any) -> Tensor:
    *parts, omega, sine = arguments
    return native.forward(Stack(*parts), omega, sine, None, keep=False)[0]


def _backward(grad: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    from vitgan_kernels.modulated_siren import stack

    *parts, omega, sine, needed = rest
    given = Stack(x, *parts)
    dx, layers = stack.backward(grad, x, given.layers(), omega, sine, needed)
    return _flat(Stack.of_layers(dx, layers, given), needed)


def _cpp_backward(grad: Tensor, *rest: Any) -> list[Tensor]:
    *parts, omega, sine, needed = rest
    given = Stack(*parts)
    depth = len(given.weights)
    needs_x, needs_weights, needs_styles = needed
    scales, biases = ([True] * len(part) for part in (given.scales, given.biases))
    wanted = Stack(needs_x, [needs_weights] * depth, [needs_styles] * depth, scales, biases)
    found = native.backward(grad, given, [None] * depth, omega, sine, None, wanted)
    return _flat(found, needed)


def _on_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current device."""

    def run(first: Tensor, *args: Any) -> Any:
        with torch.cuda.device(first.device):
            return function(first, *args)

    return run


def _forward_shape(x: Tensor, weights: list[Tensor], styles: list[Tensor], *_: Any) -> Tensor:
    return x.new_empty(styles[0].shape[0], x.shape[-2], weights[-1].shape[0])


def _backward_shapes(
    _grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    styles: list[Tensor],
    scales: list[Tensor],
    biases: list[Tensor],
    _omega: float,
    _sine: bool,
    needed: list[bool],
) -> list[Tensor]:
    like = _flat(Stack(x, weights, styles, scales, biases), needed)
    return [tensor.new_empty(tensor.shape) for tensor in like]


def _flat(stack: Stack, needed: Sequence[bool]) -> list[Tensor]:
    """What `modulated_siren_backward` returns."""
    needs_x, needs_weights, needs_styles = needed
    weights, styles = stack.weights if needs_weights else [], stack.styles if needs_styles else []
    return [*([stack.x] if needs_x else []), *weights, *styles, *stack.scales, *stack.biases]


def _unflat(flat: Sequence[Any], needed: Sequence[bool], like: Stack) -> Stack:
    """The opposite of `_flat`, with None for what is not needed."""
    rest = iter(flat)
    depth, (needs_x, needs_weights, needs_styles) = len(like.weights), needed

    def take(count: int, present: bool) -> list[Any]:
        return [next(rest) if present else None for _ in range(count)]

    [x] = take(1, needs_x)
    weights, styles = take(depth, needs_weights), take(depth, needs_styles)
    return Stack(x, weights, styles, take(len(like.scales), True), take(len(like.biases), True))


def _save(ctx: Any, stack: Stack, omega: float, sine: bool, *more: Tensor) -> None:
    ctx.save_for_backward(*more, stack.x, *stack.weights, *stack.styles, *stack.scales, *stack.biases)
    ctx.lists = [len(stack.weights), len(stack.styles), len(stack.scales), len(stack.biases)]
    ctx.omega, ctx.sine = omega, sine


def _saved(ctx: Any, more: int) -> tuple[Any, ...]:
    """What `_save` saved: the tensors in `more`, then the stack."""
    tensors = iter(ctx.saved_tensors)
    first = [next(tensors) for _ in range(more)]
    return *first, Stack(next(tensors), *([next(tensors) for _ in range(length)] for length in ctx.lists))


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *stack, omega, sine = inputs
    _save(ctx, Stack(*stack), omega, sine)


def _gradient(backward: str, unable: Callable[[Tensor], str | None], ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (stack,) = _saved(ctx, 0)
    if unable(stack.x) is None and not torch._C._functorch.is_legacy_batchedtensor(grad):
        needs = ctx.needs_input_grad
        needed = [needs[0], any(needs[1]), any(needs[2])]
        flat = getattr(_ops, backward)(
            grad, stack.x, stack.weights, stack.styles, stack.scales, stack.biases, ctx.omega, ctx.sine, needed
        )
        found = _unflat(flat, needed, stack)
    else:  # batched gradients, a torch.func transform or forward mode, which began after the forward pass
        with without_autocast(stack.x):
            found = closed_form.backward(grad, stack, ctx.omega, ctx.sine)
    return found.x, found.weights, found.styles, found.scales, found.biases, None, None


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    grad, *stack, omega, sine, needed = inputs
    _save(ctx, Stack(*stack), omega, sine, grad)
    ctx.needed = needed
    ctx.set_materialize_grads(False)


def _gradient_of_gradient(ctx: Any, cotangents: list[Tensor | None]) -> tuple[Any, ...]:
    grad, stack = _saved(ctx, 1)
    with without_autocast(stack.x):
        tangents = _unflat(cotangents, ctx.needed, stack)
        dgrad, found = closed_form.double_backward(tangents, grad, stack, ctx.omega, ctx.sine)
    return dgrad, found.x, found.weights, found.styles, found.scales, found.biases, None, None, None


def _triton_is_unable(x: Tensor) -> str | None:
    return triton_support.unable(x, interpreted=x.device.type == "cpu")


def _cpp_is_unable(x: Tensor) -> str | None:
    return native_support.unable(x, native.DTYPES)


def _register(name: str, unable: Callable[[Tensor], str | None]) -> None:
    """Both operators of this name, but for what they run."""
    backward = f"{name}_backward"
    schemas = f"{name}({_STACK}) -> Tensor", f"{backward}(Tensor grad, {_STACK}, bool[] needed) -> Tensor[]"
    for schema in schemas:
        _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    forward, backward = f"vitgan_kernels::{name}", f"vitgan_kernels::{backward}"
    torch.library.register_fake(forward, _forward_shape, lib=_library)
    torch.library.register_fake(backward, _backward_shapes, lib=_library)
    gradient = partial(_gradient, f"{name}_backward", unable)
    torch.library.register_autograd(forward, gradient, setup_context=_save_forward, lib=_library)
    torch.library.register_autograd(backward, _gradient_of_gradient, setup_context=_save_backward, lib=_library)


_register("modulated_siren", _triton_is_unable)
_library.impl("modulated_siren", _on_device(_forward), "CUDA")
_library.impl("modulated_siren_backward", _on_device(_backward), "CUDA")
if triton_support.INTERPRETED:
    _library.impl("modulated_siren", _forward, "CPU")
    _library.impl("modulated_siren_backward", _backward, "CPU")
_register("modulated_siren_cpp", _cpp_is_unable)
_library.impl("modulated_siren_cpp", _cpp_forward, "CPU")
_library.impl("modulated_siren_cpp_backward", _cpp_backward, "CPU")
