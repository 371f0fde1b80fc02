"""The public functions: argument checks and the choice of an implementation.

On the CPU the compiled extension comes first, on a GPU Triton. Triton's interpreter, where it is on, serves only those
who ask for it by name.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels import native_support, triton_support
from vitgan_kernels.backends import Implementation, Operator, always
from vitgan_kernels.checks import (
    DTYPES,
    autocast,
    check_finite_number,
    check_flag,
    check_list,
    check_tensors,
    without_autocast,
)
from vitgan_kernels.modulated_siren import native, plan, reference, torch_ops

# What every implementation takes: x, weights, styles, biases, omega, whether the last layer has a sine, and the eps of
# the demodulation, or None without.
_Call = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor | None], float, bool, float | None]


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
    backend: str | None = None,
) -> Tensor:
    """A linear layer whose weight is modulated per sample, with an optional sine (ViTGAN section 3.3; CIPS).

    a[b,p,o] = demod[b,o] * sum_i weight[o,i] * style[b,i] * x[b,p,i] + bias[o], with
    demod[b,o] = rsqrt(sum_i (weight[o,i] * style[b,i])^2 + eps), or 1. Returns a, or sin(omega * a) in radians.

    Args:
        x: (B, P, I), or (P, I) shared by all B.
        weight: (O, I), shared by all samples.
        style: (B, I).
        bias: (O,) or None.
        activation: None or "sine".
        omega: factor in the sine, in radians per unit of a.
        demodulate: scale each output feature to the norm of an unmodulated unit row (StyleGAN2).
        eps: added under the root of the demodulation.
        backend: see `use_backend`.

    Returns:
        (B, P, O) in the dtype of the inputs (under autocast, its dtype).

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: shapes or devices do not fit, or activation, omega or eps is not legal.

    Derivatives: reverse mode to any order, fused by the kernels at order one; forward mode by the reference.
    """
    call, _ = _linear_call(x, weight, style, bias, activation=activation, omega=omega, demodulate=demodulate, eps=eps)
    return _run(LINEAR.select(backend, *call).backend, *call)


def _linear_call(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    omega: float = 30.0,
    demodulate: bool = False,
    eps: float = 1e-8,
) -> tuple[_Call, dict[str, Any]]:
    """What the implementations take, checked."""
    op = "modulated_linear"
    x, weight, style, bias = autocast(x, weight, style, bias)  # type: ignore[assignment]
    if not _alike([x, weight, style] if bias is None else [x, weight, style, bias]):
        check_tensors(op, optional="bias", x=x, weight=weight, style=style, bias=bias)
    _check_activation(op, activation)
    check_flag(op, "demodulate", demodulate)
    omega, eps = check_finite_number(op, "omega", omega), check_finite_number(op, "eps", eps)
    if not _is_symbolic(eps) and eps < 0:
        raise ValueError(f"{op}: eps must not be negative, got {eps}")
    _check_input(op, x, style)
    _check_layer(op, "", x.shape[-1], weight, style, bias)
    return (x, [weight], [style], [bias], omega, activation == "sine", eps if demodulate else None), {}


def modulated_siren(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    omega: float = 30.0,
    demodulate: bool = False,
    final_activation: str | None = None,
    backend: str | None = None,
) -> Tensor:
    """A SIREN (Sitzmann et al., 2020) whose every layer is a `modulated_linear`: sine on all layers but the last.

    Args:
        x: (B, P, I), or (P, I) shared by all B: features of P points (pixels).
        weights: one (O_l, I_l) a layer, with I_0 = I and I_l = O_{l-1}.
        styles: one (B, I_l) a layer.
        biases: one (O_l,) or None a layer; None for no bias at all.
        omega, demodulate, backend: as in `modulated_linear`.
        final_activation: None or "sine", for the last layer.

    Returns:
        (B, P, O_last) in the dtype of the inputs (under autocast, its dtype).

    Raises and derivatives: as `modulated_linear`.
    """
    call, _ = _siren_call(
        x, weights, styles, biases, omega=omega, demodulate=demodulate, final_activation=final_activation
    )
    return _run(SIREN.select(backend, *call).backend, *call)


def _siren_call(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    omega: float = 30.0,
    demodulate: bool = False,
    final_activation: str | None = None,
) -> tuple[_Call, dict[str, Any]]:
    """What the implementations take, checked."""
    op = "modulated_siren"
    weights, styles = check_list(op, "weights", weights), check_list(op, "styles", styles)
    biases = None if biases is None else check_list(op, "biases", biases)
    if not weights or len(weights) != len(styles) or (biases is not None and len(biases) != len(weights)):
        given = "none" if biases is None else len(biases)
        raise ValueError(
            f"{op}: weights, styles and biases need one entry for each of at least one layer, "
            f"got {len(weights)} weights, {len(styles)} styles and {given} biases"
        )
    biases = [None] * len(weights) if biases is None else biases
    depth = len(weights)
    x, *parts = autocast(x, *weights, *styles, *biases)  # type: ignore[assignment]
    weights, styles, biases = parts[:depth], parts[depth : 2 * depth], parts[2 * depth :]  # type: ignore[assignment]
    if not _alike([x, *weights, *styles, *(bias for bias in biases if bias is not None)]):
        named = {f"weights[{i}]": w for i, w in enumerate(weights)} | {f"styles[{i}]": s for i, s in enumerate(styles)}
        check_tensors(op, optional="biases", x=x, **named, **{f"biases[{i}]": b for i, b in enumerate(biases)})
    _check_activation(op, final_activation)
    check_flag(op, "demodulate", demodulate)
    omega = check_finite_number(op, "omega", omega)
    _check_input(op, x, styles[0])
    width = x.shape[-1]
    for i, (weight, style, bias) in enumerate(zip(weights, styles, biases, strict=True)):
        _check_layer(op, f" of layer {i}", width, weight, style, bias)
        if style.shape[0] != styles[0].shape[0]:
            raise ValueError(f"{op}: styles must share one batch size, got {[tuple(s.shape) for s in styles]}")
        width = weight.shape[0]
    return (x, weights, styles, biases, omega, final_activation == "sine", 1e-8 if demodulate else None), {}


def _alike(tensors: list[Tensor]) -> bool:
    """Whether `check_tensors` has nothing against them, found out faster: its names cost more than a small layer."""
    first = tensors[0]
    if not isinstance(first, Tensor) or first.dtype not in DTYPES:
        return False
    dtype, device = first.dtype, first.device
    return all(
        isinstance(t, Tensor)
        and t.dtype == dtype
        and t.device == device
        and t.layout == torch.strided
        and not t.is_nested
        for t in tensors
    )


def _is_symbolic(value: object) -> bool:
    return isinstance(value, torch.SymFloat)


def _check_activation(op: str, activation: str | None) -> None:
    if activation not in (None, "sine"):
        raise ValueError(f'{op}: the activation must be None or "sine", got {activation!r}')


def _check_input(op: str, x: Tensor, style: Tensor) -> None:
    if x.ndim not in (2, 3):
        raise ValueError(f"{op}: x must be (B, P, I), or (P, I) shared by all samples, got {tuple(x.shape)}")
    if x.ndim == 3 and style.ndim == 2 and x.shape[0] != style.shape[0]:
        raise ValueError(f"{op}: x {tuple(x.shape)} and style {tuple(style.shape)} differ in the batch size")


def _check_layer(op: str, where: str, width: int, weight: Tensor, style: Tensor, bias: Tensor | None) -> None:
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"{op}: weight{where} must be (O, {width}) for {width} input features, got {tuple(weight.shape)}"
        )
    if style.ndim != 2 or style.shape[1] != width:
        raise ValueError(
            f"{op}: style{where} must be (B, {width}) for {width} input features, got {tuple(style.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias{where} must be ({weight.shape[0]},), got {tuple(bias.shape)}")


def _run(backend: str, x: Tensor, *rest: Any) -> Tensor:
    """The call by the backend that was chosen."""
    with without_autocast(x):
        if backend == "triton":
            return torch_ops.by_triton(x, *rest)
        if backend == "cpp" and torch.compiler.is_compiling():
            return torch_ops.by_cpp(x, *rest)
        if backend == "cpp":
            return native.modulated_siren(x, *rest)
        return _by_reference(x, *rest)


def _by_reference(
    x: Tensor,
    weights: list[Tensor],
    styles: list[Tensor],
    biases: list[Tensor | None],
    omega: float,
    sine: bool,
    eps: float | None,
) -> Tensor:
    activation = "sine" if sine else None
    if len(weights) == 1:
        return reference.modulated_linear(
            x, weights[0], styles[0], biases[0], activation=activation, omega=omega,
            demodulate=eps is not None, eps=eps or 0.0,
        )  # fmt: skip
    return reference.modulated_siren(
        x, weights, styles, biases, omega=omega, demodulate=eps is not None, final_activation=activation
    )


def _cpp_can_handle(x: Tensor, weights: list[Tensor], styles: list[Tensor], *_: Any) -> tuple[bool, str]:
    obstacle = native_support.unable(x, native.DTYPES)
    if obstacle is not None:
        return False, obstacle
    if 0 in (styles[0].shape[0], *x.shape, *(weight.shape[0] for weight in weights)):
        return False, "there is nothing to compute: a tensor has no elements"
    return True, "all layers and their sines in one pass, forward and backward"


def _on_gpu(x: Tensor, *rest: Any) -> tuple[bool, str]:
    return _triton_can_handle(triton_support.unable(x), x, *rest)


def _on_interpreter(x: Tensor, *rest: Any) -> tuple[bool, str]:
    return _triton_can_handle(triton_support.unable(x, interpreted=True), x, *rest)


def _triton_can_handle(
    obstacle: str | None, x: Tensor, weights: list[Tensor], styles: list[Tensor], *rest: Any
) -> tuple[bool, str]:
    if obstacle is not None:
        return False, obstacle
    if any(tensor.numel() == 0 for tensor in (x, *weights, *styles)):
        return False, "there is nothing to compute: a tensor has no elements"
    if torch.compiler.is_compiling():
        return True, ""  # torch.compile cannot trace the setting of float32 precision, and asks for no words
    *_, sine, eps = rest
    widths, kind = plan.widths(weights), plan.kind_of(x.dtype)
    return True, plan.explained(kind, widths, demodulate=eps is not None, final_sine=sine)


def _implementations() -> list[Implementation]:
    found = [
        Implementation("cpp", native.modulated_siren, _cpp_can_handle),
        Implementation("triton", torch_ops.by_triton, _on_gpu),
        Implementation("reference", _by_reference, always),
    ]
    if triton_support.INTERPRETED:  # after the reference, so that it runs only where it is asked for
        found.append(Implementation("triton", torch_ops.by_triton, _on_interpreter))
    return found


LINEAR = Operator("modulated_linear", _linear_call, _implementations())
SIREN = Operator("modulated_siren", _siren_call, _implementations())
