"""Which kernels serve a call, in tiles of which size: sizes and dtypes only; Triton need not be installed.

Nothing is tuned at run time. Which program computes what, and so the order of every sum, follows from the shapes, the
dtype and the kind of GPU alone, never from the device's number of multiprocessors: results repeat bit for bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vitgan_kernels import triton_support

Kind = Literal["half", "tf32", "ieee"]
"""How products are computed: 16-bit operands, float32 rounded to TF32, or float32 without tensor cores."""

LARGEST_HEAD = 16
LARGEST_SECOND_LAYER: dict[Kind, int] = {"half": 512, "tf32": 256}
"""Features of a second hidden layer whose sums fit in the registers of a program."""
WIDTH_OF_64_ROWS = 384
"""Up to here they fit for 64 rows in 16-bit dtypes; for 32 rows beyond."""
WORKSPACE = 128 * 2**20
"""Bytes of hidden layers and their gradients in memory at a time; larger batches go in groups of samples."""


@dataclass(frozen=True)
class Tile:
    """What one program computes, and by how many warps: rows are points of samples."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    hidden: int = 0  # features of the first of two hidden layers at a time
    registers: int = 0  # at most, of a thread (CUDA); 0 leaves it to the assembler, which spills for a second block

    def options(self) -> dict[str, int]:
        """Options of the launch."""
        limit = {"maxnreg": self.registers} if self.registers else {}
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True} | limit


# kernel: kind: tile. Chosen so that nothing spills and shared memory stays below 99 KB (CUDA), 64 KB (AMD), as
# tests/aot checks; not tuned on a GPU.
_TILES: dict[str, dict[str, Tile]] = {
    "layer_forward": {
        "half": Tile(128, 128, 32, 8, 3),
        "tf32": Tile(128, 64, 32, 8, 2),
        "ieee": Tile(32, 64, 16, 4, 2),
    },
    "network2_forward": {
        "half": Tile(128, 128, 32, 8, 3),
        "tf32": Tile(64, 64, 32, 4, 2),
    },
    "network3_forward": {
        "half": Tile(64, 128, 32, 8, 2, hidden=64, registers=255),
        "tf32": Tile(32, 128, 32, 8, 2, hidden=32),
    },
    "wide_network3_forward": {
        "half": Tile(32, 128, 32, 8, 2, hidden=32),
    },
    "layer_backward": {
        "half": Tile(128, 64, 32, 8, 3),
        "tf32": Tile(64, 64, 32, 8, 2),
        "ieee": Tile(32, 64, 16, 4, 2),
    },
    "head_backward": {
        "half": Tile(64, 64, 32, 4, 3),
        "tf32": Tile(64, 64, 32, 8, 2),
        "ieee": Tile(32, 32, 16, 4, 2),
    },
    "input_backward": {
        "half": Tile(128, 128, 32, 8, 3),
        "tf32": Tile(64, 64, 32, 8, 2),
        "ieee": Tile(32, 32, 16, 4, 2),
    },
    "weight_backward": {  # depth is the number of outputs
        "half": Tile(32, 128, 128, 8, 3),
        "tf32": Tile(32, 64, 64, 4, 2),
        "ieee": Tile(16, 32, 64, 4, 2),
    },
}
# Consumer Blackwell, compute capability 12.
_RTX_50_TILES: dict[str, dict[str, Tile]] = {
    "network3_forward": {"half": Tile(64, 128, 32, 8, 2, hidden=32)},
}
_HIP_TILES: dict[str, dict[str, Tile]] = {
    "network3_forward": {
        "half": Tile(64, 128, 32, 8, 2, hidden=64),
        "tf32": Tile(32, 128, 32, 4, 2, hidden=32),
    },
    "wide_network3_forward": {"half": Tile(32, 128, 32, 4, 2, hidden=32)},
}


def kind_of(dtype: torch.dtype) -> Kind:
    """How products of this dtype are computed, by PyTorch's setting for float32."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if triton_support.float32_precision() == "tf32" else "ieee"


def widths(weights: Sequence[Tensor]) -> list[int]:
    """Features of x, of each hidden layer and of the output."""
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)]


def tile(kernel: str, kind: Kind, target: str, *, columns: int, depth: int) -> Tile:
    """The tile of a kernel, no larger than there are columns and depth to fill it (16 at least, for tensor cores)."""
    chosen = _TILES[kernel][kind]
    other = _HIP_TILES if target == "hip" else _RTX_50_TILES if triton_support.generation() == 12 else {}
    chosen = other.get(kernel, {}).get(kind, chosen)
    return replace(
        chosen,
        columns=min(chosen.columns, max(16, power_of_two(columns))),
        depth=min(chosen.depth, max(16, power_of_two(depth))),
    )


def power_of_two(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def points_of_tile(points: int, rows: int) -> int:
    """How many points of a sample a tile of `rows` rows takes: few rows stay empty, and few tiles share a sample."""
    largest = min(rows, power_of_two(points))
    candidates = [largest >> shift for shift in range(largest.bit_length()) if largest >> shift >= min(16, largest)]
    return min(candidates, key=lambda size: -(-points // size) * size)


def parts(products: int, of: int, *, least: int) -> int:
    """Into how many partial sums a sum over `of` tiles is cut, where `products` programs need one each.

    Some 500 programs keep a GPU busy; each adds at least `least` tiles, which bounds the memory of the sums.
    """
    return max(1, min(of // least, -(-512 // products)))


def explained(kind: Kind, widths: list[int], *, demodulate: bool, final_sine: bool) -> str:
    """Which kernels a call runs, forward and backward, and what is kept between the two."""
    kept = "only the inputs are kept, and backward computes the rest again"
    if len(widths) == 2:
        return f"product, scales, bias and sine in one kernel; {kept}"
    obstacle = obstacle_to_fusion(kind, widths)
    forward = "the whole network in one kernel" if obstacle is None else f"one kernel a layer, because {obstacle}"
    if head_is_fused(widths, demodulate=demodulate, final_sine=final_sine):
        return f"{forward}; backward, the last layer together with the one before it; {kept}"
    return f"{forward}; backward, each layer by itself; {kept}"


def head_is_fused(widths: list[int], *, demodulate: bool, final_sine: bool) -> bool:
    """Whether the backward pass takes the last layer together with the one before it, which is then never stored."""
    return len(widths) > 2 and widths[-1] <= LARGEST_HEAD and not demodulate and not final_sine


def obstacle_to_fusion(kind: Kind, widths: list[int]) -> str | None:
    """Why the whole network cannot be one kernel, or None. widths: of x, of each hidden layer, of the output."""
    hidden = widths[1:-1]
    if len(hidden) not in (1, 2):
        return f"it has {len(hidden)} hidden layers and one kernel takes 1 or 2"
    if widths[-1] > LARGEST_HEAD:
        return f"it has {widths[-1]} outputs and one kernel takes at most {LARGEST_HEAD}"
    if kind == "ieee":
        return "float32 products without TF32 use no tensor cores, and need registers for little else"
    if len(hidden) == 2 and hidden[1] > LARGEST_SECOND_LAYER[kind]:
        return f"its second layer has {hidden[1]} features and registers hold {LARGEST_SECOND_LAYER[kind]}"
    return None


def samples_at_a_time(batch: int, bytes_of_a_sample: int) -> int:
    """How many samples go through the layers together, so that what lies between them takes at most WORKSPACE bytes."""
    groups = -(-batch * bytes_of_a_sample // WORKSPACE)
    return max(1, -(-batch // max(1, groups)))
