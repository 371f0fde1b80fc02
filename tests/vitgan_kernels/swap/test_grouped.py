"""Layers that `swap` has taken over from PyTorch's spectral norm, used as a plain stack does not use them."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as hook_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.utils.checkpoint import checkpoint

from vitgan_kernels import swap, unswap
from vitgan_kernels.spectral_norm import grouping, op
from vitgan_kernels.swap.recipes import grouped


def layer(inputs: int, outputs: int) -> nn.Linear:
    return cast(nn.Linear, torch_spectral_norm(nn.Linear(inputs, outputs)))


def u_of(normalised: nn.Module) -> Tensor:
    return cast(Tensor, grouped.parametrizations(normalised, "weight")[0]._u)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of matrices in each call of the operator that a swapped model has made."""
    counted: list[int] = []

    def counting(weights: list[Tensor], *args: Any, **options: Any) -> Any:
        counted.append(len(weights))
        return op.spectral_norm(weights, *args, **options)

    monkeypatch.setattr(grouping, "spectral_norm", counting)
    return counted


class Uses(nn.Module):
    """Uses its layers in ways that a plain stack does not."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.block, self.unused = layer(5, 5), nn.Sequential(layer(5, 5), nn.Tanh()), layer(5, 5)
        self.double()

    def forward(self, x: Tensor, way: str = "twice") -> Tensor:
        if way == "twice":
            return self.twice(torch.tanh(self.twice(x)))
        if way == "gradient inside":
            with torch.enable_grad():
                return self.twice(x)
        return cast(Tensor, checkpoint(self.block, self.twice(x), use_reentrant=way == "reentrant"))


@pytest.fixture
def pair() -> tuple[Uses, Uses, Tensor]:
    plain = Uses()
    swapped = copy.deepcopy(plain)
    with torch.no_grad():
        for weight in [p for name, p in plain.named_parameters() if "original" in name]:
            weight.add_(torch.randn_like(weight))  # far from converged, so that every move of the vectors shows
    swapped.load_state_dict(plain.state_dict())
    assert all(row.swapped for row in swap(swapped).rows)
    return plain, swapped, torch.randn(3, 5).double()


def test_a_second_use_in_a_forward_moves_the_vectors_again(pair: tuple[Uses, Uses, Tensor]) -> None:
    plain, swapped, x = pair
    torch.testing.assert_close(swapped(x), plain(x))
    torch.testing.assert_close(u_of(swapped.twice), u_of(plain.twice))


def test_a_layer_called_by_itself_moves_its_own_vectors(pair: tuple[Uses, Uses, Tensor], calls: list[int]) -> None:
    plain, swapped, x = pair
    torch.testing.assert_close(swapped.block(x), plain.block(x))
    torch.testing.assert_close(dict(swapped.named_buffers()), dict(plain.named_buffers()))
    assert calls == []


def test_a_frozen_layer_in_a_training_model_keeps_its_vectors(pair: tuple[Uses, Uses, Tensor]) -> None:
    plain, swapped, x = pair
    plain.twice.eval()
    swapped.twice.eval()
    torch.testing.assert_close(swapped(x), plain(x))
    torch.testing.assert_close(u_of(swapped.twice), u_of(plain.twice))


def test_a_model_called_without_gradients_that_enables_them_inside_has_them(pair: tuple[Uses, Uses, Tensor]) -> None:
    for model in pair[:2]:
        model.eval()
        with torch.no_grad():
            output = model(pair[2], "gradient inside")
        output.sum().backward()
    gradients = [grouped.parametrizations(model.twice, "weight").original.grad for model in pair[:2]]
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_activation_checkpointing(pair: tuple[Uses, Uses, Tensor], way: str) -> None:
    x = pair[2]
    for model in pair[:2]:
        for _ in range(60):
            model(x)  # converged: what the block computes a second time, it computes with the same weight
            model.block(x)
        model.zero_grad()
        model(x, way).square().sum().backward()
    plain, swapped = [{name: p.grad for name, p in m.named_parameters() if "unused" not in name} for m in pair[:2]]
    torch.testing.assert_close(swapped, plain, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("part", ["", "twice"])
def test_function_transforms(pair: tuple[Uses, Uses, Tensor], part: str) -> None:
    plain, swapped, x = pair
    slopes = [
        torch.func.grad(lambda x, m=model: m.get_submodule(part)(x).sum())(x)
        for model in (plain.eval(), swapped.eval())
    ]
    torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.parametrize("part", ["", "twice"])
def test_compiles_as_one_graph(pair: tuple[Uses, Uses, Tensor], part: str) -> None:
    plain, swapped, x = pair
    compiled = torch.compile(lambda x: swapped.get_submodule(part)(x), backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), plain.get_submodule(part)(x))
    torch.testing.assert_close(u_of(swapped.twice), u_of(plain.twice))


def test_an_error_in_the_forward_leaves_no_weight_behind(pair: tuple[Uses, Uses, Tensor]) -> None:
    _, swapped, x = pair
    with pytest.raises(RuntimeError):
        swapped(x[:, :3])
    assert not any(getattr(module, "scaled", None) is not None for module in swapped.modules())


def test_removing_a_parametrization_after_the_swap(calls: list[int]) -> None:
    model = nn.Sequential(layer(5, 4), layer(4, 3))
    swap(model)
    model.eval()
    x = torch.randn(2, 5)
    expected = model(x)
    parametrize.remove_parametrizations(model[0], "weight")
    torch.testing.assert_close(model(x), expected)
    calls.clear()
    torch.testing.assert_close(model(x), expected)
    assert calls == [1]
    unswap(model)
    torch.testing.assert_close(model(x), expected)


def test_data_parallel_replicas_take_pytorch_s_path(pair: tuple[Uses, Uses, Tensor], calls: list[int]) -> None:
    _, swapped, x = pair
    replica = copy.copy(swapped)
    replica._is_replica = True  # type: ignore[assignment]
    replica(x)
    assert calls == []


def leaves(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [leaf for part in tree for leaf in leaves(part)]


Way = Callable[[Any, Tensor], Any]
WAYS: dict[str, Way] = {
    "grad": lambda m, x: torch.func.grad(lambda x: m(x).square().sum())(x),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x,)),
    "jacrev": lambda m, x: torch.func.jacrev(m)(x),
    "hessian": lambda m, x: torch.func.hessian(lambda x: m(x).square().sum())(x),
    "vmap": lambda m, x: torch.func.vmap(m)(x),
    "grad in the parameters": lambda m, x: list(
        torch.func.grad(lambda p: torch.func.functional_call(m, p, (x,)).square().sum())(
            dict(m.named_parameters())
        ).values()
    ),
    "is_grads_batched": lambda m, x: torch.autograd.grad(
        m(x), [*m.parameters()], torch.eye(6).double().view(6, 2, 3), is_grads_batched=True
    ),
    "second order in the parameters": lambda m, x: torch.autograd.grad(
        [g.square().sum() for g in torch.autograd.grad(m(x).pow(3).sum(), [*m.parameters()], create_graph=True)],
        [*m.parameters()],
    ),
    "checkpointing": lambda m, x: torch.autograd.grad(
        checkpoint(m, x, use_reentrant=False).square().sum(), [*m.parameters()]
    ),
    "checkpointing inside": lambda m, x: torch.autograd.grad(
        m[2](checkpoint(m[:2], x, use_reentrant=False)).square().sum(), [*m.parameters()]
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("normalise", [hook_spectral_norm, torch_spectral_norm], ids=["hook", "parametrization"])
@pytest.mark.parametrize("name", WAYS)
def test_what_worked_before_a_swap_works_after_it(normalise: Any, name: str) -> None:
    plain = nn.Sequential(normalise(nn.Linear(5, 4)), nn.Tanh(), normalise(nn.Linear(4, 3))).double()
    with torch.no_grad():
        for parameter, weight in plain.named_parameters():
            if "orig" in parameter:
                weight.normal_()
    x = torch.randn(2, 5).double()
    for _ in range(300 if "checkpointing" in name else 0):
        with torch.no_grad():
            plain(x)  # converged: what a block computes a second time, it computes with the same weight
    swapped = copy.deepcopy(plain)
    assert all(row.swapped for row in swap(swapped).rows)
    way = WAYS[name]
    torch.testing.assert_close(leaves(way(swapped, x)), leaves(way(plain, x)), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close([*swapped.buffers()], [*plain.buffers()])


class Frozen(nn.Module):
    """Fine-tuning as public GAN code does it: features in evaluation mode, the head in training mode."""

    def __init__(self, normalise: Any) -> None:
        super().__init__()
        self.body, self.head = normalise(nn.Linear(8, 16)), normalise(nn.Linear(16, 3))
        self.labels = normalise(nn.Embedding(5, 16))
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        training = self.training
        self.eval()
        with torch.no_grad():
            h = self.body(x).relu()
        self.train(training)
        return self.head(h if labels is None else h * self.labels(labels))


@pytest.mark.parametrize("normalise", [hook_spectral_norm, torch_spectral_norm], ids=["hook", "parametrization"])
def test_parts_in_evaluation_mode_and_branches_that_do_not_run(normalise: Any) -> None:
    plain = Frozen(normalise)
    swapped = copy.deepcopy(plain)
    with torch.no_grad():
        for weight in [p for name, p in plain.named_parameters() if "orig" in name]:
            weight.normal_()
    swapped.load_state_dict(plain.state_dict())
    assert all(row.swapped for row in swap(swapped).rows)
    x = torch.randn(4, 8).double()
    for labels in (None, torch.tensor([0, 1, 2, 3]), None, None):
        outs = [model(x, labels) for model in (swapped, plain)]
        torch.testing.assert_close(*outs)
        torch.testing.assert_close([*swapped.buffers()], [*plain.buffers()])
        slopes = [
            torch.autograd.grad(out.square().sum(), [*m.head.parameters()])
            for out, m in zip(outs, (swapped, plain), strict=True)
        ]
        torch.testing.assert_close(*slopes)
