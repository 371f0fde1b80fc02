"""How a swapped module is called, how it's timed, and what decides whether it is swapped."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as hook_spectral_norm

from tests.vitgan_kernels.swap.test_module_recipes import theirs
from vitgan_kernels import swap
from vitgan_kernels.swap import compare, recipe
from vitgan_kernels.swap.recipes import torch_spectral_norm


class Clock:
    """A clock that passes by what a run says it takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds: float) -> Callable[[], None]:
        left = [*seconds] * 1000

        def run() -> None:
            self.now += left.pop(0)

        return run


@pytest.mark.parametrize(
    ("before", "after", "slower"),
    [([1.0], [1.05], False), ([1.0], [1.2], True), ([1.0, 1.5], [1.3, 0.9], False), ([5e-5], [6e-5], True)],
)
def test_slower_by_more_than_noise(
    monkeypatch: pytest.MonkeyPatch, before: list[float], after: list[float], slower: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(compare, "clock", clock)
    times = compare.time_in_turns(clock.takes(*before), clock.takes(*after))
    assert times.slower == slower
    if len(before) == 1:
        assert (times.before, times.after) == (pytest.approx(before[0]), pytest.approx(after[0]))


def stack() -> nn.Sequential:
    return nn.Sequential(theirs.SineLayer(2, 4), theirs.SineLayer(4, 4), nn.Linear(4, 3))


@pytest.mark.parametrize("make", [stack, lambda: nn.Sequential(hook_spectral_norm(nn.Linear(3, 3)))])
def test_what_is_slower_is_left_alone(monkeypatch: pytest.MonkeyPatch, make: Callable[[], nn.Module]) -> None:
    for module in (recipe, torch_spectral_norm):
        monkeypatch.setattr(module, "time_in_turns", lambda *_: compare.Times(1e-3, 2e-3, True))
    model = make()
    report = swap(model)
    assert not any(row.swapped for row in report.rows)
    assert report.rows[0].now == "it is slower on this device; keep_slower=True takes it"
    assert "1 -> 2 ms" in str(report)
    report = swap(model, keep_slower=True)
    assert report.rows[0].swapped
    assert report.rows[0].times == compare.Times(1e-3, 2e-3, True)


def test_modules_are_timed_with_what_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watching(module: nn.Module, inputs: Any) -> Callable[[], object]:
        seen.append([tuple(x.shape) for x in inputs])
        return lambda: None

    monkeypatch.setattr(recipe, "one_pass", watching)
    model = nn.Sequential(nn.Linear(7, 2), stack())
    before = copy.deepcopy(model.state_dict())
    assert swap(model, inputs=torch.randn(11, 7)).rows[0].swapped
    assert seen == [[(11, 2)]] * 2
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    swap(nn.Sequential(stack()))
    assert seen[2:] == [[(5, 2)]] * 2, "the inputs of the comparison"
    with pytest.raises(RuntimeError):
        swap(model, inputs=(torch.randn(11, 3),))


def test_a_pass_is_that_of_the_module_s_mode() -> None:
    layer, x = nn.Linear(2, 2), torch.randn(3, 2, requires_grad=True)
    modes: list[Any] = []
    layer.register_forward_hook(lambda *_: modes.append(torch.is_grad_enabled()))
    layer.register_full_backward_hook(lambda *_: modes.append("backward"))
    for training in (True, False):
        compare.one_pass(layer.train(training), [x])()
    assert modes == [True, "backward", False]
    assert layer.weight.grad is None


def test_the_signature_of_the_original_stays() -> None:
    model = theirs.MultiHeadAttention(8)
    plain, signature = copy.deepcopy(model), inspect.signature(model.forward)
    assert swap(model).rows[0].swapped
    assert inspect.signature(model.forward) == signature
    x = torch.randn(2, 5, 8)
    for call in (lambda m: m(x=x), lambda m: m(x, None), lambda m: m(x, mask=None), lambda m: m(x, mask=torch.ones(5))):
        torch.testing.assert_close(call(model), call(plain))
    for wrong in (lambda m: m(), lambda m: m(x, y=1), lambda m: m(x, x=x), lambda m: m(x, None, 1)):
        with pytest.raises(TypeError):
            wrong(model)
    modulated = theirs.CipsLinear(6, 3)
    expected = modulated(torch.ones(1, 2, 6), torch.ones(1, 4))
    swap(modulated)
    torch.testing.assert_close(modulated(style=torch.ones(1, 4), x=torch.ones(1, 2, 6)), expected)


def test_a_hook_inside_a_stack_is_seen_at_each_call() -> None:
    model: Any = stack()
    x, seen = torch.randn(5, 2), list[int]()
    expected = model(x)
    assert swap(model).rows[0].swapped
    handle = model[1].linear.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(model(x), expected)
    assert seen == [1]
    handle.remove()
    torch.testing.assert_close(model(x), expected)
    assert seen == [1]


def deep(width: int) -> nn.Sequential:
    layers = [theirs.SineLayer(width if i else 2, width) for i in range(4)]
    return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.mark.parametrize(
    "make", [lambda: deep(32), lambda: theirs.Siren(30.0, 30.0, width=32, style=32), lambda: theirs.SineLayer(2, 32)]
)
def test_whether_a_siren_is_swapped_does_not_depend_on_the_seed(make: Callable[[], nn.Module]) -> None:
    for seed in range(12):
        torch.manual_seed(seed)
        model = nn.ModuleDict({"siren": make()})
        row = swap(model).rows[0]
        assert (row.path, row.swapped) == ("siren", True), row


def test_a_frequency_that_is_not_the_one_used_is_found() -> None:
    class Deaf(theirs.SineLayer):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(30 * self.linear(x))

    assert "disagrees" in swap(nn.ModuleDict({"a": Deaf(2, 6, omega_0=30.0)})).rows[0].now
