"""One Triton kernel of the modulated SIREN each, on contiguous tensors: its outputs, its tiles, its launch.

No synchronisation, and nothing that depends on values: a CUDA graph can record every call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitgan_kernels import triton_support
from vitgan_kernels.modulated_siren import plan
from vitgan_kernels.modulated_siren import triton_kernels as kernels

Layer = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # weight, style, scale, bias


class Gradients(NamedTuple):
    """Gradients of a layer's parts, in float32 where they are sums over tiles."""

    weight: Tensor | None = None
    style: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None


class _Grid:
    """Tiles of rows and columns of one launch, and the arguments that most kernels share."""

    def __init__(self, kernel: str, x: Tensor, style: Tensor, columns: int, depth: int) -> None:
        self.batch, self.points, self.shared = style.shape[0], x.shape[-2], x.ndim == 2
        self.tile = plan.tile(kernel, plan.kind_of(x.dtype), triton_support.target(), columns=columns, depth=depth)
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


def _total(partial: Tensor | None, dim: int) -> Any:
    """The sum of partial sums, if there are any."""
    return None if partial is None else partial.squeeze(dim) if partial.shape[dim] == 1 else partial.sum(dim)


def _column_sums(dy: Tensor, bias: Tensor | None) -> Tensor | None:
    """The gradient of a bias that is added last."""
    return None if bias is None else dy.sum((0, 1), dtype=torch.float32)


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def layer_forward(x: Tensor, layer: Layer, omega: float, sine: bool) -> Tensor:
    """The output of one layer."""
    weight, style, scale, bias = layer
    outputs, inputs = weight.shape
    grid = _Grid("layer_forward", x, style, outputs, inputs)
    y = x.new_empty(grid.batch, grid.points, outputs)
    kernels.layer_forward[(grid.row_tiles * grid.column_tiles,)](
        x, weight, style, scale, bias, y, omega, grid.batch, grid.points, inputs, outputs,
        **grid.constants(SINE=sine, DEPTH=grid.tile.depth),
    )  # fmt: skip
    return y


def network_forward(x: Tensor, layers: Sequence[Layer], omega: float, sine: bool) -> Tensor:
    """The output of a network that `plan.obstacle_to_fusion` has nothing against."""
    inputs, *hidden, outputs = plan.widths([weight for weight, *_ in layers])
    name = f"network{len(layers)}_forward"
    if len(layers) == 3 and hidden[1] > plan.WIDTH_OF_64_ROWS:
        name = "wide_" + name
    grid = _Grid(name, x, layers[0][1], hidden[-1], inputs)
    kernel, more = kernels.network2_forward, {}
    if len(layers) == 3:
        kernel = kernels.network3_forward
        more = {"BLOCKS": grid.column_tiles, "HIDDEN": grid.tile.hidden}
    y = x.new_empty(grid.batch, grid.points, outputs)
    kernel[(grid.row_tiles,)](
        x, *(part for layer in layers for part in layer), y,
        omega, grid.batch, grid.points, inputs, *hidden, outputs,
        **grid.constants(SINE=sine, HEAD=plan.LARGEST_HEAD, DEPTH=grid.tile.depth, **more),
    )  # fmt: skip
    return y


def layer_backward(
    dy: Tensor, x: Tensor, layer: Layer, omega: float, sine: bool, *, overwrite: bool = False
) -> tuple[Tensor, Gradients]:
    """dc, in the memory of dy if `overwrite`, and the gradients of scale and bias. Without sine and scale, dc is dy."""
    weight, style, scale, bias = layer
    if not sine and scale is None:
        return dy, Gradients(bias=_column_sums(dy, bias))
    outputs, inputs = weight.shape
    grid = _Grid("layer_backward", x, style, outputs, inputs)
    dc = dy if overwrite else torch.empty_like(dy)
    dscale = None if scale is None else grid.sums_of_samples(scale, outputs, torch.float32)
    dbias = None if bias is None else bias.new_empty(grid.row_tiles, outputs, dtype=torch.float32)
    kernels.layer_backward[(grid.row_tiles * grid.column_tiles,)](
        dy, x, weight, style, scale, bias, dc, dscale, dbias, omega, grid.batch, grid.points, inputs, outputs,
        **grid.constants(SINE=sine, DEPTH=grid.tile.depth),
    )  # fmt: skip
    return dc, Gradients(scale=_total(dscale, 1), bias=_total(dbias, 0))


def head_backward(
    dy: Tensor, x: Tensor, layer: Layer, head: Layer, omega: float
) -> tuple[Tensor, Gradients, Gradients]:
    """dc of the layer under a linear head, the gradients of its scale and bias, and those of the head."""
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
    of_head = Gradients(_total(dhead, 0), _total(dstyle, 1), None, _column_sums(dy, head_bias))
    return dc, Gradients(scale=_total(dscale, 1), bias=_total(dbias, 0)), of_head


def input_backward(
    dc: Tensor, x: Tensor, weight: Tensor, style: Tensor, needs_x: bool, needs_style: bool, *, overwrite: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x (float32 if it is shared; in the memory of x if `overwrite`) and style, where needed."""
    outputs, inputs = weight.shape
    grid = _Grid("input_backward", x, style, inputs, outputs)
    sums = (
        plan.parts(grid.point_tiles * grid.column_tiles, grid.groups, least=2)
        if grid.shared and needs_x
        else grid.groups
    )
    groups = _ceil(grid.groups, sums)
    programs = _ceil(grid.groups, groups)
    dstyle = grid.sums_of_samples(style, inputs, style.dtype) if needs_style else None
    dx = None
    if needs_x:
        if grid.shared:
            dx = x.new_empty(programs, *x.shape, dtype=torch.float32)
        else:
            dx = x if overwrite else torch.empty_like(x)
    kernels.input_backward[(programs * grid.point_tiles * grid.column_tiles,)](
        dc, x, weight, style, dx, dstyle, groups, grid.batch, grid.points, inputs, outputs,
        **grid.constants(DEPTH=grid.tile.depth),
    )  # fmt: skip
    return _total(dx, 0) if grid.shared else dx, _total(dstyle, 1)


def weight_backward(dc: Tensor, x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    """The gradient of the weight, in float32."""
    outputs, inputs = weight.shape
    grid = _Grid("weight_backward", x, style, inputs, outputs)
    output_tiles = _ceil(outputs, grid.tile.depth)
    tiles = _ceil(grid.row_tiles, plan.parts(grid.column_tiles * output_tiles, grid.row_tiles, least=32))
    programs = _ceil(grid.row_tiles, tiles)
    dw = weight.new_empty(programs, outputs, inputs, dtype=torch.float32)
    kernels.weight_backward[(programs * output_tiles * grid.column_tiles,)](
        dc, x, style, dw, tiles, grid.batch, grid.points, inputs, outputs,
        **grid.constants(OUTPUTS=grid.tile.depth),
    )  # fmt: skip
    return _total(dw, 0)
