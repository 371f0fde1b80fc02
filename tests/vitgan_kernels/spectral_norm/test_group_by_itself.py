"""SpectralNormGroup where a forward does not run all layers in one state, and the ways in and out of a group."""

import copy
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitgan_kernels import SpectralNormGroup
from vitgan_kernels.spectral_norm import grouping

Calls = list[int]


class Branches(nn.Module):
    """Features, a head, and a branch that only labels need."""

    body: Any  # a layer whose weight is parametrised, which its type does not know
    head: Any
    labels: Any

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.labels = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(5, 6)
        self.double()

    def forward(self, x: Tensor, labels: Tensor | None = None, frozen: bool = False) -> Tensor:
        training = self.training
        if frozen:
            self.eval()
            with torch.no_grad():
                h = self.body(x).tanh()
            self.train(training)
        else:
            h = self.body(x).tanh()
        return self.head(h if labels is None else h * self.labels(labels))


@pytest.fixture
def model() -> Branches:
    made = Branches()
    made.group = SpectralNormGroup(made)  # type: ignore[assignment]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The number of matrices in each call that a group makes."""
    counted: Calls = []
    call = grouping.spectral_norm

    def counting(weights: list[Tensor], *args: Any, **options: Any) -> Any:
        counted.append(len(weights))
        return call(weights, *args, **options)

    monkeypatch.setattr(grouping, "spectral_norm", counting)
    return counted


def moved(model: nn.Module, before: nn.Module) -> set[str]:
    """The layers whose vectors moved."""
    pairs = zip(model.named_buffers(), before.buffers(), strict=True)
    return {name.split(".")[0] for (name, buffer), old in pairs if not torch.equal(buffer, old)}


X, LABELS = torch.randn(4, 8).double(), torch.randn(4, 5).double()


@pytest.mark.parametrize(
    ("arguments", "used"),
    [((X,), {"body", "head"}), ((X, LABELS), {"body", "head", "labels"}), ((X, LABELS, True), {"head", "labels"})],
)
def test_a_forward_moves_the_vectors_of_the_layers_that_it_trains(
    model: Branches, calls: Calls, arguments: Any, used: set[str]
) -> None:
    for _ in range(3):
        before = copy.deepcopy(model)
        out = model(*arguments)
        assert moved(model, before) == used
    assert calls[-1] == len(used), "the layers in one state are computed together, and no others"
    for name in used:  # the output depends on each by the weight of its present vectors
        layer: Any = model.get_submodule(name)
        slope = torch.autograd.grad(out.sum(), [layer.parametrizations.weight.original], retain_graph=True)[0]
        assert slope.abs().max() > 0
    h = nn.functional.linear(X, model.body.weight, model.body.bias).tanh()
    h = h if len(arguments) == 1 else h * nn.functional.linear(LABELS, model.labels.weight, model.labels.bias)
    torch.testing.assert_close(out, nn.functional.linear(h, model.head.weight, model.head.bias))


def test_a_weight_written_to_within_a_forward_is_seen(model: Branches) -> None:
    def double_the_head(*_: Any) -> None:
        with torch.no_grad():
            model.head.parametrizations.weight.original.mul_(-2)

    plain = copy.deepcopy(model)
    double_the_head()
    with torch.no_grad():
        plain.head.parametrizations.weight.original.mul_(4)
    model.body.register_forward_hook(double_the_head)
    torch.testing.assert_close(model(X), plain(X))
    torch.testing.assert_close(list(model.buffers()), list(plain.buffers()))


def test_evaluation_of_parts_and_gradients_inside(model: Branches, calls: Calls) -> None:
    model.body.eval()
    before = copy.deepcopy(model)
    model(X, LABELS).sum().backward()
    assert moved(model, before) == {"head", "labels"}
    assert all(p.grad is not None for p in model.parameters())
    calls.clear()
    model(X, LABELS)
    assert sorted(calls) == [1, 2]


def test_remove_leads_out(model: Branches) -> None:
    expected = model.eval()(X, LABELS)
    group: SpectralNormGroup = model.group  # type: ignore[assignment]
    parametrize.remove_parametrizations(model.head, "weight")  # one by PyTorch's own function
    torch.testing.assert_close(model(X, LABELS), expected)
    assert list(group.sigma()) == ["body", "labels"]
    group.remove()
    assert [name for name, _ in model.named_parameters()] == [
        f"{layer}.{name}" for layer in ("body", "head", "labels") for name in ("bias", "weight")
    ]
    torch.testing.assert_close(model(X, LABELS), expected)
    assert not model._forward_pre_hooks
    SpectralNormGroup(model)


def test_assigning_a_weight_sets_the_trainable_tensor(model: Branches) -> None:
    weight = torch.randn(3, 6).double()
    model.head.weight = weight
    torch.testing.assert_close(model.head.parametrizations.weight.original.detach(), weight)
    assert model(X).isfinite().all()


@pytest.mark.parametrize("improved", [True, False])
def test_a_model_made_on_the_meta_device(improved: bool) -> None:
    trained = Branches()
    SpectralNormGroup(trained, improved=improved)
    trained(X, LABELS)
    with torch.device("meta"):
        model = Branches()
        group = SpectralNormGroup(model, improved=improved)
        assert model(X.to("meta"), LABELS.to("meta")).is_meta
    loaded = copy.deepcopy(model).to_empty(device="cpu")
    loaded.load_state_dict(trained.state_dict())
    assigned = copy.deepcopy(model)
    assigned.load_state_dict(copy.deepcopy(trained.state_dict()), assign=True)
    for one in (loaded, assigned):
        torch.testing.assert_close(one(X, LABELS), copy.deepcopy(trained)(X, LABELS), rtol=0, atol=0)
    model.to_empty(device="cpu")
    weights = {name: value for name, value in trained.state_dict().items() if "0." not in name}
    model.load_state_dict(weights, strict=False)  # values, and no vectors: they are made at the first use
    out = model.eval()(X, LABELS)
    assert out.isfinite().all()
    for name, sigma in group.sigma().items():
        exact = torch.linalg.matrix_norm(model.get_parameter(f"{name}.parametrizations.weight.original"), 2).detach()
        torch.testing.assert_close(sigma, exact, rtol=1e-4, atol=0)
    with torch.no_grad():
        model.head.parametrizations.weight.original.zero_()
    model.head.parametrizations.weight[0].started = False
    with pytest.raises(ValueError, match="the weight of head is zero"):
        model(X)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("improved", [True, False])
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e19, 1e30])
def test_weights_of_any_size_in_float32(size: float, improved: bool, backend: str) -> None:
    layer: Any = nn.Sequential(nn.Linear(6, 5, bias=False))
    weight = torch.randn(5, 6)
    layer[0].weight = nn.Parameter(weight * size)
    group = SpectralNormGroup(layer, improved=improved, backend=backend)
    exact = torch.linalg.matrix_norm(weight.double(), 2)
    original = layer[0].parametrizations.weight.original
    for training in (True, False):
        scaled = layer.train(training)(torch.eye(6)).t()
        goal = size if improved else 1 / exact
        torch.testing.assert_close(scaled.detach() / goal, weight, rtol=1e-4, atol=1e-6)
        towards = torch.randn(5, 6)
        (slope,) = torch.autograd.grad(scaled, original, towards)
        u, v = layer[0].parametrizations.weight[0]._u, layer[0].parametrizations.weight[0]._v
        expected = towards - (towards * weight / exact).sum() * torch.outer(u, v)
        torch.testing.assert_close(slope * (1 if improved else size), expected * float(1 if improved else 1 / exact))
    torch.testing.assert_close(group.sigma()["0"] / size, exact.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_an_eps_that_changes_compiles(model: Branches, dynamic: bool | None) -> None:
    group: SpectralNormGroup = model.group  # type: ignore[assignment]
    torch._dynamo.reset()
    frames = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(lambda: model(X, LABELS), fullgraph=True, backend=frames, dynamic=dynamic)
    for eps in (1e-12, 0.5, 0.25):
        group.eps = eps
        twin = copy.deepcopy(model)
        torch.testing.assert_close(compiled(), twin(X, LABELS))
        torch.testing.assert_close(list(model.buffers()), list(twin.buffers()))
    assert frames.frame_count <= 3
