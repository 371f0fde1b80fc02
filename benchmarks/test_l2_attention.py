"""L2 attention with tied queries and keys, against everything else that can compute it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, Inputs
from benchmarks.machine import pick_device
from benchmarks.peers import attention
from benchmarks.session import CLOCK, Session, fits, name_of_ours, show
from vitgan_kernels import l2_attention, reference

pytestmark = pytest.mark.benchmark(timer=CLOCK)

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
MAIN = (8, 6, 65, 64) if ON_CPU else (512, 6, 65, 64)
# (batch, heads, tokens, width): the discriminators of the presets, then one size at growing lengths
SIZES = {
    "small": {
        "cpu": [(16, 2, 17, 32), MAIN, (1, 6, 257, 64), *((2, 2, n, 32) for n in (33, 129, 513))],
        "cuda": [MAIN, (128, 6, 257, 64), (32, 6, 1025, 64)],
    },
    "paper": {
        "cpu": [MAIN, (2, 6, 257, 64), (1, 6, 1025, 64)],
        "cuda": [
            MAIN,
            (128, 6, 65, 64),
            (128, 6, 257, 64),
            (32, 6, 1025, 64),
            *((16, 6, n, 64) for n in (65, 129, 257, 513, 1025, 2049, 4097)),
            *((b, 6, 65, 64) for b in (8, 32, 2048)),
        ],
    },
}
NO_SECOND = "it has no second derivative"


def exact(q: Tensor, v: Tensor) -> Tensor:
    return reference.l2_attention(q, None, v)


def ours(q: Tensor, v: Tensor) -> Tensor:
    return l2_attention(q, None, v)


_TOKENS = torch.ones(1, 1, 17, 32, device=DEVICE, dtype=fits(DEVICE)[0])
NAME = name_of_ours("l2_attention", _TOKENS, None, _TOKENS)


@cache
def case(batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype) -> Case:
    """Least bytes: q, v and the cotangent once, results once. Operations: N^2 d products, two each, of 2 in the
    forward, 5 more in the backward, 12 more in its backward."""

    def inputs(seed: int) -> Inputs:
        random = torch.Generator(DEVICE).manual_seed(seed)
        shape = (batch, heads, tokens, width)
        q, v, grad = (torch.randn(shape, generator=random, device=DEVICE).to(dtype) for _ in range(3))
        return [q, v], [grad]

    whole = batch * heads * tokens * width * dtype.itemsize
    product = 2.0 * batch * heads * tokens**2 * width
    return Case(
        suite="l2_attention",
        name=f"({batch}, {heads}, {tokens}, {width})",
        shape={"batch": batch, "heads": heads, "tokens": tokens, "width": width},
        dtype=dtype,
        inputs=inputs,
        exact=exact,
        plain=attention.eager,
        wanted=(0, 1),
        bytes={"forward": 3 * whole, "forward_backward": 5 * whole, "second_order": 5 * whole},
        flops={"forward": 2 * product, "forward_backward": 7 * product, "second_order": 19 * product},
    )


def contenders(main: bool) -> Sequence[Contender]:
    elsewhere = {} if main or not ON_CPU else {"*": f"on the CPU it is compiled for the case {MAIN} alone"}
    tuned = {"*": "autotuning on the CPU takes minutes"} if ON_CPU else {}
    no_flex = {"forward_backward": "it has no backward on the CPU"} if ON_CPU else {}
    return [
        Contender(NAME, ours, ours=True),
        Contender(f"{NAME}, compiled", ours, ours=True, compiled="default", unable=elsewhere),
        Contender("eager", attention.eager),
        Contender("eager, float32 inside", exact),
        Contender("compiled", exact, compiled="default", unable=elsewhere),
        Contender("compiled, max-autotune", exact, compiled="max-autotune-no-cudagraphs", unable=tuned),
        Contender("SDPA, one more feature", attention.sdpa, unable={"second_order": NO_SECOND}),
        Contender("SDPA, math backend", attention.sdpa_math),
        Contender("FlexAttention", attention.Flex(), unable=elsewhere | no_flex | {"second_order": NO_SECOND}),
    ]


NAMES = [contender.who for contender in contenders(True)]


@pytest.mark.parametrize("who", NAMES)
@pytest.mark.parametrize("measures", ["forward", "forward_backward", "second_order"])
@pytest.mark.parametrize("dtype", fits(DEVICE), ids=str)
def test_l2_attention(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, measures: str, who: str, session: Session, benchmark: Any
) -> None:
    show(session.case(case(*sizes, dtype), measures, lambda: contenders(sizes == MAIN), who), benchmark)
