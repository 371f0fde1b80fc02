"""Which path and which tiles: a table by kernel, width and dtype, the same on every run.

No timing chose these: they are the largest tiles that compile, for every target of the ahead-of-time gate, without
spilled registers and within the shared memory of a block.
"""

from typing import NamedTuple

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
    tile = {"ROWS": 16, "FIRST": first, "REST": rest, "num_warps": 4, "num_stages": 1}
    if order == 1:
        tile["WHOLE"] = shape.tied
    return tile


def tiled(kernel: str, shape: Shape) -> dict[str, int]:
    """Tiles and options of a kernel of the tiled path."""
    return {"ROWS": 32, "KEYS": 32, "num_warps": 4, "num_stages": 1}


def reason(n: int, m: int) -> str:
    """Which path a length takes and why, for `explain`."""
    if max(n, m) <= LONGEST_SHORT:
        first, rest = blocks(m)
        held = f"{first} + {rest}" if rest else f"{first}"
        return f"short path: {m} keys fit one program, as {held}; widths that do not fit an order's are tiled"
    return f"tiled path: more than {LONGEST_SHORT} queries or keys ({n} and {m})"
