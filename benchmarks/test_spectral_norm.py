"""Spectral normalisation of every matrix of a discriminator: one power iteration, sigma, and the scaled weights."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, Inputs
from benchmarks.machine import pick_device
from benchmarks.matrices import matrices
from benchmarks.peers import spectral_norm as peers
from benchmarks.session import CLOCK, Session, name_of_ours, show
from vitgan_kernels import reference, spectral_norm

pytestmark = pytest.mark.benchmark(timer=CLOCK)

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
MAIN = "cifar10"
# the presets whose discriminators give the matrices
SIZES = {
    "small": {"cpu": ["tiny", MAIN], "cuda": ["tiny", MAIN]},
    "paper": {"cpu": [MAIN, "lsun128"], "cuda": ["tiny", MAIN, "lsun128"]},
}


def exact(*tensors: Tensor) -> list[Tensor]:
    return reference.spectral_norm(*peers.split(tensors))[0]


def ours(*tensors: Tensor) -> list[Tensor]:
    return spectral_norm(*peers.split(tensors))[0]


NAME = name_of_ours("spectral_norm", [torch.ones(2, 2, device=DEVICE)], *([torch.ones(2, device=DEVICE)],) * 2)


@cache
def case(preset: str) -> Case:
    """Least bytes for N elements in all: W read and the scaled one written; in the backward the gradient read and the
    weight's written too, and W again. Operations, two an element: products with v and u, the scaling, and in the
    backward the inner product with the gradient and the rank-one update."""
    sizes = matrices(preset)

    def inputs(seed: int) -> Inputs:
        random = torch.Generator(DEVICE).manual_seed(seed)
        weights, lefts, rights, grads = [], [], [], []
        for out, width in sizes:
            weight, grad = (torch.randn(out, width, generator=random, device=DEVICE) for _ in range(2))
            # The contenders move u and v in different orders: only at the singular vectors is that the same.
            small = weight.double() if out <= width else weight.double().t()
            first = torch.linalg.eigh(small @ small.t())[1][:, -1]
            second = torch.nn.functional.normalize(small.t() @ first, dim=0)
            left, right = (first, second) if out <= width else (second, first)
            weights.append(weight)
            lefts.append(left.float())
            rights.append(right.float())
            grads.append(grad)
        return [*weights, *lefts, *rights], grads

    elements = float(sum(out * width for out, width in sizes))
    return Case(
        suite="spectral_norm",
        name=f"{len(sizes)} matrices of {preset}",
        shape={"matrices": len(sizes), "elements": int(elements)},
        dtype=torch.float32,
        inputs=inputs,
        exact=exact,
        plain=peers.by_layer,
        wanted=tuple(range(len(sizes))),
        bytes={"forward": 8 * elements, "forward_backward": 20 * elements},
        flops={"forward": 5 * elements, "forward_backward": 10 * elements},
    )


def contenders(main: bool) -> Sequence[Contender]:
    elsewhere = {} if main or not ON_CPU else {"*": f"on the CPU it is compiled for the matrices of {MAIN} alone"}
    tuned = {"*": "autotuning on the CPU takes minutes"} if ON_CPU else {}
    return [
        Contender(NAME, ours, ours=True),
        Contender(f"{NAME}, compiled", ours, ours=True, compiled="default", unable=elsewhere),
        Contender("torch.nn.utils.parametrizations", peers.TorchModules()),
        Contender("eager, by layer", peers.by_layer),
        Contender("eager, foreach", peers.foreach),
        Contender("compiled, by layer", peers.by_layer, compiled="default", unable=elsewhere),
        Contender("compiled, foreach", peers.foreach, compiled="default", unable=elsewhere),
        Contender("compiled, max-autotune", peers.by_layer, compiled="max-autotune-no-cudagraphs", unable=tuned),
    ]


NAMES = [contender.who for contender in contenders(True)]


@pytest.mark.parametrize("who", NAMES)
@pytest.mark.parametrize("measures", ["forward", "forward_backward"])
def test_spectral_norm(sizes: str, measures: str, who: str, session: Session, benchmark: Any) -> None:
    show(session.case(case(sizes), measures, lambda: contenders(sizes == MAIN), who), benchmark)
