"""A discriminator's step with R1: exact, by the second derivative, against the finite difference of recent GANs.

Transformers whose attention has no second derivative are trained with an approximation: the squared difference of the
logits of an image and of the same with a little noise, divided by the noise's size. Its expectation is near R1; each
draw is not. What is checked, and for the approximation told, is the error of the penalty's gradient in the weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.environment import pick_device
from benchmarks.measure import Call, Implementation, Role, largest_error, measure
from vitgan.models.build import build_discriminator
from vitgan.presets import PRESETS
from vitgan_kernels import use_backend

DEVICE = pick_device()
NOISE = 0.01  # standard deviation, for images in [-1, 1]
Penalty = Callable[[Any, Tensor], Tensor]
WEIGHT = 5.0  # half of gamma


def exact_penalty(d: Any, real: Tensor) -> Tensor:
    image = real.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(d(image).sum(), image, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def finite_difference(d: Any, real: Tensor) -> Tensor:
    logits = d(torch.cat([real, real + NOISE * torch.randn_like(real)])).flatten()
    return ((logits[len(real) :] - logits[: len(real)]) / NOISE).square().mean()


def gradient_of(d: Any, penalty: Penalty, real: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(penalty(d, real), list(d.parameters()), allow_unused=True, materialize_grads=True)
    return [torch.cat([each.flatten() for each in found])]


def step(d: Any, penalty: Penalty, real: Tensor, fake: Tensor) -> None:
    logits = d(torch.cat([real, fake])).flatten()
    loss = softplus(-logits[: len(real)]).mean() + softplus(logits[len(real) :]).mean()
    torch.autograd.grad(loss + WEIGHT * penalty(d, real), list(d.parameters()), allow_unused=True)


@pytest.mark.headline
@pytest.mark.parametrize(
    ("preset", "batch"), [("cifar10", 4), ("tiny", 16)] if DEVICE.type == "cpu" else [("cifar10", 128)]
)
def test_r1(preset: str, batch: int, record: Callable[..., None]) -> None:
    torch.manual_seed(0)
    # in evaluation mode: the power iterations of spectral norm stand still
    d: Any = build_discriminator(PRESETS[preset]).to(DEVICE).eval()
    size = PRESETS[preset].image_size
    real, fake = torch.rand(2, batch, 3, size, size, device=DEVICE) * 2 - 1
    with use_backend("reference"):
        doubled: Any = build_discriminator(PRESETS[preset]).to(DEVICE).eval()
        doubled.load_state_dict(d.state_dict())
        exact = gradient_of(doubled.double(), exact_penalty, real.double())
        allowed = 2 * largest_error(gradient_of(d, exact_penalty, real), exact) + torch.finfo(torch.float32).eps

    def one(
        name: str,
        role: Role,
        penalty: Penalty,
        backend: Any = "auto",
        approximate: bool = False,
    ) -> Implementation:
        def call() -> None:
            with use_backend(backend):
                step(d, penalty, real, fake)

        def prepare() -> tuple[Sequence[Tensor], Call]:
            with use_backend(backend):
                return gradient_of(d, penalty, real), call

        return Implementation(name, prepare, role, approximate=approximate)

    found = [
        one("exact R1", "ours", exact_penalty),
        one("exact R1, plain operators", "baseline", exact_penalty, "reference"),
        one("finite difference (approximate)", "other", finite_difference, approximate=True),
        one("finite difference, plain operators (approximate)", "other", finite_difference, "reference", True),
    ]
    rows = measure(found, exact, allowed, DEVICE, 0.5)
    record(rows, "R1", f"D step, {preset}, batch {batch}", "float32", "")
