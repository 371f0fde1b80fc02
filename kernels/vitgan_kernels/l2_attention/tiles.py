"""Which path and which tiles: a table by kernel, width and dtype, the same on every run.

No timing chose these: they are the largest tiles that compile, for every target of the ahead-of-time gate, without
spilled registers and within the shared memory of a block.
"""

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


def is_short(order: int, n: int, m: int, d: int, e: int, itemsize: int, tied: bool) -> bool:
    """Whether one program can hold a whole (batch, head)."""
    return max(n, m) <= LONGEST_SHORT


def short(order: int, m: int, d: int, e: int, itemsize: int) -> dict[str, int]:
    """Blocks and options of the short path's kernels."""
    first, rest = blocks(m)
    return {"ROWS": 16, "FIRST": first, "REST": rest, "num_warps": 4, "num_stages": 1}


def tiled(kernel: str, d: int, e: int, itemsize: int) -> dict[str, int]:
    """Tiles and options of a kernel of the tiled path."""
    return {"ROWS": 32, "KEYS": 32, "num_warps": 4, "num_stages": 1}
