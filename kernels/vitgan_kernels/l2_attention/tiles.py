"""Which path and which tiles: a table by kernel, width and dtype, the same on every run.

No timing chose these: they come from compiling for sm_80, sm_90 and gfx942, as large as registers and shared memory let
them. Some of the widest still spill: second orders in float32, and wider than 64 in 16 bits.
"""

from typing import NamedTuple

from vitgan_kernels import triton_support

LONGEST_SHORT = 128
WIDEST = 256


def padded(width: int) -> int:
    """The next power of two, at least 16: what a tile of that width takes."""
    return max(16, 1 << (width - 1).bit_length())


def blocks(tokens: int) -> tuple[int, int]:
    """Up to 128 tokens in two blocks of powers of two, the second 0 where one block is as good."""
    whole = padded(tokens)
    half = whole // 2
    if half < 16:
        return whole, 0
    rest = padded(tokens - half)
    return (half, rest) if half + rest < whole else (whole, 0)


class Shape(NamedTuple):
    """What tiles are chosen by."""

    n: int
    m: int
    d: int
    e: int
    itemsize: int
    tied: bool


def short(order: int, shape: Shape) -> dict[str, int] | None:
    """Blocks and options of the short path's kernel of an order, or None where the tiled path has to serve."""
    if max(shape.n, shape.m) > LONGEST_SHORT:
        return None
    first, rest = blocks(shape.m)
    width = max(32, padded(max(shape.d, shape.e)))
    on_hip = triton_support.target() == "hip"
    longest = (SHORT_HIP if on_hip else SHORT_CUDA)[order].get((width, shape.itemsize > 2), 0)
    if first + rest > longest:
        return None
    few = on_hip or (order == 0 and shape.itemsize == 2 and width * (first + rest) <= 64 * 80)
    return {"ROWS": 16, "FIRST": first, "REST": rest, "num_warps": 4 if few else 8, "num_stages": 1}


def tiled(kernel: str, shape: Shape) -> dict[str, int]:
    """Tiles and options of a kernel of the tiled path."""
    width = max(64, padded(max(shape.d, shape.e)))
    table = TILED_HIP if triton_support.target() == "hip" else TILED_CUDA
    if shape.itemsize > 2:
        table, width = (TILED_HIP, min(256, 2 * width)) if table is TILED_HIP else (TILED_CUDA_FLOAT32, width)
    rows, keys, warps = table[kernel][width]
    return {"ROWS": rows, "KEYS": keys, "num_warps": warps, "num_stages": 1}


# By order: the most keys, padded, that a short kernel holds, for (padded width, float32?). What is missing is tiled.
SHORT_CUDA = (
    {(32, False): 128, (64, False): 128, (128, False): 80, (32, True): 80, (64, True): 48},
    {(32, False): 128, (64, False): 128, (32, True): 80, (64, True): 80},
    {(32, False): 80, (64, False): 80},
)
SHORT_HIP = (
    {(32, False): 128, (64, False): 128, (128, False): 80, (32, True): 80, (64, True): 80},
    {(32, False): 128, (64, False): 128, (128, False): 80, (32, True): 80, (64, True): 80},
    {(32, False): 80},
)
# By kernel and padded width: (ROWS, KEYS, num_warps).
TILED_CUDA = {
    "forward": {64: (64, 64, 8), 128: (32, 32, 4), 256: (32, 32, 8)},
    "backward_rows": {64: (32, 32, 4), 128: (32, 32, 8), 256: (16, 16, 8)},
    "backward_keys": {64: (32, 32, 4), 128: (32, 32, 8), 256: (16, 16, 8)},
    "second_order_sums": {64: (16, 16, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
    "second_order_rows": {64: (16, 16, 4), 128: (16, 16, 8), 256: (16, 16, 8)},
    "second_order_keys": {64: (16, 32, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
}
TILED_CUDA_FLOAT32 = {
    kernel: {64: (16, 16, 4), 128: (16, 16, 8), 256: (16, 16, 8)} for kernel in TILED_CUDA if kernel != "forward"
} | {"forward": {64: (32, 32, 4), 128: (16, 32, 4), 256: (32, 32, 8)}}
TILED_HIP = {
    "forward": {64: (64, 64, 4), 128: (64, 64, 8), 256: (16, 32, 4)},
    "backward_rows": {64: (64, 64, 4), 128: (64, 32, 4), 256: (16, 16, 4)},
    "backward_keys": {64: (64, 64, 4), 128: (64, 32, 4), 256: (16, 16, 4)},
    "second_order_sums": {64: (64, 64, 4), 128: (16, 32, 4), 256: (16, 16, 4)},
    "second_order_rows": {64: (64, 64, 4), 128: (16, 16, 4), 256: (16, 16, 4)},
    "second_order_keys": {64: (64, 32, 4), 128: (16, 32, 4), 256: (16, 16, 4)},
}


def reason(n: int, m: int) -> str:
    """Which path a length takes and why, for `explain`."""
    if max(n, m) <= LONGEST_SHORT:
        first, rest = blocks(m)
        held = f"{first} + {rest}" if rest else f"{first}"
        return f"short path: {m} keys fit one program, as {held}; widths that do not fit an order's are tiled"
    return f"tiled path: more than {LONGEST_SHORT} queries or keys ({n} and {m})"
