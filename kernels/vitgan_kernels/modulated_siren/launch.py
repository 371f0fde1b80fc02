"""Runs the Triton kernels of the modulated SIREN on tensors. No synchronisation: a CUDA graph can record every call."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels import triton_support
from vitgan_kernels.modulated_siren import plan
from vitgan_kernels.modulated_siren import triton_kernels as kernels

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight, style, scale, bias
Sums = list[Tensor]  # gradients of one tensor by groups of samples


def forward(x: Tensor, layers: Sequence[Layer], omega: float, sine: bool) -> Tensor:
    """The output (B, P, O) of a stack of layers: a sine after each but the last, and after it if `sine`."""
    x, layers = x.contiguous(), [_contiguous(layer) for layer in layers]
    kind = kind_of(x)
    if len(layers) > 1 and plan.obstacle_to_fusion(kind, widths(layers)) is None:
        return _network_forward(x, layers, omega, sine)
    samples = plan.samples_at_a_time(batch_of(layers), _bytes_of_a_sample(x, layers, copies=2))
    outputs = []
    for part, some in _in_groups(x, layers, samples):
        for index, layer in enumerate(some):
            part = _layer_forward(part, layer, omega, sine or index < len(some) - 1)
        outputs.append(part)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Gradients:
    """Gradients of a stack of layers, group of samples by group of samples: the sums are in a fixed order."""

    def __init__(self, depth: int) -> None:
        self.x: Sums = []
        self.weights: list[Sums] = [[] for _ in range(depth)]
        self.styles: list[Sums] = [[] for _ in range(depth)]
        self.scales: list[Sums] = [[] for _ in range(depth)]
        self.biases: list[Sums] = [[] for _ in range(depth)]


def backward(
    grad: Tensor,
    x: Tensor,
    layers: Sequence[Layer],
    omega: float,
    sine: bool,
    *,
    needs_x: bool = True,
    needs_weights: bool = True,
    needs_styles: bool = True,
) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None], list[Tensor | None], list[Tensor | None]]:
    """Gradients of x, the weights, styles, scales (float32) and biases of `forward`; hidden layers are recomputed.

    None stands for what is not needed or was not given.
    """
    grad, x, layers = grad.contiguous(), x.contiguous(), [_contiguous(layer) for layer in layers]
    found = Gradients(len(layers))
    samples = plan.samples_at_a_time(batch_of(layers), _bytes_of_a_sample(x, layers, copies=len(layers) + 1))
    start = 0
    for part, some in _in_groups(x, layers, samples):
        dy = grad[start : start + samples]
        start += samples
        _backward(dy, part, some, omega, sine, found, needs_x, needs_weights, needs_styles)
    weights, styles, scales, biases = zip(*layers, strict=True)
    return (
        (_added if x.ndim == 2 else _joined)(found.x, x),
        [_added(sums, weight) for sums, weight in zip(found.weights, weights, strict=True)],
        [_joined(sums, style) for sums, style in zip(found.styles, styles, strict=True)],
        [_joined(sums, scale) for sums, scale in zip(found.scales, scales, strict=True)],
        [_added(sums, bias) for sums, bias in zip(found.biases, biases, strict=True)],
    )


def _backward(
    dy: Tensor,
    x: Tensor,
    layers: Sequence[Layer],
    omega: float,
    sine: bool,
    found: Gradients,
    needs_x: bool,
    needs_weights: bool,
    needs_styles: bool,
) -> None:
    """One group of samples, from the last layer to the first."""
    last = len(layers) - 1
    fused_head = head_is_fused(layers, sine)
    inputs = [x]
    for layer in layers[: last - fused_head]:
        inputs.append(_layer_forward(inputs[-1], layer, omega, sine=True))
    for index in range(last - fused_head, -1, -1):
        weight, style, _, _ = layers[index]
        below = inputs.pop()
        if index == last:
            dc = _layer_backward(dy, below, layers[index], omega, sine, found, index)
        elif fused_head and index == last - 1:
            dc = _head_backward(dy, below, layers[index], layers[last], omega, found, index)
        else:
            dc = _layer_backward(dy, below, layers[index], omega, True, found, index)
        if needs_weights:
            found.weights[index].append(_weight_backward(dc, below, weight, style))
        needs_dx = index > 0 or needs_x
        if needs_dx or needs_styles:
            dy, ds = _input_backward(dc, below, weight, style, needs_dx, needs_styles)  # type: ignore[assignment]
            if ds is not None:
                found.styles[index].append(ds)
    if needs_x:
        found.x.append(dy)


def kind_of(x: Tensor) -> plan.Kind:
    """How products of tensors like x are computed."""
    if x.dtype != torch.float32:
        return "half"
    return "tf32" if triton_support.float32_precision() == "tf32" else "ieee"


def widths(layers: Sequence[Layer]) -> list[int]:
    """Features of x, of each hidden layer and of the output."""
    return [layers[0][0].shape[1], *(weight.shape[0] for weight, *_ in layers)]


def batch_of(layers: Sequence[Layer]) -> int:
    """B."""
    return layers[0][1].shape[0]


def head_is_fused(layers: Sequence[Layer], sine: bool) -> bool:
    """Whether the backward pass takes the last layer together with the one before it."""
    weight, _, scale, _ = layers[-1]
    return len(layers) > 1 and not sine and scale is None and weight.shape[0] <= plan.LARGEST_HEAD


def _contiguous(layer: Layer) -> Layer:
    weight, style, scale, bias = layer
    return (
        weight.contiguous(),
        style.contiguous(),
        None if scale is None else scale.contiguous(),
        None if bias is None else bias.contiguous(),
    )


def _bytes_of_a_sample(x: Tensor, layers: Sequence[Layer], copies: int) -> int:
    """Bytes between the layers: `copies` of the widest, at most. A single layer has nothing between."""
    return copies * x.shape[-2] * max(widths(layers)[1:]) * x.element_size() if len(layers) > 1 else 0


def _in_groups(x: Tensor, layers: Sequence[Layer], samples: int) -> list[tuple[Tensor, Sequence[Layer]]]:
    batch = batch_of(layers)
    if samples >= batch:
        return [(x, layers)]
    return [
        (
            x if x.ndim == 2 else x[start : start + samples],
            [
                (
                    weight,
                    style[start : start + samples],
                    None if scale is None else scale[start : start + samples],
                    bias,
                )
                for weight, style, scale, bias in layers
            ],
        )
        for start in range(0, batch, samples)
    ]


def _added(sums: Sums, like: Tensor | None) -> Tensor | None:
    """The sum over the groups of samples, in the dtype of the tensor whose gradient it is."""
    if not sums or like is None:
        return None
    total = sums[0]
    for term in sums[1:]:
        total = total + term
    return total.to(like.dtype)


def _joined(sums: Sums, like: Tensor | None) -> Tensor | None:
    if not sums or like is None:
        return None
    return (sums[0] if len(sums) == 1 else torch.cat(sums)).to(like.dtype)


class _Grid:
    """Tiles of rows and columns of one launch, and the arguments that most kernels share."""

    def __init__(self, kernel: str, x: Tensor, style: Tensor, columns: int, depth: int) -> None:
        self.batch, self.points, self.shared = style.shape[0], x.shape[-2], x.ndim == 2
        self.tile = plan.tile(kernel, kind_of(x), triton_support.target(), columns=columns, depth=depth)
        self.points_of_tile = plan.points_of_tile(self.points, self.tile.rows)
        self.samples_of_tile = self.tile.rows // self.points_of_tile
        self.point_tiles = _ceil(self.points, self.points_of_tile)
        self.groups = _ceil(self.batch, self.samples_of_tile)
        self.row_tiles = self.groups * self.point_tiles
        self.column_tiles = _ceil(columns, self.tile.columns)

    def constants(self, **more: Any) -> dict[str, Any]:
        return {
            "SHARED": self.shared,
            "PRECISION": triton_support.float32_precision(),
            "SAMPLES": self.samples_of_tile,
            "POINTS": self.points_of_tile,
            "COLUMNS": self.tile.columns,
            **more,
            **self.tile.options(),
        }

    def sums_of_samples(self, style: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
        """(B, point tiles, columns) to hold sums over points: float32 where there are several to add."""
        dtype = torch.float32 if self.point_tiles > 1 else dtype
        return style.new_empty(self.batch, self.point_tiles, columns, dtype=dtype)


def _total(partial: Tensor, dim: int) -> Tensor:
    """The sum of partial sums."""
    return partial.squeeze(dim) if partial.shape[dim] == 1 else partial.sum(dim)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _layer_forward(x: Tensor, layer: Layer, omega: float, sine: bool) -> Tensor:
    weight, style, scale, bias = layer
    outputs, inputs = weight.shape
    grid = _Grid("layer_forward", x, style, outputs, inputs)
    y = x.new_empty(grid.batch, grid.points, outputs)
    kernels.layer_forward[(grid.row_tiles * grid.column_tiles,)](
        x, weight, style, scale, bias, y, omega, grid.batch, grid.points, inputs, outputs,
        **grid.constants(SINE=sine, DEPTH=grid.tile.depth),
    )  # fmt: skip
    return y


def _network_forward(x: Tensor, layers: Sequence[Layer], omega: float, sine: bool) -> Tensor:
    inputs, *hidden, outputs = widths(layers)
    kernel, more = kernels.network2_forward, {}
    grid = _Grid(f"network{len(layers)}_forward", x, layers[0][1], hidden[-1], inputs)
    if len(layers) == 3:
        kernel = kernels.network3_forward
        more = {"BLOCKS": _ceil(hidden[1], grid.tile.columns), "HIDDEN": min(64, max(16, plan.power_of_two(hidden[0])))}
    y = x.new_empty(grid.batch, grid.points, outputs)
    kernel[(grid.row_tiles,)](
        x, *(part for layer in layers for part in layer), y,
        omega, grid.batch, grid.points, inputs, *hidden, outputs,
        **grid.constants(SINE=sine, HEAD=plan.LARGEST_HEAD, DEPTH=grid.tile.depth, **more),
    )  # fmt: skip
    return y


def _layer_backward(
    dy: Tensor, x: Tensor, layer: Layer, omega: float, sine: bool, found: Gradients, index: int
) -> Tensor:
    """dc; the gradients of scale and bias go to `found`. Without sine and scale dc is dy."""
    weight, style, scale, bias = layer
    if not sine and scale is None:
        if bias is not None:
            found.biases[index].append(dy.sum((0, 1), dtype=torch.float32))
        return dy
    outputs, inputs = weight.shape
    grid = _Grid("layer_backward", x, style, outputs, inputs)
    dc = torch.empty_like(dy)
    dscale = None if scale is None else grid.sums_of_samples(scale, outputs, torch.float32)
    dbias = None if bias is None else bias.new_empty(grid.row_tiles, outputs, dtype=torch.float32)
    kernels.layer_backward[(grid.row_tiles * grid.column_tiles,)](
        dy, x, weight, style, scale, bias, dc, dscale, dbias, omega, grid.batch, grid.points, inputs, outputs,
        **grid.constants(SINE=sine, DEPTH=grid.tile.depth),
    )  # fmt: skip
    if dscale is not None:
        found.scales[index].append(_total(dscale, 1))
    if dbias is not None:
        found.biases[index].append(_total(dbias, 0))
    return dc


def _head_backward(
    dy: Tensor, x: Tensor, layer: Layer, head: Layer, omega: float, found: Gradients, index: int
) -> Tensor:
    """dc of the layer under the head; the gradients of its scale and bias, and of the head, go to `found`."""
    (weight, style, scale, bias), (head_weight, head_style, _, head_bias) = layer, head
    (width, inputs), outputs = weight.shape, head_weight.shape[0]
    grid = _Grid("head_backward", x, style, width, inputs)
    dc = dy.new_empty(grid.batch, grid.points, width)
    dscale = None if scale is None else grid.sums_of_samples(scale, width, torch.float32)
    dbias = None if bias is None else bias.new_empty(grid.row_tiles, width, dtype=torch.float32)
    dhead = weight.new_empty(grid.row_tiles, outputs, width, dtype=torch.float32)
    dstyle = grid.sums_of_samples(head_style, width, head_style.dtype)
    kernels.head_backward[(grid.row_tiles * grid.column_tiles,)](
        dy, x, weight, style, scale, bias, head_weight, head_style, dc, dscale, dbias, dhead, dstyle,
        omega, grid.batch, grid.points, inputs, width, outputs,
        **grid.constants(HEAD=plan.LARGEST_HEAD, DEPTH=grid.tile.depth),
    )  # fmt: skip
    found.weights[index + 1].append(_total(dhead, 0))
    found.styles[index + 1].append(_total(dstyle, 1))
    if head_bias is not None:
        found.biases[index + 1].append(dy.sum((0, 1), dtype=torch.float32))
    if dscale is not None:
        found.scales[index].append(_total(dscale, 1))
    if dbias is not None:
        found.biases[index].append(_total(dbias, 0))
    return dc


def _input_backward(
    dc: Tensor, x: Tensor, weight: Tensor, style: Tensor, needs_x: bool, needs_style: bool
) -> tuple[Tensor | None, Tensor | None]:
    outputs, inputs = weight.shape
    grid = _Grid("input_backward", x, style, inputs, outputs)
    sums = plan.parts(grid.point_tiles * grid.column_tiles, grid.groups) if grid.shared and needs_x else grid.groups
    groups = _ceil(grid.groups, sums)
    programs = _ceil(grid.groups, groups)
    dstyle = grid.sums_of_samples(style, inputs, style.dtype) if needs_style else None
    dx = None
    if needs_x:
        dx = x.new_empty(programs, *x.shape, dtype=torch.float32) if grid.shared else torch.empty_like(x)
    kernels.input_backward[(programs * grid.point_tiles * grid.column_tiles,)](
        dc, x, weight, style, dx, dstyle, groups, grid.batch, grid.points, inputs, outputs,
        **grid.constants(DEPTH=grid.tile.depth),
    )  # fmt: skip
    if dx is not None and grid.shared:
        dx = _total(dx, 0)
    return dx, None if dstyle is None else _total(dstyle, 1)


def _weight_backward(dc: Tensor, x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    outputs, inputs = weight.shape
    grid = _Grid("weight_backward", x, style, inputs, outputs)
    output_tiles = _ceil(outputs, grid.tile.depth)
    tiles = _ceil(grid.row_tiles, plan.parts(grid.column_tiles * output_tiles, grid.row_tiles))
    programs = _ceil(grid.row_tiles, tiles)
    dw = weight.new_empty(programs, outputs, inputs, dtype=torch.float32)
    kernels.weight_backward[(programs * output_tiles * grid.column_tiles,)](
        dc, x, style, dw, tiles, grid.batch, grid.points, inputs, outputs,
        **grid.constants(OUTPUTS=grid.tile.depth),
    )  # fmt: skip
    return _total(dw, 0)
