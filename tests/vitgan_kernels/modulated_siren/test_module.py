"""ModulatedSiren: its initialisation above all, on which everything that a SIREN learns depends."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgan_kernels import ModulatedSiren, use_backend
from vitgan_kernels.modulated_siren import module as module_file

WIDTH = 192


def fourier_features(points: int = 64) -> Tensor:
    """(points, WIDTH) sines of random phase: a mean square of 1/2."""
    return torch.sin(2 * math.pi * torch.rand(points, WIDTH))


def arguments_of_the_sines(siren: ModulatedSiren, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], Tensor]:
    """What goes into each sine, and what comes out at the end, from the weights as the operator gets them."""
    calls: list[tuple[Any, ...]] = []

    def record(*args: Any, **kwargs: Any) -> Tensor:
        calls.append((*args, kwargs))
        return args[0]

    monkeypatch.setattr(module_file, "modulated_siren", record)
    siren(fourier_features(), torch.zeros(8, 5))  # of which the affine style layers make their bias, 1
    [(x, weights, styles, biases, kwargs)] = calls
    x = x.expand(8, -1, -1)
    arguments = []
    for weight, style, bias in zip(weights, styles, biases, strict=True):
        x = torch.einsum("bpi,oi,bi->bpo", x, weight, style)
        if kwargs["demodulate"]:
            x = x * torch.rsqrt(torch.einsum("oi,bi->bo", weight.square(), style.square())).unsqueeze(1)
        arguments.append(kwargs["omega"] * (x + bias))
        x, output = torch.sin(arguments[-1]), x + bias
    return arguments[:-1], output


@pytest.mark.parametrize("equalised", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("omega", [3.0, 30.0])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_arguments_of_the_sines_start_with_unit_variance(
    depth: int, omega: float, demodulate: bool, equalised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    siren = ModulatedSiren(
        WIDTH, WIDTH, 3, 5, hidden_layers=depth, omega=omega, demodulate=demodulate, equalised=equalised
    )
    arguments, output = arguments_of_the_sines(siren, monkeypatch)
    assert len(arguments) == depth
    for argument in arguments:
        assert 0.85 < argument.std() < 1.15
    # Demodulated rows have unit norm instead of 1/2 of it.
    low, high = (0.4, 0.9) if demodulate else (0.2, 0.45)
    assert low < output.std() < high


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("omega", [3.0, 30.0])
def test_the_equalised_scale_replaces_the_initialisation_and_does_not_come_on_top(
    omega: float, demodulate: bool
) -> None:
    x, style = fourier_features(), torch.randn(2, 5)
    outputs, spreads = [], []
    for equalised in (False, True):
        torch.manual_seed(1)
        siren = ModulatedSiren(WIDTH, WIDTH, 3, 5, omega=omega, demodulate=demodulate, equalised=equalised)
        outputs.append(siren(x, style))
        spreads.append([weight.detach().std().item() for weight in siren.weights])
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    assert spreads[1] == pytest.approx([1, 1], rel=0.1)
    assert max(spreads[0]) < 0.2


def test_an_equalised_bias_moves_the_sine_by_as_much_whatever_omega() -> None:
    shifts = []
    for omega in (1.0, 30.0):
        torch.manual_seed(1)
        siren = ModulatedSiren(WIDTH, WIDTH, 3, 5, omega=omega, equalised=True)
        x, style = fourier_features(), torch.zeros(1, 5)
        before = siren(x, style)
        with torch.no_grad():
            siren.biases[0] += 0.5
        shifts.append(siren(x, style) - before)
    assert shifts[0].std() > 0.05
    torch.testing.assert_close(shifts[0], shifts[1], rtol=1e-3, atol=1e-4)


def test_styles_are_affine_maps_that_start_at_one() -> None:
    siren = ModulatedSiren(4, 6, 3, 5, hidden_layers=2)
    for to_style, width in zip(siren.to_styles, (4, 6, 6), strict=True):
        torch.testing.assert_close(to_style(torch.zeros(2, 5)), torch.ones(2, width))
    shapes = [tuple(weight.shape) for weight in siren.weights]
    assert shapes == [(6, 4), (6, 6), (3, 6)]
    assert all(pair[1][1] == pair[0][0] for pair in pairwise(shapes))


def test_forward_is_the_operator_on_its_styles() -> None:
    siren = ModulatedSiren(4, 6, 3, 5, hidden_layers=1, omega=2.0).double()
    x, style = torch.randn(2, 7, 4, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    with torch.no_grad():
        for bias in siren.biases:
            bias.normal_()
    hidden_style, output_style = (to_style(style) for to_style in siren.to_styles)
    hidden = torch.sin(2 * (torch.einsum("bpi,bi,oi->bpo", x, hidden_style, siren.weights[0]) + siren.biases[0]))
    expected = torch.einsum("bpi,bi,oi->bpo", hidden, output_style, siren.weights[1]) + siren.biases[1]
    torch.testing.assert_close(siren(x, style), expected)
    torch.testing.assert_close(siren(x[0], style)[0], siren(x, style)[0])


@pytest.mark.parametrize("equalised", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
def test_gradients_reach_every_parameter(demodulate: bool, equalised: bool) -> None:
    siren = ModulatedSiren(4, 6, 3, 5, hidden_layers=2, omega=3.0, demodulate=demodulate, equalised=equalised)
    siren(torch.randn(7, 4), torch.randn(2, 5)).pow(3).sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in siren.parameters())


def test_style_layers_can_be_of_another_kind() -> None:
    class Marked(nn.Linear):
        pass

    siren = ModulatedSiren(4, 6, 3, 5, linear=Marked)
    assert [type(layer) for layer in siren.to_styles] == [Marked, Marked]


@pytest.mark.parametrize(
    "wrong",
    [
        {"in_features": 0},
        {"hidden_features": 0},
        {"out_features": -1},
        {"style_features": 0},
        {"hidden_layers": 0},
        {"hidden_layers": 1.5},
        {"omega": 0.0},
        {"omega": -30.0},
    ],
    ids=str,
)
def test_sizes_that_are_not_positive(wrong: dict[str, Any]) -> None:
    sizes = {"in_features": 4, "hidden_features": 6, "out_features": 3, "style_features": 5} | wrong
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"ModulatedSiren: {name} must be .*, got {value}"):
        ModulatedSiren(**sizes)


def test_backend_is_handed_on() -> None:
    siren = ModulatedSiren(4, 6, 3, 5, backend="reference")
    with use_backend("triton"):  # which the argument goes before
        assert siren(torch.randn(7, 4), torch.randn(2, 5)).shape == (2, 7, 3)
