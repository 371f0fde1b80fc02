"""The fused modulated SIREN as PyTorch operators: schemas, shapes without values, autograd.

`modulated_siren` is a stack of modulated layers, of which one is `modulated_linear`. scales (B, O) in float32, the
demodulation, multiply the products before the biases; scales and biases are one a layer, or empty lists.
`modulated_siren_backward` is its gradient: of x, the weights and the styles as `needed` says, and of all scales and
biases, in one list. Both run Triton kernels. The gradient of the second is made of PyTorch operations
(`closed_form.py`), and so are all orders after it.

The demodulation itself is made of PyTorch operations too (`demodulation`), and autograd knows them: next to what the
kernels do it is smaller by the number of points.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels import triton_support
from vitgan_kernels.checks import without_autocast
from vitgan_kernels.modulated_siren import closed_form, plan
from vitgan_kernels.modulated_siren.closed_form import Stack

_STACK = "Tensor x, Tensor[] weights, Tensor[] styles, Tensor[] scales, Tensor[] biases, float omega, bool sine"
_library = torch.library.Library("vitgan_kernels", "FRAGMENT")
_library.define(f"modulated_siren({_STACK}) -> Tensor", tags=torch.Tag.pt2_compliant_tag)
_library.define(
    f"modulated_siren_backward(Tensor grad, {_STACK}, bool[] needed) -> Tensor[]", tags=torch.Tag.pt2_compliant_tag
)
_ops = torch.ops.vitgan_kernels


def demodulation(weight: Tensor, style: Tensor, eps: float) -> Tensor:
    """rsqrt(sum_i (weight * style)^2 + eps), (B, O), in float32."""
    return torch.rsqrt(style.float().square() @ weight.float().square().t() + eps)


def modulated_siren(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    omega: float = 30.0,
    demodulate: bool = False,
    final_activation: str | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """`vitgan_kernels.modulated_siren` by the fused operator."""
    scales = [demodulation(w, s, eps) for w, s in zip(weights, styles, strict=True)] if demodulate else []
    given: list[Tensor] = []
    if biases is not None and any(bias is not None for bias in biases):
        given = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, biases, strict=True)]
    return _ops.modulated_siren(x, list(weights), list(styles), scales, given, omega, final_activation == "sine")


def modulated_linear(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    omega: float = 30.0,
    demodulate: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """`vitgan_kernels.modulated_linear` by the fused operator."""
    options: dict[str, Any] = {"omega": omega, "demodulate": demodulate, "final_activation": activation, "eps": eps}
    return modulated_siren(x, [weight], [style], [bias], **options)


def _forward(
    x: Tensor,
    weights: list[Tensor],
    styles: list[Tensor],
    scales: list[Tensor],
    biases: list[Tensor],
    omega: float,
    sine: bool,
) -> Tensor:
    from vitgan_kernels.modulated_siren import stack

    return stack.forward(x, Stack(x, weights, styles, scales, biases).layers(), omega, sine)


def _backward(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    styles: list[Tensor],
    scales: list[Tensor],
    biases: list[Tensor],
    omega: float,
    sine: bool,
    needed: list[bool],
) -> list[Tensor]:
    from vitgan_kernels.modulated_siren import stack

    given = Stack(x, weights, styles, scales, biases)
    dx, layers = stack.backward(grad, x, given.layers(), omega, sine, needed)
    return _flat(Stack.of_layers(dx, layers, given), needed)


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


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (stack,) = _saved(ctx, 0)
    obstacle = triton_support.unable(stack.x, interpreted=stack.x.device.type == "cpu")
    if obstacle is None and not torch._C._functorch.is_legacy_batchedtensor(grad):
        needs = ctx.needs_input_grad
        needed = [needs[0], any(needs[1]), any(needs[2])]
        flat = _ops.modulated_siren_backward(
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


_library.impl("modulated_siren", _on_device(_forward), "CUDA")
_library.impl("modulated_siren_backward", _on_device(_backward), "CUDA")
if triton_support.INTERPRETED:
    _library.impl("modulated_siren", _forward, "CPU")
    _library.impl("modulated_siren_backward", _backward, "CPU")
torch.library.register_fake("vitgan_kernels::modulated_siren", _forward_shape, lib=_library)
torch.library.register_fake("vitgan_kernels::modulated_siren_backward", _backward_shapes, lib=_library)
torch.library.register_autograd("vitgan_kernels::modulated_siren", _gradient, setup_context=_save_forward, lib=_library)
torch.library.register_autograd(
    "vitgan_kernels::modulated_siren_backward", _gradient_of_gradient, setup_context=_save_backward, lib=_library
)


def can_serve_siren(*, interpreted: bool) -> Callable[..., tuple[bool, str]]:
    """The `can_handle` of `modulated_siren`, on a GPU or in Triton's interpreter."""

    def can_handle(
        x: Tensor,
        weights: Sequence[Tensor],
        styles: Sequence[Tensor],
        biases: Sequence[Tensor | None] | None = None,
        *,
        demodulate: bool = False,
        final_activation: str | None = None,
        **_: Any,
    ) -> tuple[bool, str]:
        obstacle = triton_support.unable(x, interpreted=interpreted)
        if obstacle is not None:
            return False, obstacle
        if any(tensor.numel() == 0 for tensor in (x, *weights, *styles)):
            return False, "there is nothing to compute: a tensor has no elements"
        if torch.compiler.is_compiling():
            return True, ""  # torch.compile cannot trace the setting of float32 precision, and asks for no words
        widths, sine = plan.widths(weights), final_activation == "sine"
        return True, plan.explained(plan.kind_of(x.dtype), widths, demodulate=demodulate, final_sine=sine)

    return can_handle


def can_serve_linear(*, interpreted: bool) -> Callable[..., tuple[bool, str]]:
    """The `can_handle` of `modulated_linear`."""
    can_serve = can_serve_siren(interpreted=interpreted)

    def can_handle(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None = None, **_: Any) -> tuple[bool, str]:
        return can_serve(x, [weight], [style])

    return can_handle
