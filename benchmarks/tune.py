"""python -m benchmarks.tune FILE: the fastest tile of each kernel of L2 attention's tiled path, on this GPU.

A kernel's tiles are tried one after the other, the others' being as they are; a tile counts where the results are those
of the table's own within a rounding. FILE is complete after every tile. Nothing is changed: the gate decides whether
what is fastest here may enter `tiles.py`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import largest_error, seconds_of
from vitgan_kernels import l2_attention
from vitgan_kernels.l2_attention import tiles

Tile = tuple[int, int, int]  # ROWS, KEYS, num_warps
CANDIDATES: list[Tile] = list(product((16, 32, 64, 128), (16, 32, 64), (4, 8)))
ORDERS = {"forward": 0, "backward_tied": 1, "second_order_sums": 2, "second_order_rows": 2, "second_order_keys": 2}
WIDTH, SIZE = 64, (32, 6, 1025, 64)


def step(order: int, q: Tensor, v: Tensor) -> list[Tensor]:
    """The value, or what the first or second derivative gives."""
    out = l2_attention(q, None, v, backend="triton")
    if order == 0:
        return [out]
    first = torch.autograd.grad(out.square().sum(), (q, v), create_graph=order > 1)
    return list(first if order == 1 else torch.autograd.grad(first[0].square().sum(), (q, v)))


def tune(
    row: dict[int, Tile], results: Callable[[], Sequence[Tensor]], seconds: Callable[[], float], allowed: float
) -> dict[Tile, float]:
    """Seconds with each tile of a table's row at WIDTH; infinite where it does not run or is wrong."""
    own = row[WIDTH]
    exact = [x.double() for x in results()]
    taken: dict[Tile, float] = {}
    for tile in [own, *(each for each in CANDIDATES if each != own)]:
        row[WIDTH] = tile
        try:
            right = largest_error(results(), exact) <= allowed
            taken[tile] = seconds() if right else inf
        except Exception:  # too much shared memory, or a limit of the compiler
            taken[tile] = inf
        finally:
            row[WIDTH] = own
    return taken


def main() -> int:
    """Write FILE; the exit status."""
    path, device = Path(sys.argv[1]), torch.device("cuda")
    q, v = (torch.randn(SIZE, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    found: list[dict[str, Any]] = []
    for kernel, order in ORDERS.items():

        def call(order: int = order) -> list[Tensor]:
            return step(order, q, v)

        def seconds(call: Callable[[], object] = call) -> float:
            return min(seconds_of(call, 3, device) for _ in range(5))

        taken = tune(tiles.TILED_CUDA[kernel], call, seconds, 2 * torch.finfo(torch.bfloat16).eps)
        own, best = next(iter(taken)), min(taken, key=lambda tile: taken[tile])
        times = [{"tile": tile, "seconds": value} for tile, value in taken.items() if value < inf]
        found.append({"kernel": kernel, "width": WIDTH, "table": own, "fastest": best, "times": times})
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{kernel}: {own} takes {taken[own]:.2e} s, {best} {taken[best]:.2e} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
