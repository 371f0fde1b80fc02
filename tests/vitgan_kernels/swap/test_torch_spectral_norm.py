"""`swap` and `unswap` of PyTorch's spectral norm: what is recognised, and that training goes on as before."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from tests.vitgan_kernels.swap.critics import assert_same_tensors, buffers_of, critic, layer, state
from vitgan_kernels import SpectralNormGroup, swap, unswap
from vitgan_kernels.spectral_norm import grouping, op
from vitgan_kernels.swap.recipes import grouped


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> list[float]:
    """A critic's steps with a gradient penalty: two forward passes before one backward, and a second derivative."""
    random = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    losses = []
    for _ in range(steps):
        real, fake = torch.randn(2, 4, 3, 8, 8, generator=random, dtype=torch.float64).to(dtype).unbind()
        real.requires_grad_()
        scores = model(real)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        loss = nn.functional.softplus(-scores).mean() + nn.functional.softplus(model(fake + 1)).mean()
        loss = loss + slope.square().sum(dim=(1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of matrices in each call of the operator that a swapped model has made."""
    counted: list[int] = []

    def counting(weights: list[Tensor], *args: Any, **options: Any) -> Any:
        counted.append(len(weights))
        return op.spectral_norm(weights, *args, **options)

    monkeypatch.setattr(grouping, "spectral_norm", counting)
    return counted


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"),
    [(torch.float64, 1e-11, 1e-13), (torch.float32, 1e-4, 1e-5)],
)
def test_training_goes_on_as_if_nothing_had_happened(dtype: torch.dtype, rtol: float, atol: float) -> None:
    models = [critic(dtype)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.0, 0.99)) for model in models]
    before = [train(*pair, steps=6, seed=0) for pair in zip(models, optimizers, strict=True)]
    assert before[0] == before[1]
    assert sum(row.swapped for row in swap(models[1]).rows) == 4
    middle = [train(*pair, steps=12, seed=1) for pair in zip(models, optimizers, strict=True)]
    unswap(models[1])
    after = [train(*pair, steps=6, seed=2) for pair in zip(models, optimizers, strict=True)]

    assert len({f"{loss:.2f}" for loss in middle[0]}) > 6, "the losses must move for their equality to say anything"
    torch.testing.assert_close(middle[1] + after[1], middle[0] + after[0], rtol=rtol, atol=atol)
    assert_same_tensors(models[1].state_dict(), models[0].state_dict(), rtol=rtol, atol=atol)


def test_parameters_and_buffers_stay_the_same_objects_under_the_same_keys() -> None:
    model = critic()
    kept = dict(model.named_parameters()) | dict(model.named_buffers())
    values = copy.deepcopy(model.state_dict())
    swap(model)
    assert all(tensor is kept.pop(name) for name, tensor in [*model.named_parameters(), *model.named_buffers()])
    assert not kept
    assert_same_tensors(model.state_dict(), values, rtol=0, atol=0)


def test_checkpoints_move_both_ways() -> None:
    plain, swapped = critic(), critic()
    swap(swapped)
    swapped(torch.randn(2, 3, 8, 8).double())
    plain.load_state_dict(swapped.state_dict())
    image = torch.randn(2, 3, 8, 8).double()
    torch.testing.assert_close(swapped(image), plain(image))
    swapped.load_state_dict(critic().state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_one_call_a_forward_and_the_vectors_move_in_training_only(calls: list[int], training: bool) -> None:
    model = critic().train(training)
    plain = copy.deepcopy(model)
    swap(model)
    calls.clear()
    image = torch.randn(2, 3, 8, 8).double()
    before = buffers_of(model)
    output = model(image)
    assert calls == [4]
    assert any(not torch.equal(before[name], buffer) for name, buffer in model.named_buffers()) == training
    torch.testing.assert_close(output, plain(image))
    assert_same_tensors(buffers_of(model), buffers_of(plain))


def test_settings_of_each_layer_are_kept(calls: list[int]) -> None:
    model = nn.Sequential(layer(6, 5, n_power_iterations=3), layer(5, 4), layer(4, 4), layer(4, 3, eps=0.5)).double()
    for part in model:
        grouped.parametrizations(part, "weight").original.data.mul_(0.3)  # small enough for eps to matter
    plain = copy.deepcopy(model)
    report = swap(model)
    assert "3 calls a forward for 4 tensors" in report.rows[0].now
    calls.clear()
    x = torch.randn(2, 6).double()
    torch.testing.assert_close(model(x), plain(x))
    assert calls == [1, 2, 1]
    assert_same_tensors(buffers_of(model), buffers_of(plain))


def test_unswap_restores() -> None:
    model = critic()
    image = torch.randn(2, 3, 8, 8).double()
    swap(model)
    model(image)
    plain = copy.deepcopy(model)
    unswap(plain)
    assert [type(state(plain[i])) for i in (0, 2, 5, 7)] == [_SpectralNorm] * 4
    assert not any("scaled" in vars(module) for module in plain.modules())
    assert not plain._forward_pre_hooks
    assert not plain._forward_hooks
    torch.testing.assert_close(model(image), plain(image))
    assert model._forward_pre_hooks, "the copy was unswapped, not the model"
    assert sum(row.swapped for row in swap(plain).rows) == 4


def test_unswap_finds_what_was_swapped_inside_a_larger_model() -> None:
    model = nn.ModuleDict({"critic": critic(), "generator": nn.Linear(2, 2)})
    swap(model["critic"])
    unswap(model)
    assert not model["critic"]._forward_pre_hooks
    assert type(state(model["critic"].get_submodule("0"))) is _SpectralNorm


def test_deep_copy_is_a_swapped_model_of_its_own(calls: list[int]) -> None:
    model = critic()
    swap(model)
    twin = copy.deepcopy(model)
    before = buffers_of(model)
    calls.clear()
    twin(torch.randn(2, 3, 8, 8).double())
    assert calls == [4]
    assert_same_tensors(buffers_of(model), before, rtol=0, atol=0)


def test_a_tensor_of_any_name_and_the_model_itself() -> None:
    cell = nn.LSTMCell(3, 4).double()
    torch_spectral_norm(cell, "weight_hh")
    plain = copy.deepcopy(cell)
    (row,) = swap(cell).rows
    assert (row.path, row.swapped, row.was) == ("weight_hh", True, "torch spectral_norm of LSTMCell")
    x = torch.randn(2, 3).double()
    torch.testing.assert_close(cell(x), plain(x))
    assert_same_tensors(buffers_of(cell), buffers_of(plain))


def test_swapping_twice_changes_nothing() -> None:
    model = critic()
    swap(model)
    assert {row.now for row in swap(model).rows} == {"it is swapped already"}
    assert len(model._forward_pre_hooks) == 1


def test_only_chooses_layers() -> None:
    model = critic()
    report = swap(model, only=lambda name, part: name == "0" or isinstance(part, nn.Linear))
    assert [row.path for row in report.rows] == ["0.weight", "5.weight", "7.weight"]
    assert type(state(model[2])) is _SpectralNorm


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    report = swap(critic(dtype))
    assert all(row.swapped for row in report.rows)
    assert {name for row in report.rows for name in row.differences} == {"float64", str(dtype).removeprefix("torch.")}


def test_swap_leaves_the_random_state_the_mode_and_the_gradients_alone() -> None:
    model = critic().eval()
    model[0].train()
    random = torch.get_rng_state()
    with torch.no_grad():
        assert all(row.swapped for row in swap(model).rows)
    assert torch.equal(torch.get_rng_state(), random)
    assert [part.training for part in model] == [True] + [False] * 7
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("improved", [True, False])
def test_a_group_loads_checkpoints_of_pytorch_s_layers(improved: bool) -> None:
    theirs = critic()
    ours = critic(normalise=lambda layer: layer)
    SpectralNormGroup(ours, improved=improved)
    norms = {name: buffer.clone() for name, buffer in ours.named_buffers() if name.endswith("sigma_init")}
    assert len(norms) == (4 if improved else 0)
    given = theirs.state_dict()
    ours.load_state_dict(given)
    assert_same_tensors(given, theirs.state_dict(), rtol=0, atol=0)
    kept = {name: value for name, value in ours.state_dict().items() if not name.endswith("sigma_init")}
    assert_same_tensors(kept, given, rtol=0, atol=0)
    assert len(ours.state_dict()) == len(given) + (4 if improved else 0)
    assert_same_tensors({n: b for n, b in ours.named_buffers() if n in norms}, norms, rtol=0, atol=0)
    if not improved:
        theirs.load_state_dict(ours.state_dict())
