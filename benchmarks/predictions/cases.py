"""What is predicted: the operators at the shapes of the paper's networks."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

BF16 = torch.bfloat16
WIDTH = 384


@dataclass(frozen=True)
class PredictedCase:
    """A launcher's calls on meta tensors."""

    suite: str
    shape: dict[str, int]
    dtype: str
    measures: str
    run: Callable[[], Any]


def _attention(batch: int, tokens: int, measures: str) -> PredictedCase:
    from vitgan_kernels.l2_attention import launch

    def run() -> None:
        q, v, grad, out, a, c = (torch.empty(batch, 6, tokens, 64, dtype=BF16, device="meta") for _ in range(6))
        lse = torch.empty(2, batch, 6, tokens, device="meta")
        launch.forward(q, None, v, 0.125, False)
        if measures != "forward":
            launch.backward(grad, q, None, v, out, lse, 0.125, False)
        if measures == "second_order":
            launch.double_backward(a, None, c, grad, q, None, v, out, lse, 0.125, False)

    shape = {"batch": batch, "heads": 6, "tokens": tokens, "width": 64}
    return PredictedCase("l2_attention", shape, "bfloat16", measures, run)


def _siren(patches: int, points: int, hidden: int, measures: str) -> PredictedCase:
    from vitgan_kernels.modulated_siren import stack

    def run() -> None:
        def empty(*shape: int) -> torch.Tensor:
            return torch.empty(shape, dtype=BF16, device="meta")

        x, widths = empty(points, WIDTH), [WIDTH] * (hidden + 1) + [3]
        layers: list[Any] = [(empty(o, i), empty(patches, i), None, empty(o)) for i, o in pairwise(widths)]
        stack.forward(x, layers, 30.0, False)
        if measures != "forward":
            stack.backward(empty(patches, points, 3), x, layers, 30.0, False, [True, True, True])

    shape = {"patches": patches, "points": points, "width": WIDTH, "hidden": hidden}
    return PredictedCase("modulated_siren", shape, "bfloat16", measures, run)


# The sizes of the benchmarks on a GPU, so that a measurement stands beside its prediction.
CASES = (
    *(_attention(512, 65, measures) for measures in ("forward", "forward_backward", "second_order")),
    *(_attention(128, 257, measures) for measures in ("forward", "forward_backward", "second_order")),
    *(_siren(8192, 16, 2, measures) for measures in ("forward", "forward_backward")),
    *(_siren(8192, 16, 1, measures) for measures in ("forward", "forward_backward")),
)

# (preset, what is measured) of the CUDA kernels of spectral normalisation, at the sizes of the benchmarks too.
SPECTRAL_NORM = tuple(
    (preset, measures) for preset in ("tiny", "cifar10", "lsun128") for measures in ("forward", "forward_backward")
)
