"""The gradients of a modulated SIREN and the gradients of these, in closed form in plain PyTorch.

They serve where the kernels cannot: gradients of gradients, and gradients under a torch.func transform. Every operation
is differentiable, so derivatives of any order follow. A layer is u = x * s, c = u W^T, q = g * c + b and
y = sin(omega q) or q; s is the style, g the scale.

Order 1, from y', the gradient of y, the same for the others:
    q' = omega cos(omega q) * y';  b' = sum q';  g' = sum_p q' * c;  c' = g * q';  W' = c'^T u
    u' = c' W;  s' = sum_p u' * x;  x' = u' * s

Order 2, from cotangents of these. A cotangent of a gradient is a tangent of what it is the gradient of, written dx, and
as the order 1 is linear in y', all comes from the scalar <y', dy>, dy being the tangent of y:
    du = dx * s + x * ds;  dc = du W^T + u dW^T;  dq = g * dc + dg * c + db;  dy = omega cos(omega q) * dq
dy itself is the gradient of y'. Backwards through a layer go y', the gradient of its value, and y", of its tangent:
    q" = omega cos(omega q) * y";  q' = omega cos(omega q) * y' - omega^2 sin(omega q) * dq * y"
    c" = g * q";  c' = g * q' + dg * q";  g' = sum_p q' * c + q" * dc;  b' = sum q'
    u" = c" W;  u' = c' W + c" dW;  W' = c'^T u + c"^T du
    x" = u" * s;  x' = u' * s + u" * ds;  s' = sum_p u' * x + u" * dx

The demodulation is g = r^(-1/2), r = s^2 (W^2)^T + eps. From g', with t = g' * g^3:
    W' = -W * t^T s^2;  s' = -s * (t W^2)
and from tangents, with h = (s * ds) (W^2)^T + s^2 (W * dW)^T,  dg = -g^3 * h. The gradients of <g', g> + <g", dg>,
where g" = sum_p q" * c, are with k = -g" * g^3 and l = -1/2 g' * g^3 + 3/2 g" * g^5 * h
    W' = 2 W * (l^T s^2 + k^T (s * ds)) + dW * k^T s^2;  s' = 2 s * (l W^2 + k (W * dW)) + ds * (k W^2)
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Stack:
    """x and the parts of every layer, or a gradient or tangent of each. scales and biases are one a layer, or empty."""

    x: Any
    weights: Sequence[Any]
    styles: Sequence[Any]
    scales: Sequence[Any]
    biases: Sequence[Any]

    def layers(self) -> list[tuple[Any, Any, Any, Any]]:
        """Weight, style, scale or None, bias or None of each layer."""
        none = [None] * len(self.weights)
        return list(zip(self.weights, self.styles, self.scales or none, self.biases or none, strict=True))

    @classmethod
    def of_layers(cls, x: Any, layers: Sequence[tuple[Any, Any, Any, Any]], like: "Stack") -> "Stack":
        """The opposite of `layers`; without scales or biases where `like` has none."""
        weights, styles, scales, biases = (list(parts) for parts in zip(*layers, strict=True))
        return cls(x, weights, styles, scales if like.scales else [], biases if like.biases else [])


def demodulation(weight: Tensor, style: Tensor, eps: float) -> Tensor:
    """rsqrt(sum_i (weight * style)^2 + eps), (B, O), in at least float32."""
    weight, style = _precise([weight, style])
    return torch.rsqrt(style.square() @ weight.square().t() + eps)


def backward(grad: Tensor, stack: Stack, omega: float, sine: bool, eps: float | None = None) -> Stack:
    """The gradients of all in the stack, from that of its output; each in the dtype of what it is the gradient of.

    With an eps, the scales are the demodulation: those in the stack, if any, count for nothing, and have no gradients.
    """
    if eps is not None:
        stack = replace(stack, scales=[demodulation(w, s, eps) for w, s, *_ in stack.layers()])
    layers = [_precise(layer) for layer in stack.layers()]
    (y,) = _precise([stack.x])
    passed = []
    for index, (weight, style, scale, bias) in enumerate(layers):
        x, u = y, y * style.unsqueeze(1)
        c = u @ weight.t()
        q = _affine(c, scale, bias)
        bent = sine or index < len(layers) - 1
        y = torch.sin(omega * q) if bent else q
        passed.append((x, u, c, omega * torch.cos(omega * q) if bent else None))
    (dy,) = _precise([grad])
    gradients = []
    for (weight, style, scale, bias), (x, u, c, slope) in zip(reversed(layers), reversed(passed), strict=True):
        dq = dy if slope is None else dy * slope
        dc = dq if scale is None else dq * scale.unsqueeze(1)
        du = dc @ weight
        dscale = None if scale is None else (dq * c).sum(1)
        dweight, dstyle = _outer(dc, u), (du * x).sum(1)
        if eps is not None:
            t, dscale = dscale * scale**3, None
            dweight, dstyle = dweight - weight * (t.t() @ style.square()), dstyle - style * (t @ weight.square())
        gradients.append((dweight, dstyle, dscale, None if bias is None else dq.sum((0, 1))))
        dy = du * style.unsqueeze(1)
    return _finished(dy, gradients, stack if eps is None else replace(stack, scales=[]))


def double_backward(
    cotangents: Stack, grad: Tensor, stack: Stack, omega: float, sine: bool, eps: float | None = None
) -> tuple[Tensor, Stack]:
    """The gradients of what `backward` was given, from cotangents of what it returned (None stands for zeros)."""
    if eps is not None:
        stack = replace(stack, scales=[demodulation(w, s, eps) for w, s, *_ in stack.layers()])
    layers = [_precise(layer) for layer in stack.layers()]
    tangents = [_precise(_with_zeros(t, layer)) for t, layer in zip(cotangents.layers(), stack.layers(), strict=True)]
    y, dy = _precise([stack.x, *_with_zeros([cotangents.x], [stack.x])])
    passed = []
    for index, ((weight, style, scale, bias), (dweight, dstyle, dscale, dbias)) in enumerate(
        zip(layers, tangents, strict=True)
    ):
        if eps is not None:
            dscale = tangents[index][2] = -(scale**3) * _tangent_of_norms(weight, style, dweight, dstyle)
        x, dx = y, dy
        u, du = x * style.unsqueeze(1), dx * style.unsqueeze(1) + x * dstyle.unsqueeze(1)
        c, dc = u @ weight.t(), du @ weight.t() + u @ dweight.t()
        q = y = _affine(c, scale, bias)
        dq = dy = _affine(dc, scale, dbias) if scale is None else _affine(dc, scale, dbias) + c * dscale.unsqueeze(1)
        slope = curvature = None
        if sine or index < len(layers) - 1:
            y, slope = torch.sin(omega * q), omega * torch.cos(omega * q)
            dy, curvature = slope * dq, -(omega**2) * y * dq
        passed.append((x, dx, u, du, c, dc, slope, curvature))
    output_tangent = dy
    (second,) = _precise([grad])
    first = torch.zeros_like(second)
    gradients = []
    for (weight, style, scale, bias), (dweight, dstyle, dscale, _), (x, dx, u, du, c, dc, slope, curvature) in zip(
        reversed(layers), reversed(tangents), reversed(passed), strict=True
    ):
        if slope is not None:
            first, second = slope * first + curvature * second, slope * second
        grad_bias = None if bias is None else first.sum((0, 1))
        grad_scale: Any = None
        grad_dscale: Any = None
        if scale is not None:
            grad_scale, grad_dscale = (first * c + second * dc).sum(1), (second * c).sum(1)
            first, second = first * scale.unsqueeze(1) + second * dscale.unsqueeze(1), second * scale.unsqueeze(1)
        grad_weight = _outer(first, u) + _outer(second, du)
        first, second = first @ weight + second @ dweight, second @ weight
        grad_style = (first * x + second * dx).sum(1)
        if eps is not None:
            more = _through_demodulation(grad_scale, grad_dscale, scale, weight, style, dweight, dstyle)
            grad_weight, grad_style, grad_scale = grad_weight + more[0], grad_style + more[1], None
        gradients.append((grad_weight, grad_style, grad_scale, grad_bias))
        first, second = first * style.unsqueeze(1) + second * dstyle.unsqueeze(1), second * style.unsqueeze(1)
    stack = stack if eps is None else replace(stack, scales=[])
    return output_tangent.to(grad.dtype), _finished(first, gradients, stack)


def _tangent_of_norms(weight: Tensor, style: Tensor, dweight: Tensor, dstyle: Tensor) -> Tensor:
    """h, half the tangent of sum_i (weight * style)^2."""
    return (style * dstyle) @ weight.square().t() + style.square() @ (weight * dweight).t()


def _through_demodulation(
    grad: Tensor, grad_tangent: Tensor, scale: Tensor, weight: Tensor, style: Tensor, dweight: Tensor, dstyle: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of weight and style, from those of the demodulation and of its tangent."""
    h = _tangent_of_norms(weight, style, dweight, dstyle)
    k, l = -grad_tangent * scale**3, -0.5 * grad * scale**3 + 1.5 * grad_tangent * h * scale**5  # noqa: E741
    of_weight = 2 * weight * (l.t() @ style.square() + k.t() @ (style * dstyle)) + dweight * (k.t() @ style.square())
    of_style = 2 * style * (l @ weight.square() + k @ (weight * dweight)) + dstyle * (k @ weight.square())
    return of_weight, of_style


def _precise(tensors: Sequence[Tensor | None]) -> list[Any]:
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _with_zeros(tensors: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [torch.zeros_like(m) if t is None and m is not None else t for t, m in zip(tensors, like, strict=True)]


def _affine(c: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    c = c if scale is None else c * scale.unsqueeze(1)
    return c if bias is None else c + bias


def _outer(rows: Tensor, columns: Tensor) -> Tensor:
    """The sum over samples and points of row times column."""
    return rows.reshape(-1, rows.shape[-1]).t() @ columns.reshape(-1, columns.shape[-1])


def _finished(dx: Tensor, backwards: list[tuple[Any, ...]], stack: Stack) -> Stack:
    """Gradients of the layers, given from the last to the first, in the dtypes of the stack; a shared x has one."""
    layers = [
        tuple(None if g is None else g.to(part.dtype) for g, part in zip(gradients, layer, strict=True))
        for gradients, layer in zip(reversed(backwards), stack.layers(), strict=True)
    ]
    return Stack.of_layers((dx.sum(0) if stack.x.ndim == 2 else dx).to(stack.x.dtype), layers, stack)  # type: ignore[arg-type]
