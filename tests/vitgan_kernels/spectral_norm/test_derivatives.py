"""The derivatives of spectral_norm in the weights: u and v are constants of every one of them."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from vitgan_kernels import spectral_norm
from vitgan_kernels.backends import BackendError

# PyTorch's own forward mode compiles its formulas with torch.jit when it is first used.


def matrices() -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    weights = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((4, 3), (2, 3, 2, 1))]
    u = [torch.randn(weight.shape[0], dtype=torch.float64) for weight in weights]
    v = [torch.randn(weight[0].numel(), dtype=torch.float64) for weight in weights]
    return weights, u, v


@pytest.mark.parametrize("sigma_init", [None, torch.tensor([0.5, 3.0], dtype=torch.float64)])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_every_order(sigma_init: Tensor | None, backend: str) -> None:
    weights, u, v = matrices()
    spectral_norm([weight.detach() for weight in weights], u, v, n_iterations=3)

    def call(*weights: Tensor) -> tuple[Tensor, ...]:
        scaled, sigma = spectral_norm(weights, u, v, sigma_init=sigma_init, update=False, backend=backend)
        return *scaled, sigma

    def slope(*weights: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad([x.pow(3).sum() for x in call(*weights)], weights, create_graph=True)

    assert gradcheck(call, tuple(weights), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, tuple(weights))
    assert gradgradcheck(slope, tuple(weights))


@pytest.mark.usefixtures("compiled")
def test_what_the_compiled_cannot_differentiate_the_reference_does(backend_that_runs: list[str]) -> None:
    weights, u, v = matrices()
    weights = [weight.detach() for weight in weights]

    def call(weight: Tensor) -> Tensor:
        return spectral_norm([weight], u[:1], v[:1], update=False)[1].sum()

    call(weights[0])
    torch.func.grad(call)(weights[0])
    torch.func.jvp(call, (weights[0],), (weights[0],))
    with torch.autograd.forward_ad.dual_level():
        tangent = torch.autograd.forward_ad.unpack_dual(
            call(torch.autograd.forward_ad.make_dual(weights[0], weights[0]))
        ).tangent
        torch.testing.assert_close(tangent, call(weights[0]))
    goals = torch.ones(2, dtype=torch.float64, requires_grad=True)
    scaled, sigma = spectral_norm(weights, u, v, sigma_init=goals, update=False)
    (slope,) = torch.autograd.grad([x.sum() for x in scaled], goals)
    torch.testing.assert_close(slope, torch.stack([w.sum() for w in weights]) / sigma)
    assert backend_that_runs == ["cpp", *["reference"] * 5]
    with pytest.raises(BackendError, match=r"it has no forward mode and no torch.func"):
        torch.func.grad(lambda weight: spectral_norm([weight], u[:1], v[:1], backend="cpp")[1].sum())(weights[0])
    with pytest.raises(BackendError, match=r"gradients in the weights only, and sigma_init requires one"):
        spectral_norm(weights, u, v, sigma_init=goals, backend="cpp")


@pytest.mark.parametrize("update", [True, False])
def test_gradient_is_that_of_the_formula(update: bool) -> None:
    """dW = (s / sigma) * (dW_scaled - (<dW_scaled, W> / sigma) u v^T), with u and v as the call leaves them."""
    weights, u, v = matrices()
    goals = torch.tensor([0.5, 3.0], dtype=torch.float64)
    scaled, sigma = spectral_norm(weights, u, v, sigma_init=goals, update=update)
    cotangents = [torch.randn_like(weight) for weight in weights]
    gradients = torch.autograd.grad(scaled, weights, cotangents)
    for weight, u_l, v_l, norm, goal, given, actual in zip(
        weights, u, v, sigma, goals, cotangents, gradients, strict=True
    ):
        outer = torch.outer(u_l, v_l).view_as(weight)
        torch.testing.assert_close(actual, goal / norm * (given - (given * weight).sum() / norm * outer))


def test_sigma_has_the_gradient_of_a_singular_value() -> None:
    weights, u, v = matrices()
    _, sigma = spectral_norm(weights, u, v, n_iterations=200)
    actual = torch.autograd.grad(sigma.sum(), weights)
    exact = torch.stack([torch.linalg.svdvals(weight.flatten(1))[0] for weight in weights])
    torch.testing.assert_close(actual, torch.autograd.grad(exact.sum(), weights))


def test_a_later_call_does_not_disturb_an_earlier_graph() -> None:
    weights, u, v = matrices()
    early, _ = spectral_norm(weights, u, v)
    expected = torch.autograd.grad([x.square().sum() for x in early], weights, retain_graph=True)
    spectral_norm(weights, u, v, n_iterations=10)
    torch.testing.assert_close(torch.autograd.grad([x.square().sum() for x in early], weights), expected)


def test_u_and_v_never_require_a_gradient() -> None:
    weights, u, v = matrices()
    spectral_norm(weights, u, v)
    assert not any(x.requires_grad for x in (*u, *v))


def test_only_what_requires_a_gradient_gets_one() -> None:
    weights, u, v = matrices()
    weights[0].requires_grad_(False)
    scaled, _ = spectral_norm(weights, u, v)
    assert not scaled[0].requires_grad
    torch.stack([x.sum() for x in scaled]).sum().backward()
    assert weights[0].grad is None
    assert weights[1].grad is not None


def test_torch_func_agrees_with_autograd() -> None:
    weights, u, v = matrices()

    def loss(weights: list[Tensor]) -> Tensor:
        scaled, _ = spectral_norm(weights, u, v, update=False)
        return torch.stack([x.pow(3).sum() for x in scaled]).sum()

    expected = torch.autograd.grad(loss(weights), weights)
    primals = [weight.detach() for weight in weights]
    torch.testing.assert_close(tuple(torch.func.grad(loss)(primals)), expected)
    tangents = [torch.randn_like(weight) for weight in weights]
    tangent = torch.func.jvp(loss, (primals,), (tangents,))[1]
    torch.testing.assert_close(
        tangent, torch.stack([(g * t).sum() for g, t in zip(expected, tangents, strict=True)]).sum()
    )


def test_an_update_inside_a_gradient_of_torch_func() -> None:
    weights, u, v = matrices()
    moved = u[0].clone(), v[0].clone()

    def loss(weight: Tensor, u_l: Tensor, v_l: Tensor) -> Tensor:
        return spectral_norm([weight], [u_l], [v_l])[0][0].pow(3).sum()

    slope = torch.func.grad(loss)(weights[0].detach(), *moved)
    torch.testing.assert_close(slope, torch.autograd.grad(loss(weights[0], u[0], v[0]), weights[0])[0])
    torch.testing.assert_close(moved, (u[0], v[0]))
