"""The fused modulated SIREN, forward and backward: which kernel after which, and for how many samples at a time.

What lies between the layers is never kept: the backward pass computes it again, which costs one more product a layer,
2 I operations an element, where keeping its argument in float32 would cost 8 bytes written and read. With the I of
a SIREN, up to about 800 on an H200 (206 bfloat16 operations a byte), that is the faster way too.

Between the layers a gradient takes the memory of what was needed last to compute it, element by element: that of a
layer's input its input's, and that of its product its output's. What is the caller's is never written to.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels.modulated_siren import launch, plan
from vitgan_kernels.modulated_siren.launch import Gradients, Layer


def forward(x: Tensor, layers: Sequence[Layer], omega: float, sine: bool) -> Tensor:
    """The output (B, P, O) of a stack of layers: a sine after each but the last, and after it if `sine`."""
    x, layers = x.contiguous(), _contiguous(layers)
    if len(layers) > 1 and plan.obstacle_to_fusion(plan.kind_of(x.dtype), _widths(layers)) is None:
        return launch.network_forward(x, layers, omega, sine)
    outputs = []
    for part, _, some in _groups(x, None, layers, copies=2):
        for index, layer in enumerate(some):
            part = launch.layer_forward(part, layer, omega, sine or index < len(some) - 1)
        outputs.append(part)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def backward(
    grad: Tensor, x: Tensor, layers: Sequence[Layer], omega: float, sine: bool, needed: Sequence[bool]
) -> tuple[Tensor | None, list[Any]]:
    """The gradients of x and of the parts of every layer, from that of the output.

    needed: whether those of x, the weights and the styles are; others are None, like those of absent parts.
    """
    x, layers = x.contiguous(), _contiguous(layers)
    groups = [
        _backward_of_group(dy, part, some, omega, sine, needed)
        for part, dy, some in _groups(x, grad.contiguous(), layers, copies=len(layers))
    ]
    dx = [group[0] for group in groups]
    gradients = []
    for index, (weight, style, scale, bias) in enumerate(layers):
        weights, styles, scales, biases = zip(*(group[1][index] for group in groups), strict=True)
        gradients.append(
            (_added(weights, weight), _joined(styles, style), _joined(scales, scale), _added(biases, bias))
        )
    return (_added if x.ndim == 2 else _joined)(dx, x), gradients


def _backward_of_group(
    dy: Tensor, x: Tensor, layers: Sequence[Layer], omega: float, sine: bool, needed: Sequence[bool]
) -> tuple[Tensor | None, list[Gradients]]:
    """`backward` for some of the samples, from the last layer to the first."""
    needs_x, needs_weights, needs_styles = needed
    last = len(layers) - 1
    gradients: list[Gradients] = [Gradients()] * len(layers)
    fused = plan.head_is_fused(_widths(layers), demodulate=layers[last][2] is not None, final_sine=sine)
    inputs = [x]
    for layer in layers[: last - fused]:
        inputs.append(launch.layer_forward(inputs[-1], layer, omega, sine=True))
    dx: Tensor | None = None
    for index in range(last - fused, -1, -1):
        weight, style, _, _ = layers[index]
        below = inputs.pop()
        if index < last and index == last - fused:
            dc, found, gradients[last] = launch.head_backward(dy, below, layers[index], layers[last], omega)
        else:
            dc, found = launch.layer_backward(
                dy, below, layers[index], omega, sine or index < last, overwrite=index < last
            )
        if needs_weights:
            found = found._replace(weight=launch.weight_backward(dc, below, weight, style))
        wants_x = index > 0 or needs_x
        if wants_x or needs_styles:
            dx, dstyle = launch.input_backward(dc, below, weight, style, wants_x, needs_styles, overwrite=index > 0)
            found = found._replace(style=dstyle)
            dy = dy if dx is None else dx
        gradients[index] = found
        del dc, below  # before the next layer's are made
    return dx if needs_x else None, gradients


def _contiguous(layers: Sequence[Layer]) -> list[Any]:
    return [tuple(None if part is None else part.contiguous() for part in layer) for layer in layers]


def _widths(layers: Sequence[Layer]) -> list[int]:
    return plan.widths([weight for weight, *_ in layers])


def _groups(
    x: Tensor, dy: Tensor | None, layers: Sequence[Layer], copies: int
) -> Sequence[tuple[Tensor, Any, Sequence[Layer]]]:
    """x, dy and layers by groups of samples, for `copies` of the widest layer to fit in the workspace."""
    batch = layers[0][1].shape[0]
    bytes_of_a_sample = copies * x.shape[-2] * max(_widths(layers)[1:]) * x.element_size() if len(layers) > 1 else 0
    samples = plan.samples_at_a_time(batch, bytes_of_a_sample)
    if samples >= batch:
        return [(x, dy, layers)]
    groups = []
    for start in range(0, batch, samples):
        rows = slice(start, start + samples)
        some = [(weight, style[rows], None if scale is None else scale[rows], b) for weight, style, scale, b in layers]
        groups.append((x if x.ndim == 2 else x[rows], None if dy is None else dy[rows], some))
    return groups


def _added(sums: Sequence[Tensor | None], like: Tensor | None) -> Tensor | None:
    """The sum over the groups, in a fixed order, in the dtype of the tensor whose gradient it is."""
    total = sums[0]
    if total is None or like is None:
        return None
    for term in sums[1:]:
        total = total + term  # type: ignore[operator]
    return total.to(like.dtype)


def _joined(parts: Sequence[Any], like: Tensor | None) -> Tensor | None:
    """The groups one after the other."""
    if parts[0] is None or like is None:
        return None
    return (parts[0] if len(parts) == 1 else torch.cat(list(parts))).to(like.dtype)
