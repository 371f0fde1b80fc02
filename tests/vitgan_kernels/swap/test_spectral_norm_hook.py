"""Layers under PyTorch's older spectral norm, which works in a hook, alone and beside the parametrization."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm
from torch.nn.utils import spectral_norm as hook_spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm
from torch.nn.utils.spectral_norm import SpectralNorm

from vitgan_kernels import swap, unswap
from vitgan_kernels.spectral_norm import grouping, op


def critic(*kinds: Any) -> nn.Sequential:
    first, second = kinds
    return nn.Sequential(
        first(nn.Conv2d(3, 4, 3, stride=2)),
        nn.Tanh(),
        nn.Flatten(),
        second(nn.Linear(36, 5)),
        nn.Tanh(),
        nn.Linear(5, 1),
    ).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> list[float]:
    random, losses = torch.Generator().manual_seed(seed), []
    for _ in range(5):
        real, fake = torch.randn(2, 3, 3, 8, 8, generator=random, dtype=torch.float64).unbind()
        real.requires_grad_()
        scores = model(real)
        (slope,) = torch.autograd.grad(scores.sum(), real, create_graph=True)
        loss = nn.functional.softplus(-scores).mean() + model(fake).square().mean() + slope.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "kinds",
    [(hook_spectral_norm, hook_spectral_norm), (torch_spectral_norm, hook_spectral_norm)],
    ids=["hooks", "one of each"],
)
def test_training_goes_on_as_if_nothing_had_happened(kinds: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = critic(*kinds)
    model = copy.deepcopy(plain)
    pairs = [(one, torch.optim.Adam(one.parameters(), lr=1e-2)) for one in (plain, model)]
    assert train(*pairs[0], seed=0) == train(*pairs[1], seed=0)
    tensors, keys = dict(model.named_parameters()) | dict(model.named_buffers()), list(model.state_dict())
    report = swap(model)
    assert [row.swapped for row in report.rows] == [True, True], str(report)
    counted: list[int] = []

    def counting(weights: list[Tensor], *args: Any, **options: Any) -> Any:
        counted.append(len(weights))
        return op.spectral_norm(weights, *args, **options)

    monkeypatch.setattr(grouping, "spectral_norm", counting)
    torch.testing.assert_close(train(*pairs[1], seed=1), train(*pairs[0], seed=1), rtol=1e-10, atol=1e-12)
    assert counted == [2] * 10, "one call a forward for all"
    assert list(model.state_dict()) == keys
    assert all(tensor is tensors[name] for name, tensor in [*model.named_parameters(), *model.named_buffers()])
    unswap(model)
    counted.clear()
    torch.testing.assert_close(train(*pairs[1], seed=2), train(*pairs[0], seed=2), rtol=1e-10, atol=1e-12)
    assert not counted
    assert not model._forward_pre_hooks
    torch.testing.assert_close(dict(model.state_dict()), dict(plain.state_dict()), rtol=1e-10, atol=1e-12)


def test_evaluation_moves_nothing_and_a_removed_one_leaves_the_group() -> None:
    plain = critic(hook_spectral_norm, hook_spectral_norm).eval()
    model = copy.deepcopy(plain)
    swap(model)
    x = torch.randn(2, 3, 8, 8).double()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    torch.testing.assert_close(model(x), plain(x))
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    for one in (model, plain):
        remove_spectral_norm(one[0])
    torch.testing.assert_close(model(x), plain(x))
    unswap(model)
    hooks = [hook for part in model for hook in part._forward_pre_hooks.values()]
    assert [type(hook) for hook in hooks] == [SpectralNorm]


def test_a_copy_is_a_group_of_its_own() -> None:
    model = critic(hook_spectral_norm, torch_spectral_norm)
    swap(model)
    twin = copy.deepcopy(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    twin(torch.randn(2, 3, 8, 8).double())
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    assert any(not torch.equal(before[name], buffer) for name, buffer in twin.named_buffers())


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: hook_spectral_norm(nn.ConvTranspose1d(4, 4, 1)), "dim=1"),
        (lambda: hook_spectral_norm(nn.Linear(4, 4), "bias"), "a vector"),
    ],
)
def test_left_alone_with_the_reason(layer: Any, reason: str) -> None:
    model = nn.Sequential(layer())
    (row,) = swap(model).rows
    assert not row.swapped
    assert reason in row.now
    assert not model._forward_pre_hooks


def test_swapping_twice_changes_nothing() -> None:
    model = critic(hook_spectral_norm, torch_spectral_norm)
    swap(model)
    assert {row.now for row in swap(model).rows} == {"it is swapped already"}
    assert len(model._forward_pre_hooks) == 1
