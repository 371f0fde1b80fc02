"""What the modulated layers compute, held against weights modulated sample by sample."""

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d

from vitgan_kernels import modulated_linear, modulated_siren


def by_grouped_convolution(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None = None, *, demodulate: bool = False, eps: float = 1e-8
) -> Tensor:
    """StyleGAN2's own form, in float64: one modulated (and demodulated) weight a sample, as groups of a convolution."""
    x, weight, style = x.double(), weight.double(), style.double()
    batch, outputs = style.shape[0], weight.shape[0]
    weights = torch.einsum("oi,bi->boi", weight, style)
    if demodulate:
        weights = weights / torch.sqrt(torch.einsum("boi,boi->bo", weights, weights) + eps).unsqueeze(-1)
    signal = x.expand(batch, *x.shape[-2:]).mT.reshape(1, -1, x.shape[-2])
    out = conv1d(signal, weights.reshape(batch * outputs, -1, 1), groups=batch).view(batch, outputs, -1).mT
    return out if bias is None else out + bias.double()


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def layer(batch: int, points: int, inputs: int, outputs: int, *, shared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x = random(points, inputs) if shared else random(batch, points, inputs)
    return x, random(outputs, inputs), random(batch, inputs), random(outputs)


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_all_small_shapes(shared: bool, demodulate: bool) -> None:
    """Small enough to be all there are, so every order of batch, points and outputs, and every way to multiply."""
    for sizes in product((1, 2, 3), repeat=4):
        x, weight, style, bias = layer(*sizes, shared=shared)
        actual = modulated_linear(x, weight, style, bias, demodulate=demodulate)
        expected = by_grouped_convolution(x, weight, style, bias, demodulate=demodulate)
        assert torch.allclose(actual, expected, rtol=1e-10, atol=1e-12), f"batch, points, in, out: {sizes}"


@given(
    sizes=st.tuples(*(st.integers(1, 40) for _ in range(4))),
    shared=st.booleans(),
    demodulate=st.booleans(),
    omega=st.floats(0.5, 30),
    seed=st.integers(0, 2**16),
)
def test_any_shape(sizes: tuple[int, int, int, int], shared: bool, demodulate: bool, omega: float, seed: int) -> None:
    torch.manual_seed(seed)
    x, weight, style, bias = layer(*sizes, shared=shared)
    expected = by_grouped_convolution(x, weight, style, bias, demodulate=demodulate)
    torch.testing.assert_close(modulated_linear(x, weight, style, bias, demodulate=demodulate), expected)
    sine = modulated_linear(x, weight, style, bias, activation="sine", omega=omega, demodulate=demodulate)
    torch.testing.assert_close(sine, torch.sin(omega * expected), rtol=1e-7, atol=1e-9)


def test_without_bias() -> None:
    x, weight, style, _ = layer(2, 4, 3, 5, shared=False)
    torch.testing.assert_close(modulated_linear(x, weight, style), by_grouped_convolution(x, weight, style))


def test_omega_is_30_unless_given() -> None:
    x, weight, style, bias = layer(2, 4, 3, 5, shared=False)
    expected = torch.sin(30 * by_grouped_convolution(x, weight, style, bias))
    torch.testing.assert_close(modulated_linear(x, weight, style, bias, activation="sine"), expected)
    torch.testing.assert_close(modulated_siren(x, [weight], [style], [bias], final_activation="sine"), expected)


def test_eps_is_under_the_root() -> None:
    x, weight, style, _ = layer(2, 4, 3, 5, shared=False)
    actual = modulated_linear(x, weight, style, demodulate=True, eps=0.5)
    torch.testing.assert_close(actual, by_grouped_convolution(x, weight, style, demodulate=True, eps=0.5))


def test_demodulated_weights_have_unit_norm_whatever_the_style() -> None:
    weight, style = random(5, 8), 100 * random(3, 8)
    rows = modulated_linear(torch.eye(8, dtype=torch.float64), weight, style, demodulate=True).mT
    torch.testing.assert_close(rows.square().sum(-1), torch.ones(3, 5, dtype=torch.float64))


def test_points_and_channels_keep_their_axes() -> None:
    """As many points as channels and samples, so that a reshape in the wrong order would fit and go unnoticed."""
    x, weight, style, bias = layer(4, 4, 4, 4, shared=False)
    out = modulated_linear(x, weight, style, bias)
    for sample, point, channel in product(range(4), repeat=3):
        alone = (weight[channel] * style[sample] * x[sample, point]).sum() + bias[channel]
        torch.testing.assert_close(out[sample, point, channel], alone)


def test_each_sample_has_its_own_style() -> None:
    x, weight, style, bias = layer(3, 4, 5, 6, shared=True)
    out = modulated_linear(x, weight, style, bias)
    style[1] += 1
    changed = (modulated_linear(x, weight, style, bias) != out).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("outputs", [2, 9])
def test_shared_points_are_the_same_as_points_repeated(outputs: int) -> None:
    x, weight, style, bias = layer(4, 5, 3, outputs, shared=True)
    repeated = x.repeat(4, 1, 1)
    for points in (repeated, x.expand(4, 5, 3)):
        torch.testing.assert_close(
            modulated_linear(x, weight, style, bias, demodulate=True),
            modulated_linear(points, weight, style, bias, demodulate=True),
        )


@pytest.mark.parametrize("sizes", [(0, 4, 3, 2), (2, 0, 3, 2), (2, 4, 0, 2), (2, 4, 3, 0), (0, 0, 3, 2)])
@pytest.mark.parametrize("shared", [False, True])
def test_empty(sizes: tuple[int, int, int, int], shared: bool) -> None:
    batch, points, _, outputs = sizes
    tensors = [tensor.requires_grad_() for tensor in layer(*sizes, shared=shared)]
    out = modulated_linear(*tensors, activation="sine", demodulate=True)
    assert out.shape == (batch, points, outputs)
    torch.testing.assert_close(out, torch.sin(30 * tensors[3]).expand_as(out) if sizes[2] == 0 else out)
    out.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


def test_strides_do_not_matter() -> None:
    x, weight, style, bias = layer(2, 4, 3, 5, shared=False)
    expected = by_grouped_convolution(x, weight, style, bias, demodulate=True)
    strided = [tensor.mT.contiguous().mT for tensor in (x, weight, style)] + [bias.repeat_interleave(2)[::2]]
    torch.testing.assert_close(modulated_linear(*strided, demodulate=True), expected)
    one = style[:1].expand(2, 3)
    torch.testing.assert_close(modulated_linear(x, weight, one), by_grouped_convolution(x, weight, one.clone()))


def stack(
    depth: int, *, shared: bool, widths: tuple[int, ...] = (3, 5, 4, 6, 2)
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    batch, points, sizes = 3, 4, widths[: depth + 1]
    x = random(points, sizes[0]) if shared else random(batch, points, sizes[0])
    weights = [random(b, a) for a, b in pairwise(sizes)]
    return x, weights, [random(batch, a) for a in sizes[:-1]], [random(b) for b in sizes[1:]]


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("final_activation", [None, "sine"])
def test_siren_is_a_stack_with_a_sine_after_all_layers_but_the_last(
    depth: int, shared: bool, demodulate: bool, final_activation: str | None
) -> None:
    x, weights, styles, biases = stack(depth, shared=shared)
    expected = x
    for index, (weight, style, bias) in enumerate(zip(weights, styles, biases, strict=True)):
        expected = by_grouped_convolution(expected, weight, style, bias, demodulate=demodulate)
        if index < depth - 1 or final_activation == "sine":
            expected = torch.sin(1.5 * expected)
    options: dict[str, Any] = {"omega": 1.5, "demodulate": demodulate, "final_activation": final_activation}
    torch.testing.assert_close(modulated_siren(x, weights, styles, biases, **options), expected)


def test_siren_takes_biases_layer_by_layer_or_not_at_all() -> None:
    x, weights, styles, biases = stack(3, shared=True)
    zeros = [torch.zeros_like(bias) for bias in biases]
    torch.testing.assert_close(
        modulated_siren(x, weights, styles, omega=1.0), modulated_siren(x, weights, styles, zeros, omega=1.0)
    )
    torch.testing.assert_close(
        modulated_siren(x, weights, styles, [None, biases[1], None], omega=1.0),
        modulated_siren(x, weights, styles, [zeros[0], biases[1], zeros[2]], omega=1.0),
    )


def eager(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor, omega: float, demodulate: bool) -> Tensor:
    """What one writes without thought for precision: every step in the dtype of the inputs."""
    weights = weight * style.unsqueeze(1)
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum(-1, keepdim=True) + 1e-8)
    return torch.sin(omega * (x @ weights.mT + bias))


@pytest.mark.parametrize("omega", [1.0, 30.0])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("outputs", [8, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_as_accurate_as_the_dtype_allows(dtype: torch.dtype, outputs: int, demodulate: bool, omega: float) -> None:
    """Over several draws, at most twice as far from float64 as plain PyTorch in the same dtype."""
    errors = []
    for draw in range(4):
        torch.manual_seed(draw)
        parts = random(3, 16, 32), random(outputs, 32) / 32**0.5, random(3, 32), random(outputs)
        x, weight, style, bias = (part.to(dtype) for part in parts)
        exact = torch.sin(omega * by_grouped_convolution(x, weight, style, bias, demodulate=demodulate))
        actual = modulated_linear(x, weight, style, bias, activation="sine", omega=omega, demodulate=demodulate)
        plain = eager(x, weight, style, bias, omega, demodulate)
        errors.append(((actual.double() - exact).norm(), (plain.double() - exact).norm(), exact.norm()))
    error, allowed, size = (torch.stack(part).norm() for part in zip(*errors, strict=True))
    assert error <= 2 * allowed + torch.finfo(dtype).eps * size


def test_the_argument_of_the_sine_is_kept_in_float32() -> None:
    """Rounded to bfloat16, an argument of 30 radians would be off by up to a tenth."""
    x, weight, style = (part.bfloat16() for part in (random(2, 16, 32), random(32, 32) / 32**0.5, random(2, 32)))
    exact = torch.sin(30 * by_grouped_convolution(x, weight, style))
    error = (modulated_linear(x, weight, style, activation="sine").double() - exact).abs().max()
    assert error < 2**-8, "half a bfloat16 step below 1, and float32's error in the argument"
