"""The parts that both networks share."""

import math

import pytest
import torch
from torch.nn import functional as F

from vitgan.models.layers import MLP, ClassLogits, EqualLinear, FourierPositions, OverlappingPatches


def test_equal_linear_is_a_linear_layer_scaled_by_its_fan_in() -> None:
    layer = EqualLinear(5, 3, bias_init=2.0).double()
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = torch.einsum("bti,oi->bto", x, layer.weight) / math.sqrt(5) + 2
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_equal_linear_keeps_the_variance_of_its_input(lr_multiplier: float) -> None:
    layer = EqualLinear(400, 300, bias_init=3.0, lr_multiplier=lr_multiplier)
    out = layer(torch.randn(64, 400))
    assert out.mean().item() == pytest.approx(3, abs=0.05)
    assert out.std().item() == pytest.approx(1, rel=0.05)
    assert layer.weight.std().item() * lr_multiplier == pytest.approx(1, rel=0.05)


def test_the_learning_rate_multiplier_slows_weight_and_bias_down() -> None:
    """One step of Adam moves every parameter by the learning rate, whatever its scale."""
    moves = []
    for lr_multiplier in (1.0, 0.01):
        layer = EqualLinear(4, 3, lr_multiplier=lr_multiplier)
        x = torch.ones(1, 4)
        before = layer(x)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1)
        moves.append((layer(x) - before).mean().item())
    assert moves[0] == pytest.approx(0.1 * 4 / math.sqrt(4) + 0.1, rel=1e-4)
    assert moves[1] == pytest.approx(0.01 * moves[0], rel=1e-3)


def test_overlapping_patches_are_a_convolution_scaled_by_its_fan_in() -> None:
    layer = OverlappingPatches(3, 6, 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 8, 8)
    expected = F.conv2d(x, layer.weight / math.sqrt(3 * 4 * 4), layer.bias, stride=2, padding=1)
    torch.testing.assert_close(layer(x), expected.flatten(2).transpose(1, 2))
    assert layer.weight.std().item() == pytest.approx(1, rel=0.1)


def test_fourier_positions_are_the_centres_of_cells_row_by_row() -> None:
    assert FourierPositions(2, 4, frequency=1.0).positions.tolist() == [
        [-0.5, -0.5],
        [-0.5, 0.5],
        [0.5, -0.5],
        [0.5, 0.5],
    ]
    assert FourierPositions(1, 4, frequency=1.0).positions.tolist() == [[0, 0]]
    grid = FourierPositions(8, 4, frequency=1.0).positions
    assert grid.abs().max() == 7 / 8
    torch.testing.assert_close(grid.sum(0), torch.zeros(2))


def test_fourier_positions_are_sines_of_a_learned_projection() -> None:
    layer = FourierPositions(3, 500, frequency=3.0)
    weight, bias = layer.linear.weight, layer.linear.bias
    expected = torch.sin(torch.einsum("pc,dc->pd", layer.positions, 3 * weight) + bias)
    torch.testing.assert_close(layer(), expected)
    assert (3 * weight).std().item() == pytest.approx(3, rel=0.1), "radians per unit"
    assert -math.pi <= bias.min() < -2.9
    assert 2.9 < bias.max() <= math.pi
    assert layer().square().mean().item() == pytest.approx(0.5, abs=0.05)


def test_autocast_rounds_no_phase() -> None:
    """In bfloat16 a phase of 8 radians is off by up to 0.03."""
    layer = FourierPositions(3, 500, frequency=3.0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = layer()
    torch.testing.assert_close(inside, layer(), rtol=0, atol=0)


def test_autocast_rounds_no_logit() -> None:
    layer, x = ClassLogits(8, 5), torch.randn(4, 8)
    labels = torch.tensor([0, 4, 2, 2])
    expected = layer(x.bfloat16().float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x.bfloat16(), labels), expected, rtol=0, atol=0)


def test_fourier_positions_are_trained_and_not_stored() -> None:
    layer = FourierPositions(3, 4, frequency=3.0)
    layer().pow(3).sum().backward()
    for parameter in (layer.linear.weight, layer.linear.bias):
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()
    assert set(layer.state_dict()) == {"linear.weight", "linear.bias"}


def test_mlp() -> None:
    mlp = MLP(4, 7).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    first, first_bias, second, second_bias = mlp.parameters()
    hidden = x @ first.mT / 2 + first_bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    torch.testing.assert_close(mlp(x), hidden @ second.mT / math.sqrt(7) + second_bias)
