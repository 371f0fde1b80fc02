"""Spectral normalisation of every matrix of a discriminator: one power iteration, sigma, and the scaled weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.baselines import spectral_norm as baselines
from benchmarks.cases import Case, Inputs
from benchmarks.environment import pick_device
from benchmarks.measure import Implementation
from vitgan.models.build import build_discriminator
from vitgan.presets import PRESETS
from vitgan_kernels import reference, spectral_norm

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"


def matrices(preset: str) -> list[tuple[int, int]]:
    """(out, in) of every matrix of the discriminator."""
    parameters = build_discriminator(PRESETS[preset]).parameters()
    return [(p.shape[0], p.numel() // p.shape[0]) for p in parameters if p.ndim > 1]


def exact(*tensors: Tensor) -> list[Tensor]:
    return reference.spectral_norm(*baselines.split(tensors))[0]


def ours(*tensors: Tensor) -> list[Tensor]:
    return spectral_norm(*baselines.split(tensors))[0]


def case(preset: str, measures: str) -> Case:
    """Least bytes for N elements in all: W read and the scaled one written; in the backward the gradient read and the
    weight's written too, and W again. Operations, two an element: products with v and u, the scaling, and in the
    backward the inner product with the gradient and the rank-one update."""
    sizes = matrices(preset)

    def inputs(seed: int) -> Inputs:
        random = torch.Generator(DEVICE).manual_seed(seed)
        weights, lefts, rights, grads = [], [], [], []
        for out, width in sizes:
            weight, grad = (torch.randn(out, width, generator=random, device=DEVICE) for _ in range(2))
            # Implementations move u and v in different orders: only at the singular vectors is that the same.
            small = weight.double() if out <= width else weight.double().t()
            first = torch.linalg.eigh(small @ small.t())[1][:, -1]
            second = normalize(small.t() @ first, dim=0)
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
        dtype=torch.float32,
        measures=measures,
        inputs=inputs,
        exact=exact,
        plain=baselines.by_layer,
        wanted=tuple(range(len(sizes))),
        bytes=elements * (8 if measures == "forward" else 20),
        flops=elements * (5 if measures == "forward" else 10),
    )


def implementations(case: Case, compiled: bool) -> list[Implementation]:
    one = case.implementation
    found = case.ours("spectral_norm", ours, baselines.split(case.inputs(0)[0]), compiled)
    if compiled:
        tuned = "autotuning on the CPU takes minutes" if ON_CPU else None
        return [
            *found,
            one("by layer, compiled", baselines.by_layer, compiled="default"),
            one("foreach, compiled", baselines.foreach, compiled="default"),
            one("padded bmm, compiled", baselines.padded, compiled="default"),
            one("by layer, max-autotune", baselines.by_layer, compiled="max-autotune-no-cudagraphs", unable=tuned),
        ]
    return [
        *found,
        one("torch.nn.utils.parametrizations", baselines.TorchModules()),
        one("by layer", baselines.by_layer),
        one("foreach", baselines.foreach),
        one("padded bmm", baselines.padded),
    ]


@pytest.mark.parametrize("compiled", [False, True], ids=["direct", "compiled"])
@pytest.mark.parametrize("measures", ["forward", "forward_backward"])
@pytest.mark.parametrize("preset", [pytest.param("cifar10", marks=pytest.mark.headline), "tiny", "lsun128"])
def test_spectral_norm(preset: str, measures: str, compiled: bool, compare: Callable[..., None]) -> None:
    found = case(preset, measures)
    compare(found, implementations(found, compiled))
