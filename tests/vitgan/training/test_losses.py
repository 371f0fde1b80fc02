"""The losses, against their formulas written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan.training.losses import consistency, discriminator_loss, generator_loss, gradient_penalty

REAL, FAKE = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5])


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def test_logistic_discriminator_loss() -> None:
    """-log(sigmoid(real)) - log(1 - sigmoid(fake)), each the mean of its batch."""
    expected = (softplus(-2) + softplus(1)) / 2 + (softplus(-3) + softplus(0.5)) / 2
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(expected)
    assert discriminator_loss(REAL, FAKE, "logistic").item() == pytest.approx(expected)


def test_non_saturating_generator_loss() -> None:
    assert generator_loss(FAKE).item() == pytest.approx((softplus(3) + softplus(-0.5)) / 2)
    rejected = torch.tensor([-50.0], requires_grad=True)
    generator_loss(rejected).backward()
    assert rejected.grad is not None
    assert rejected.grad.item() == pytest.approx(-1), "an image that is surely seen through still gets a gradient"


def test_relativistic_losses() -> None:
    """Each real image against the generated one in its place."""
    discriminator = (softplus(-3 - 2) + softplus(0.5 + 1)) / 2
    generator = (softplus(2 + 3) + softplus(-1 - 0.5)) / 2
    assert discriminator_loss(REAL, FAKE, "relativistic").item() == pytest.approx(discriminator)
    assert generator_loss(FAKE, REAL, "relativistic").item() == pytest.approx(generator)


@pytest.mark.parametrize("kind", ["logistic", "relativistic"])
def test_the_networks_pull_in_opposite_directions(kind: Any) -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    real_gradient, fake_gradient = torch.autograd.grad(discriminator_loss(real, fake, kind), (real, fake))
    assert (real_gradient < 0).all()
    assert (fake_gradient > 0).all()
    (gradient,) = torch.autograd.grad(generator_loss(fake, real, kind), fake)
    assert (gradient < 0).all()


def test_large_logits_do_not_overflow() -> None:
    real, fake = torch.tensor([-1e4]), torch.tensor([1e4])
    assert discriminator_loss(real, fake).item() == pytest.approx(2e4)
    assert discriminator_loss(fake, real).item() == 0


def test_consistency_is_the_mean_squared_change() -> None:
    assert consistency(REAL, FAKE).item() == pytest.approx((25 + 2.25) / 2)
    assert consistency(REAL, REAL).item() == 0


@pytest.mark.parametrize(
    ("a", "b"), [((4,), (4, 1)), ((4, 1), (4,)), ((4, 1), (4, 1)), ((4,), (3,)), ((), ()), ((4,), (1,))], ids=str
)
def test_logits_that_would_broadcast_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    """(B,) with (B, 1) would make (B, B) and compare every image with every other one."""
    one, other = torch.zeros(a), torch.zeros(b)
    for loss in (consistency, discriminator_loss, lambda a, b: generator_loss(b, a, "relativistic")):
        with pytest.raises(ValueError, match=r"logits must be two tensors of one shape \(B,\), got \("):
            loss(one, other)


def test_a_relativistic_generator_needs_real_logits() -> None:
    with pytest.raises(ValueError, match="compares with the logits of real images: pass real="):
        generator_loss(FAKE, kind="relativistic")


def curved(images: Tensor, weight: Tensor) -> Tensor:
    return torch.sin(images.flatten(1) @ weight)


def test_gradient_penalty_is_the_squared_norm_for_each_image() -> None:
    images = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64)
    actual = gradient_penalty(curved(images, weight), images)
    expected = torch.cos(images.flatten(1) @ weight).square() * weight.square().sum()
    assert actual.shape == (3,)
    torch.testing.assert_close(actual, expected)


def test_gradient_penalty_is_differentiable_in_the_weights() -> None:
    images = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def penalty(weight: Tensor) -> Tensor:
        return gradient_penalty(curved(images, weight), images)

    assert torch.autograd.gradcheck(penalty, torch.randn(8, dtype=torch.float64, requires_grad=True))
