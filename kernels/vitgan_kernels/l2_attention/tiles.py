"""Which path and which tiles: a table by kernel, width and dtype, the same on every run.

No timing chose these: they come from compiling for sm_80, sm_90, sm_100 and gfx942, as large as registers and shared
memory let them; `tests/aot/l2_attention.py` holds every entry to that.

On the short path a program has one (batch, head). Two of them share no operand, so that a product over both would be
half zeros, and a device has enough programs of one: 3072 at the paper's batch of 512 with 6 heads.
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
    euclidean: bool


def short(order: int, shape: Shape) -> dict[str, int] | None:
    """Blocks and options of the short path's kernel of an order, or None where the tiled path has to serve.

    The second order of the distance itself spills at every width, so that it is always tiled.
    """
    if max(shape.n, shape.m) > LONGEST_SHORT or (order == 2 and shape.euclidean):
        return None
    first, rest = blocks(shape.m)
    width = max(32, padded(max(shape.d, shape.e)))
    on_hip = triton_support.target() == "hip"
    table = SHORT_HIP if on_hip else SHORT_HOPPER if triton_support.generation() in (9, 10) else SHORT_CUDA
    # Every order of float32 recomputes P from one log-sum-exp, which only kernels that round products alike agree on.
    # Its second order fits no short kernel, so none of its orders takes one. 16 bits are too coarse to see this.
    longest = table[order].get(width, 0) if shape.itemsize == 2 else 0
    if first + rest > longest:
        return None
    few = on_hip or (order == 0 and width * (first + rest) <= 64 * 80)
    tile = {"ROWS": 16, "FIRST": first, "REST": rest, "num_warps": 4 if few else 8, "num_stages": 1}
    return tile | _registers(shape)


def tiled(kernel: str, shape: Shape) -> dict[str, int]:
    """Tiles and options of a kernel of the tiled path."""
    width = max(64, padded(max(shape.d, shape.e)))
    if triton_support.target() == "hip":
        table, width = TILED_HIP, min(256, 2 * width) if shape.itemsize > 2 or shape.euclidean else width
    elif shape.itemsize == 2:
        table = TILED_CUDA
    else:
        table = TILED_CUDA_FLOAT32 if triton_support.generation() < 10 else TILED_BLACKWELL_FLOAT32
    rows, keys, warps = table[kernel][width]
    tile = {"ROWS": rows, "KEYS": keys, "CHUNK": CHUNK[shape.itemsize], "num_warps": warps, "num_stages": 1}
    return tile | _registers(shape, kernel)


def _registers(shape: Shape, kernel: str = "") -> dict[str, int]:
    """All registers, where the CUDA assembler would spill a few of them for the sake of one more block at a time."""
    crowded = shape.euclidean or shape.itemsize > 2 or max(shape.d, shape.e) > CHUNK[2] or kernel == "backward_tied"
    return {"maxnreg": 255} if crowded and triton_support.target() == "cuda" else {}


# By bytes of an element: the most features that a tile is held with; wider ones are read in parts of that size.
CHUNK = {2: 128, 4: 32}
# By order and padded width: the most keys, padded, that a short kernel of 16-bit tensors holds.
SHORT_CUDA = ({32: 128, 64: 128, 128: 80}, {32: 128, 64: 128}, {32: 80})
SHORT_HOPPER = (*SHORT_CUDA[:2], {32: 80, 64: 80})  # and data-centre Blackwell
SHORT_HIP = ({32: 128, 64: 128, 128: 80}, {32: 128, 64: 128, 128: 80}, {32: 80})
# By kernel and padded width: (ROWS, KEYS, num_warps).
TILED_CUDA = {
    "forward": {64: (64, 64, 8), 128: (32, 32, 4), 256: (32, 32, 8)},
    "backward_rows": {64: (32, 32, 4), 128: (16, 32, 4), 256: (16, 16, 8)},
    "backward_keys": {64: (32, 32, 4), 128: (32, 32, 8), 256: (16, 16, 8)},
    "backward_tied": {64: (32, 32, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
    "second_order_sums": {64: (16, 16, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
    "second_order_rows": {64: (16, 16, 4), 128: (16, 16, 8), 256: (16, 16, 8)},
    "second_order_keys": {64: (16, 32, 4), 128: (16, 16, 4), 256: (16, 16, 8)},
}
TILED_CUDA_FLOAT32 = {kernel: {64: (16, 16, 4), 128: (16, 16, 8), 256: (16, 16, 8)} for kernel in TILED_CUDA} | {
    "forward": {64: (32, 32, 4), 128: (16, 32, 4), 256: (16, 32, 8)},
    "second_order_rows": {64: (16, 16, 8), 128: (16, 16, 8), 256: (16, 16, 8)},
}
TILED_BLACKWELL_FLOAT32 = TILED_CUDA_FLOAT32 | {
    "second_order_rows": {64: (16, 16, 8), 128: (16, 16, 8), 256: (8, 16, 8)},
    "second_order_keys": {64: (16, 16, 4), 128: (16, 16, 8), 256: (16, 8, 8)},
}
TILED_HIP = {
    "forward": {64: (64, 64, 4), 128: (64, 64, 8), 256: (16, 32, 4)},
    "backward_rows": {64: (64, 64, 4), 128: (64, 32, 4), 256: (16, 16, 4)},
    "backward_keys": {64: (64, 64, 4), 128: (64, 32, 4), 256: (16, 16, 4)},
    "backward_tied": {64: (64, 64, 4), 128: (64, 32, 4), 256: (16, 16, 4)},
    "second_order_sums": {64: (64, 64, 4), 128: (16, 32, 4), 256: (16, 16, 4)},
    "second_order_rows": {64: (64, 64, 4), 128: (16, 16, 4), 256: (16, 16, 4)},
    "second_order_keys": {64: (64, 32, 4), 128: (16, 32, 4), 256: (16, 16, 4)},
}


def reason(shape: Shape) -> str:
    """Which path each order takes and why, for `explain`."""
    orders = [order for order in (0, 1, 2) if short(order, shape) is not None]
    if not orders:
        why = f"more than {LONGEST_SHORT} tokens" if max(shape.n, shape.m) > LONGEST_SHORT else "float32, or too wide"
        return f"tiled path: {why} for one program to hold a (batch, head)"
    held = " + ".join(str(block) for block in blocks(shape.m) if block)
    where = "all orders" if len(orders) == 3 else f"order {' and '.join(map(str, orders))}, tiled beyond"
    return f"short path, one program a (batch, head): {shape.m} keys held as {held} ({where})"
