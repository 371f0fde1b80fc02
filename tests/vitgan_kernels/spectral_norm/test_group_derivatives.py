"""Gradients through a model under SpectralNormGroup: first order, R1, activation checkpointing, torch.compile."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitgan_kernels import SpectralNormGroup, reference, use_backend


class Critic(nn.Module):
    """Two matrices with a curved function between them, so that R1 depends on both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.second = nn.Linear(5, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.hidden(x)).squeeze(1)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))


class CheckpointedCritic(Critic):
    """The same, computing its hidden layer again in the backward pass."""

    use_reentrant: bool

    def forward(self, x: Tensor) -> Tensor:
        return self.second(checkpoint(self.hidden, x, use_reentrant=self.use_reentrant)).squeeze(1)


def normalised(critic: Critic) -> SpectralNormGroup:
    """Puts the critic under spectral normalisation and moves it away from the start, where u and v had converged."""
    group = SpectralNormGroup(critic)
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_()
    return group


def logits_by_hand(critic: Critic, x: Tensor) -> Tensor:
    """The critic from its raw weights, with u and v as they are now, as constants."""
    first, second = (scaled_by_hand(critic, name) for name in ("first", "second"))
    return (torch.tanh(x @ first.mT + critic.first.bias) @ second.mT + critic.second.bias).squeeze(1)


def scaled_by_hand(critic: Critic, name: str) -> Tensor:
    within = f"{name}.parametrizations.weight"
    u, v, goal = (critic.get_buffer(f"{within}.0.{entry}").clone() for entry in ("_u", "_v", "sigma_init"))
    weight = critic.get_parameter(f"{within}.original")
    return goal * weight / torch.einsum("o,oi,i->", u, weight, v)


def gradients(loss: Tensor, critic: Critic) -> dict[str, Tensor]:
    names, parameters = zip(*critic.named_parameters(), strict=True)
    return dict(
        zip(names, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True), strict=True)
    )


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64)


@pytest.mark.parametrize("training", [True, False])
def test_gradient_treats_u_and_v_as_constants(x: Tensor, training: bool) -> None:
    critic = Critic().train(training)
    normalised(critic)
    logits = critic(x)
    expected = logits_by_hand(critic, x)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradients(logits.exp().sum(), critic), gradients(expected.exp().sum(), critic))


def test_gradient_is_that_of_the_reference(x: Tensor) -> None:
    critic = Critic()
    normalised(critic)
    loss = critic(x).exp().sum()
    within = [f"{name}.parametrizations.weight" for name in ("first", "second")]
    weights = [critic.get_parameter(f"{name}.original") for name in within]
    u, v, goals = ([critic.get_buffer(f"{name}.0.{entry}") for name in within] for entry in ("_u", "_v", "sigma_init"))
    (first, second), _ = reference.spectral_norm(weights, u, v, sigma_init=torch.stack(goals), update=False)
    hidden = torch.tanh(nn.functional.linear(x, first, critic.first.bias))
    expected = nn.functional.linear(hidden, second, critic.second.bias).exp().sum()
    torch.testing.assert_close(gradients(loss, critic), gradients(expected, critic))


def r1(logits: Tensor, x: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum()


def test_r1_by_double_backward(x: Tensor) -> None:
    """A raw kernel called in a backward gives the images' gradient right and the weights' wrong, without an error."""
    critic = Critic()
    normalised(critic)
    x.requires_grad_()
    penalty = r1(critic(x), x)
    expected = r1(logits_by_hand(critic, x), x)
    torch.testing.assert_close(penalty, expected)
    actual = gradients(penalty, critic)
    assert all(actual[f"{name}.parametrizations.weight.original"].abs().max() > 1e-3 for name in ("first", "second"))
    torch.testing.assert_close(actual, gradients(expected, critic))


def test_r1_by_finite_differences(x: Tensor) -> None:
    critic = Critic().eval()
    normalised(critic)
    x.requires_grad_()
    weight = critic.get_parameter("first.parametrizations.weight.original")
    (actual,) = torch.autograd.grad(r1(critic(x), x), weight)
    direction, step = torch.randn_like(weight), 1e-6
    penalties = []
    for sign in (1, -1):
        moved = copy.deepcopy(critic)
        with torch.no_grad():
            moved.get_parameter("first.parametrizations.weight.original").add_(sign * step * direction)
        penalties.append(r1(moved(x), x))
    numeric = (penalties[0] - penalties[1]) / (2 * step)
    torch.testing.assert_close((actual * direction).sum(), numeric.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("operators", ["auto", "reference"])
@pytest.mark.parametrize("compiler", [None, "aot_eager", "inductor"])
def test_two_forwards_before_one_backward(x: Tensor, compiler: str | None, operators: Any) -> None:
    """The second forward moves u and v in place while the graph of the first still waits."""
    critic = Critic()
    normalised(critic)
    forward = torch.compile(lambda x: critic(x), backend=compiler, fullgraph=True) if compiler else critic
    with use_backend(operators):
        first = forward(x)
        expected = gradients(logits_by_hand(critic, x).exp().sum(), critic)
        second = forward(-x)
    expected_second = gradients(logits_by_hand(critic, -x).exp().sum(), critic)
    actual = gradients(first.exp().sum() + second.exp().sum(), critic)
    torch.testing.assert_close(actual, {name: expected[name] + expected_second[name] for name in expected})


@pytest.mark.parametrize("compiler", [None, "inductor"])
def test_a_layer_by_itself_before_a_forward_of_the_model(x: Tensor, compiler: str | None) -> None:
    critic = Critic()
    normalised(critic)
    layer = torch.compile(lambda x: critic.first(x), backend=compiler, fullgraph=True) if compiler else critic.first
    out = layer(x)
    expected = gradients((x @ scaled_by_hand(critic, "first").mT).exp().sum(), critic)
    critic(x)
    name = "first.parametrizations.weight.original"
    torch.testing.assert_close(gradients((out - critic.first.bias).exp().sum(), critic)[name], expected[name])


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_activation_checkpointing_inside(x: Tensor, use_reentrant: bool, training: bool) -> None:
    critic = CheckpointedCritic().train(training)
    critic.use_reentrant = use_reentrant
    normalised(critic)
    x.requires_grad_()
    critic(x).exp().sum().backward()
    actual = {name: parameter.grad for name, parameter in critic.named_parameters()}
    plain = logits_by_hand(critic, x).exp().sum()
    torch.testing.assert_close(x.grad, torch.autograd.grad(plain, x, retain_graph=True)[0])
    torch.testing.assert_close(actual, gradients(plain, critic))


def test_activation_checkpointing_of_a_layer_by_itself(x: Tensor) -> None:
    critic = Critic()
    normalised(critic)
    hidden = checkpoint(critic.hidden, x, use_reentrant=False)
    expected = torch.tanh(x @ scaled_by_hand(critic, "first").mT + critic.first.bias)
    torch.testing.assert_close(gradients(hidden.exp().sum(), critic), gradients(expected.exp().sum(), critic))


def test_a_layer_by_itself_under_torch_func_and_torch_compile(x: Tensor) -> None:
    critic = Critic()
    normalised(critic)

    def by_hand(x: Tensor) -> Tensor:
        return (x @ scaled_by_hand(critic, "first").mT + critic.first.bias).exp().sum()

    def loss(x: Tensor) -> Tensor:
        return critic.first(x).exp().sum()

    torch.testing.assert_close(torch.func.grad(loss)(x), torch.func.grad(by_hand)(x))
    torch.testing.assert_close(torch.compile(loss, backend="eager", fullgraph=True)(x), by_hand(x))


def test_gradients_add_up_over_parts_of_a_batch(x: Tensor) -> None:
    """One training forward, then evaluation mode, holds u and v still: parts give the gradient of the whole."""
    critic = Critic()
    normalised(critic)
    twin = copy.deepcopy(critic)
    critic(x).exp().sum().backward()
    for part, training in zip(x.chunk(2), (True, False), strict=True):
        twin.train(training)(part).exp().sum().backward()
    for whole, parts in zip(critic.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(whole.grad, parts.grad)


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(x: Tensor, training: bool) -> None:
    critic = Critic().train(training)
    normalised(critic)
    twin = copy.deepcopy(critic)
    compiled = torch.compile(lambda x: critic(x).exp().sum(), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        value, expected = compiled(x), twin(x).exp().sum()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradients(value, critic), gradients(expected, twin))
        torch.testing.assert_close(critic.state_dict(), twin.state_dict())


@pytest.mark.usefixtures("compiled")
def test_r1_in_float32_is_as_exact_as_the_reference(backend_that_runs: list[str]) -> None:
    """The norm of the errors of many draws: which of two roundings of one number is nearer is chance."""
    errors = [0.0, 0.0]
    for _ in range(10):
        critic, x = Critic(), torch.randn(4, 6, dtype=torch.float64)
        normalised(critic)
        backend_that_runs.clear()
        results = []
        for dtype, backend in ((torch.float32, "auto"), (torch.float32, "reference"), (torch.float64, "reference")):
            model, images = copy.deepcopy(critic).to(dtype), x.to(dtype).requires_grad_()
            with use_backend(backend):  # type: ignore[arg-type]
                penalty = r1(model(images), images)
            results.append([penalty, *gradients(penalty, model).values()])
        assert backend_that_runs == ["cpp", "reference", "reference"]
        for i in range(2):
            relative = [(a - e).norm() / e.norm() for a, e in zip(results[i], results[2], strict=True) if e.any()]
            errors[i] += sum(x.square().item() for x in relative)
    assert errors[0] <= 2 * errors[1]


def test_gradients_enabled_inside_a_model_called_without_them_reach_the_weights(x: Tensor) -> None:
    class Enabling(Critic):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                return super().forward(x)

    critic = Enabling()
    normalised(critic)
    with torch.no_grad():
        logits = critic(x)
    expected = logits_by_hand(critic, x)
    torch.testing.assert_close(gradients(logits.sum(), critic), gradients(expected.sum(), critic))
