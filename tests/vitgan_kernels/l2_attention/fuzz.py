"""Random calls of L2 attention in C++, held against float64 to order 2. Run it for as long as you like:

    python tests/vitgan_kernels/l2_attention/fuzz.py --seconds 600

It prints its seed, and of each call that is wrong what it was. VITGAN_CPU_LEVEL chooses the instructions.
"""

import argparse
import random
import sys
import time

import torch
from torch import Tensor

from vitgan_kernels import l2_attention, native_support
from vitgan_kernels.self_check import Arguments, Case, check

SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 40, 63, 64, 65, 100, 129, 257)
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def draw(seed: int) -> tuple[Case, torch.dtype, str]:
    """A call, its dtype, and what it is in words."""
    rng = random.Random(seed)
    b, h, n, m, d, e = rng.randint(1, 3), rng.randint(1, 3), *(rng.choice(SIZES) for _ in range(4))
    if n * m * (d + e) > 2_000_000:
        n, m = min(n, 65), min(m, 65)
    tied, metric = rng.random() < 0.5, rng.choice(("sqeuclidean", "euclidean"))
    scale = rng.choice(
        (None, 0.3 * d**-0.5, -0.1 * d**-0.5, d**-0.5)
    )  # where weights vanish there is nothing to compare
    layout = rng.choice(("plain", "heads inside", "padded", "shared keys"))
    generator = torch.Generator().manual_seed(seed)

    def make(tokens: int, features: int, shared: bool = False) -> Tensor:
        sizes = (1, 1) if shared else (b, h)
        x = torch.randn(*sizes, tokens, features, generator=generator, dtype=torch.float64)
        return x.transpose(1, 2).contiguous() if layout == "heads inside" else x

    def laid_out(x: Tensor) -> Tensor:
        if layout == "heads inside":
            return x.transpose(1, 2)
        return torch.nn.functional.pad(x, (1, 2))[..., 1:-2] if layout == "padded" else x

    def arguments(q: Tensor, v: Tensor, k: Tensor | None = None) -> Arguments:
        keys = None if k is None else laid_out(k)
        return (laid_out(q), keys, laid_out(v)), {"scale": scale, "metric": metric}

    tensors = [make(n, d), make(n if tied else m, e)]
    if not tied:
        tensors.append(make(m, d, layout == "shared keys"))
    dtype = rng.choice(DTYPES)
    words = f"{(b, h, n, m, d, e)} {'tied' if tied else 'untied'} {metric} scale={scale} {layout} {dtype}"
    return Case("l2_attention", l2_attention, tensors, arguments, 2, (dtype,)), dtype, words


def wrong(seed: int) -> list[str]:
    """What is wrong with the call of this seed: an error above twice that of plain PyTorch and of rounded inputs."""
    case, dtype, words = draw(seed)
    return [
        f"seed {seed}: {words}: order {o.derivative}: {o.problem}"
        for o in check(case, "cpp", dtype)
        if o.error is None or o.allowed is None or o.error > 2 * o.allowed
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Random calls of L2 attention in C++, held against float64.")
    parser.add_argument("--seconds", type=float, default=600, help="how long to go on")
    parser.add_argument("--calls", type=int, default=sys.maxsize, help="end after so many calls, if not by the time")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31), help="of the first call")
    options = parser.parse_args()
    print(f"seed {options.seed}, {native_support.available()[1]}", flush=True)
    end, seed, found = time.monotonic() + options.seconds, options.seed, 0
    while time.monotonic() < end and seed - options.seed < options.calls:
        torch.set_num_threads(1 + seed % 4)
        problems = wrong(seed)
        found += len(problems)
        print(*problems, sep="\n", end="\n" * bool(problems), flush=True)
        seed += 1
    print(f"{seed - options.seed} calls, {found} wrong")
    return found > 0


if __name__ == "__main__":
    sys.exit(main())
