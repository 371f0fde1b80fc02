"""The modulated SIREN that paints the generator's patches: points shared by all patches, styles of their own."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from benchmarks.baselines import siren
from benchmarks.cases import MEASURES, Case, Inputs
from benchmarks.environment import pick_device
from benchmarks.measure import Implementation
from vitgan_kernels import modulated_siren, reference

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
F32, BF16 = torch.float32, torch.bfloat16
Size = tuple[int, int, int, int]  # patches, points of a patch, width, hidden layers; 3 channels come out
if ON_CPU:
    HEADLINES: list[Size] = [(64, 16, 384, 1)]
    SMALL = (256, 64, 32, 1)
    SIZES = [(HEADLINES[0], F32), (SMALL, F32), ((1024, 16, 384, 1), F32), (HEADLINES[0], BF16), (SMALL, BF16)]
else:
    HEADLINES = [(8192, 16, 384, 2), (32, 16384, 384, 2)]  # images of 32 x 32 in patches; whole ones of 128 x 128
    more = [(8192, 16, 384, 1), (2048, 256, 384, 2), *((n, 16, 384, 2) for n in (64, 512, 2048))]
    SIZES = [(each, BF16) for each in (*HEADLINES, *more)]


def case(size: Size, dtype: torch.dtype, measures: str) -> Case:
    """Least bytes: points, weights and styles once, and the pixels; in the backward, and in its own, the pixels'
    cotangent and one gradient for each input besides. Operations: two for each weight and point of each patch, twice
    that more in the backward, and in its own backward twice those three."""
    patches, points, width, hidden = size
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
    return Case(
        suite="modulated_siren",
        name=f"({patches}, {points}, {width}), {hidden} hidden",
        dtype=dtype,
        measures=measures,
        inputs=inputs,
        exact=exact,
        plain=siren.scaled_operand,
        wanted=tuple(range(1 + 3 * (hidden + 1))),
        bytes=read * (1 if measures == "forward" else 2) + pixels,
        flops=2.0 * patches * points * count * {"forward": 1, "forward_backward": 3, "second_order": 9}[measures],
    )


def exact(x: Tensor, *parameters: Tensor) -> Tensor:
    layers = siren.layers(*parameters)
    for index, (weight, bias, style) in enumerate(layers):
        activation = "sine" if index < len(layers) - 1 else None
        x = reference.modulated_linear(x, weight, style, bias, activation=activation, omega=siren.OMEGA)
    return x


def ours(x: Tensor, *parameters: Tensor) -> Tensor:
    weights, biases, styles = siren.split(parameters)
    return modulated_siren(x, weights, styles, biases, omega=siren.OMEGA)


def implementations(case: Case, compiled: bool) -> list[Implementation]:
    one, (x, *parameters) = case.implementation, case.inputs(0)[0]
    weights, biases, styles = siren.split(parameters)
    found = case.ours("modulated_siren", ours, [x, weights, styles, biases], compiled)
    if compiled:
        tuned = "autotuning on the CPU takes minutes" if ON_CPU else None
        return [
            *found,
            one("scaled operand, compiled", siren.scaled_operand, compiled="default"),
            one("scaled operand, max-autotune", siren.scaled_operand, compiled="max-autotune-no-cudagraphs",
                unable=tuned),
        ]  # fmt: skip
    plain = case.of(siren.plain)
    return [
        *found,
        one("scaled operand", siren.scaled_operand),
        one("grouped convolution", siren.grouped_convolution),
        one("plain SIREN (computes less)", siren.plain, "other", exact=plain.exact_results),
    ]


@pytest.mark.parametrize("compiled", [False, True], ids=["direct", "compiled"])
@pytest.mark.parametrize(
    ("size", "dtype", "measures"),
    [
        pytest.param(size, dtype, measures, id=f"{size}-{dtype}-{measures}",
                     marks=[pytest.mark.headline] if size in HEADLINES and measures == "forward_backward" else [])
        for size, dtype in SIZES for measures in MEASURES
    ],
)  # fmt: skip
def test_modulated_siren(
    size: Size, dtype: torch.dtype, measures: str, compiled: bool, compare: Callable[..., None]
) -> None:
    found = case(size, dtype, measures)
    compare(found, implementations(found, compiled))
