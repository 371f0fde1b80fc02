"""A training step, its two halves, and sampling: the trainer's against the step of vitgan-pytorch.

All have the same weights and images. They first show that they compute the same: the generator's images, both losses
and their gradients, against the baseline's recipe in float64, whose own error in the dtype of training is the measure.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.baselines.vitgan_pytorch import Recipe, draws, results, settings, settled
from benchmarks.environment import pick_device
from benchmarks.measure import Call, Implementation, Role, largest_error, measure
from vitgan.training.state import GANState
from vitgan_kernels import use_backend

DEVICE = pick_device()
ON_CPU = DEVICE.type == "cpu"
Size = tuple[str, int]  # preset, batch
SIZES: list[Size] = [("cifar10", 4), ("tiny", 16)] if ON_CPU else [("cifar10", 128), ("tiny", 64), ("celeba64", 64)]
COMPILED_FOR = "tiny" if ON_CPU else "cifar10"
PARTS = ("D step", "G step", "step", "sampling")


class Setting:
    """A training, its images, and what a step computes from them in float64."""

    def __init__(self, preset: str, batch: int) -> None:
        self.training = settled(GANState(settings(preset, batch, DEVICE.type), DEVICE))
        config = self.training.config
        self.real = torch.rand(batch, config.channels, config.image_size, config.image_size, device=DEVICE) * 2 - 1
        self.draws = draws(self.training)
        doubled = {name: x.double() for name, x in self.draws.items()}
        self.exact = results(Recipe(self.training).double(), self.real.double(), doubled)
        self.allowed = 2 * largest_error(results(Recipe(self.training), self.real, self.draws), self.exact)
        self.allowed += torch.finfo(torch.float32).eps

    def implementation(
        self, name: str, part: str, role: Role = "baseline", operators: Any = "auto", **changes: Any
    ) -> Implementation:
        """`changes` of the configuration; without a role of ours it is the baseline's recipe."""

        def prepare() -> tuple[Sequence[Tensor], Call]:
            if role == "baseline":
                of: Any = Recipe(self.training)
            else:
                config = self.training.config
                of = GANState(settings(config.preset, config.batch_size, DEVICE.type, **changes), DEVICE)
                of.load_state(*self.training.state())
            call = in_backend(operators, part_of(of, part, self.real))
            with use_backend(operators):
                found = results(of, self.real, self.draws)
            call()
            return found, call

        return Implementation(name, prepare, role)


def part_of(of: Any, part: str, real: Tensor) -> Call:
    z = torch.randn(len(real), of.generator.latent_dim, device=DEVICE)
    parts: dict[str, Call] = {
        "D step": lambda: of.discriminator_step(real),
        "G step": lambda: of.generator_step(real),
        "step": lambda: of.step(real),
        "sampling": torch.no_grad()(lambda: of.generator(z)),
    }
    return parts[part]


def in_backend(operators: Any, call: Call) -> Call:
    def run() -> object:
        with use_backend(operators):
            return call()

    return run


setting = cache(Setting)


@pytest.mark.parametrize("compiled", [False, True], ids=["direct", "compiled"])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("size", [pytest.param(SIZES[0], marks=pytest.mark.headline), *SIZES[1:]], ids=str)
def test_training(size: Size, part: str, compiled: bool, record: Callable[..., None]) -> None:
    if compiled and (size[0] != COMPILED_FOR or part == "sampling"):
        pytest.skip(f"compiled are the steps of {COMPILED_FOR}: each takes minutes")
    torch._dynamo.reset()
    of = setting(*size)
    found = [of.implementation("vitgan", part, "ours"), of.implementation("recipe of vitgan-pytorch", part)]
    if compiled:
        found.append(of.implementation("vitgan, --compile", part, "ours", compile=True))
        if not ON_CPU:
            graphs = of.implementation("vitgan, --compile --cuda-graphs", part, "ours", compile=True, cuda_graphs=True)
            plain = of.implementation("vitgan, plain operators, --compile", part, "other", "reference", compile=True)
            found += [graphs, plain]
    else:
        found.append(of.implementation("vitgan, plain operators", part, "other", "reference"))
    rows = measure(found, of.exact, of.allowed, DEVICE, 0.5)
    dtype = "float32" if ON_CPU or part == "sampling" else "bfloat16"
    record(rows, "training", f"{part}, {size[0]}, batch {size[1]}", dtype, "")
