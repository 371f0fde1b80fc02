"""The modulated SIREN that paints the generator's patches: points shared by all patches, styles of their own."""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, Inputs
from benchmarks.machine import pick_device
from benchmarks.peers import siren
from benchmarks.session import CLOCK, Session, fits, name_of_ours, show
from vitgan_kernels import modulated_siren, reference

pytestmark = pytest.mark.benchmark(timer=CLOCK)

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
MAIN = (64, 16, 384, 1) if ON_CPU else (8192, 16, 384, 2)
# (patches, points of a patch, width, hidden layers); 3 channels come out
SIZES = {
    "small": {
        "cpu": [(256, 64, 32, 1), MAIN, *((64, points, 64, 1) for points in (16, 64, 256))],
        "cuda": [MAIN],
    },
    "paper": {
        "cpu": [MAIN, (256, 16, 384, 2)],
        "cuda": [
            MAIN,
            (8192, 16, 384, 1),
            (32, 16384, 384, 2),  # one patch as large as an image of 128 x 128
            (2048, 256, 384, 2),
            *((patches, 16, 384, 2) for patches in (64, 512, 2048)),
            *((1024, points, 384, 2) for points in (16, 64, 256)),
        ],
    },
}


def exact(x: Tensor, *parameters: Tensor) -> Tensor:
    weights, biases, styles = siren.split(parameters)
    for index, (weight, bias, style) in enumerate(zip(weights, biases, styles, strict=True)):
        activation = "sine" if index < len(weights) - 1 else None
        x = reference.modulated_linear(x, weight, style, bias, activation=activation, omega=siren.OMEGA)
    return x


def ours(x: Tensor, *parameters: Tensor) -> Tensor:
    weights, biases, styles = siren.split(parameters)
    return modulated_siren(x, weights, styles, biases, omega=siren.OMEGA)


_ONES = torch.ones(16, 16, device=DEVICE, dtype=fits(DEVICE)[0])
NAME = name_of_ours("modulated_siren", _ONES, [_ONES, _ONES], [_ONES, _ONES])


@cache
def case(patches: int, points: int, width: int, hidden: int, dtype: torch.dtype) -> Case:
    """Least bytes: points, weights and styles once, and the pixels; in the backward, and in its own, the pixels'
    cotangent and one gradient for each input besides. Operations: two for each weight and point of each patch, twice
    that more in the backward, and in its own backward twice those three."""
    widths = [width] * (hidden + 1) + [3]

    def inputs(seed: int) -> Inputs:
        random = torch.Generator(DEVICE).manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> Tensor:
            return (torch.randn(shape, generator=random, device=DEVICE) * scale + mean).to(dtype)

        sizes = list(pairwise(widths))
        weights = [normal(o, i, scale=(2 / i) ** 0.5 / siren.OMEGA) for i, o in sizes]
        biases = [normal(o, scale=0.1 / siren.OMEGA) for _, o in sizes]
        styles = [normal(patches, i, scale=0.3, mean=1.0) for i, _ in sizes]
        return [normal(points, width).sin(), *weights, *biases, *styles], [normal(patches, points, 3)]

    count = sum(i * o for i, o in pairwise(widths))
    read = (points * width + count + patches * sum(widths[:-1])) * dtype.itemsize
    pixels = patches * points * 3 * dtype.itemsize
    products = 2.0 * patches * points * count
    return Case(
        suite="modulated_siren",
        name=f"({patches}, {points}, {width}), {hidden} hidden",
        shape={"patches": patches, "points": points, "width": width, "hidden": hidden},
        dtype=dtype,
        inputs=inputs,
        exact=exact,
        plain=siren.scaled_operand,
        wanted=tuple(range(1 + 3 * (hidden + 1))),
        bytes={"forward": read + pixels, "forward_backward": 2 * read + pixels, "second_order": 2 * read + pixels},
        flops={"forward": products, "forward_backward": 3 * products, "second_order": 9 * products},
    )


def contenders(main: bool) -> Sequence[Contender]:
    elsewhere = {} if main or not ON_CPU else {"*": f"on the CPU it is compiled for the case {MAIN} alone"}
    tuned = {"*": "autotuning on the CPU takes minutes"} if ON_CPU else {}
    algebra = siren.scaled_operand
    return [
        Contender(NAME, ours, ours=True),
        Contender(f"{NAME}, compiled", ours, ours=True, compiled="default", unable=elsewhere),
        Contender("eager, scaled operand", algebra),
        Contender("compiled, scaled operand", algebra, compiled="default", unable=elsewhere),
        Contender("compiled, max-autotune", algebra, compiled="max-autotune-no-cudagraphs", unable=tuned),
        Contender("grouped convolution", siren.grouped_convolution),
        Contender("plain SIREN (a floor)", siren.plain, exact=siren.plain),
    ]


NAMES = [contender.who for contender in contenders(True)]


@pytest.mark.parametrize("who", NAMES)
@pytest.mark.parametrize("measures", ["forward", "forward_backward", "second_order"])
@pytest.mark.parametrize("dtype", fits(DEVICE), ids=str)
def test_modulated_siren(
    sizes: tuple[int, int, int, int], dtype: torch.dtype, measures: str, who: str, session: Session, benchmark: Any
) -> None:
    if ON_CPU and measures == "second_order" and sizes != MAIN:
        pytest.skip(f"on the CPU the second order is measured in the case {MAIN} alone")
    show(session.case(case(*sizes, dtype), measures, lambda: contenders(sizes == MAIN), who), benchmark)
