"""What the kernels compute and their gradients, as accurate as plain PyTorch in the same dtype, at ragged sizes.

On a GPU if there is one, else in Triton's interpreter. Memory that nobody wrote is NaN (`tests/conftest.py`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv1d

from tests.vitgan_kernels.conftest import AsAccurate
from vitgan_kernels import modulated_linear, modulated_siren
from vitgan_kernels.modulated_siren import plan

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OMEGA = 1.5
Parts = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def network(batch: int, points: int, widths: Sequence[int], *, shared: bool, dtype: torch.dtype = FP32) -> Parts:
    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=DEVICE)

    x = random(points, widths[0]) if shared else random(batch, points, widths[0])
    weights = [(random(o, i) / i**0.5).to(dtype) for i, o in pairwise(widths)]
    styles = [random(batch, i).to(dtype) for i in widths[:-1]]
    return x.to(dtype), weights, styles, [random(o).to(dtype) for o in widths[1:]]


def by_grouped_convolution(
    x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None = None, *, demodulate: bool = False
) -> Tensor:
    """A layer as others write it: a weight for each sample, as groups of a convolution."""
    batch, outputs = style.shape[0], weight.shape[0]
    weights = weight * style.unsqueeze(1)
    if demodulate:
        weights = weights * torch.rsqrt(weights.square().sum(-1, keepdim=True) + 1e-8)
    signal = x.expand(batch, *x.shape[-2:]).mT.reshape(1, -1, x.shape[-2])
    out = conv1d(signal, weights.reshape(batch * outputs, -1, 1), groups=batch).view(batch, outputs, -1).mT
    return out if bias is None else out + bias


def plain(
    x: Tensor, weights: list[Tensor], styles: list[Tensor], biases: list[Tensor], demodulate: bool, sine: bool
) -> Tensor:
    """What one writes without thought for precision, every step in the dtype of the inputs."""
    for index, (weight, style, bias) in enumerate(zip(weights, styles, biases, strict=True)):
        modulated = weight * style.unsqueeze(1)
        if demodulate:
            modulated = modulated * torch.rsqrt(modulated.square().sum(-1, keepdim=True) + 1e-8)
        x = x @ modulated.mT + bias
        if sine or index < len(weights) - 1:
            x = torch.sin(OMEGA * x)
    return x


def with_gradients(function: Any, parts: Parts, grad: Tensor, **options: Any) -> list[Tensor]:
    x, *lists = parts
    leaves = [x, *(part for layers in lists for part in layers)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    depth = len(lists[0])
    cut = [leaves[1 + start * depth : 1 + (start + 1) * depth] for start in range(3)]
    out = function(leaves[0], *cut, **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def check(parts: Parts, demodulate: bool, sine: bool, assert_as_accurate: AsAccurate) -> None:
    """The output and all gradients."""
    x, weights, styles, _ = parts
    grad = torch.randn(styles[0].shape[0], x.shape[-2], weights[-1].shape[0], device=DEVICE).to(x.dtype)
    options: dict[str, Any] = {"demodulate": demodulate}
    ours = with_gradients(
        modulated_siren,
        parts,
        grad,
        omega=OMEGA,
        final_activation="sine" if sine else None,
        backend="triton",
        **options,
    )
    theirs = with_gradients(plain, parts, grad, sine=sine, **options)
    exactly: Any = [x.double(), *([part.double() for part in layers] for layers in parts[1:])]
    exact = with_gradients(plain, exactly, grad.double(), sine=sine, **options)
    assert [result.shape for result in ours] == [result.shape for result in exact]
    assert_as_accurate(ours, theirs, exact)


# batch, points, widths from x to the output
LAYERS = [(3, 5, [7, 9]), (2, 63, [33, 65]), (5, 36, [65, 17]), (70, 2, [16, 3]), (1, 130, [31, 129])]
NETWORKS = [
    (3, 17, [6, 40, 3]),  # one hidden layer and a head: one kernel
    (2, 65, [20, 130, 16]),
    (3, 16, [33, 65, 70, 3]),  # two: one kernel
    (2, 7, [5, 20, 140, 1]),
    (2, 9, [6, 8, 17]),  # too many outputs: layer by layer
    (2, 5, [4, 6, 7, 8, 3]),  # too deep
]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", LAYERS, ids=str)
def test_layers(
    sizes: tuple[int, int, list[int]], shared: bool, dtype: torch.dtype, assert_as_accurate: AsAccurate
) -> None:
    for sine in (True, False):
        check(network(*sizes, shared=shared, dtype=dtype), sine == shared, sine, assert_as_accurate)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("sizes", NETWORKS, ids=str)
def test_networks(
    sizes: tuple[int, int, list[int]], demodulate: bool, dtype: torch.dtype, assert_as_accurate: AsAccurate
) -> None:
    parts = network(*sizes, shared=not demodulate, dtype=dtype)
    check(parts, demodulate, False, assert_as_accurate)
    if dtype == BF16:
        check(network(*sizes, shared=demodulate, dtype=dtype), demodulate, True, assert_as_accurate)


@pytest.mark.parametrize("widths", [[9, 40, 3], [9, 40, 33, 3]], ids=str)
def test_float32_networks_are_one_kernel_with_tf32(widths: list[int], assert_as_accurate: AsAccurate) -> None:
    assert plan.obstacle_to_fusion("ieee", widths) is not None
    assert plan.obstacle_to_fusion("tf32", widths) is None
    parts = network(3, 10, widths, shared=True)
    # The interpreter computes in float32 either way, and CPU PyTorch has no TF32 to hold the kernels against.
    with float32_products("ieee" if DEVICE == "cpu" else "tf32"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "kind_of", lambda dtype: "tf32")
        check(parts, False, False, assert_as_accurate)


def test_second_layers_wider_than_the_registers_of_64_rows(assert_as_accurate: AsAccurate) -> None:
    check(network(3, 16, [16, 32, 400, 3], shared=True, dtype=BF16), False, False, assert_as_accurate)


def test_samples_go_in_groups_when_they_are_many(
    monkeypatch: pytest.MonkeyPatch, assert_as_accurate: AsAccurate
) -> None:
    monkeypatch.setattr(plan, "WORKSPACE", 2000)
    assert plan.samples_at_a_time(7, 1000) == 2
    for shared in (False, True):
        check(network(7, 5, [4, 10, 9, 18], shared=shared, dtype=FP16), True, False, assert_as_accurate)
        check(network(7, 5, [4, 10, 9, 2], shared=shared, dtype=FP16), False, False, assert_as_accurate)


@given(
    batch=st.integers(1, 9),
    points=st.integers(1, 70),
    widths=st.lists(st.integers(1, 36), min_size=2, max_size=4),
    shared=st.booleans(),
    demodulate=st.booleans(),
    sine=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25)
def test_any_shape(
    batch: int, points: int, widths: list[int], shared: bool, demodulate: bool, sine: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    parts = network(batch, points, widths, shared=shared)
    x, weights, styles, biases = parts
    expected = x.double()
    for index, (weight, style, bias) in enumerate(zip(weights, styles, biases, strict=True)):
        expected = by_grouped_convolution(
            expected, weight.double(), style.double(), bias.double(), demodulate=demodulate
        )
        if sine or index < len(weights) - 1:
            expected = torch.sin(OMEGA * expected)
    with pytest.MonkeyPatch.context() as patch:
        if seed % 2 and DEVICE == "cpu":  # the interpreter computes in float32 either way
            patch.setattr(plan, "kind_of", lambda dtype: "tf32")
        actual = modulated_siren(
            *parts, omega=OMEGA, demodulate=demodulate, final_activation="sine" if sine else None, backend="triton"
        )
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_is_a_weight_for_each_sample(shared: bool) -> None:
    x, [weight], [style], [bias] = network(3, 20, [12, 30], shared=shared)
    expected = torch.einsum("bpi,boi->bpo", x.expand(3, 20, 12), torch.einsum("oi,bi->boi", weight, style)) + bias
    torch.testing.assert_close(modulated_linear(x, weight, style, bias, backend="triton"), expected)
    torch.testing.assert_close(by_grouped_convolution(x, weight, style, bias), expected)
    without = modulated_linear(x, weight, style, backend="triton")
    torch.testing.assert_close(without + bias, expected)


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("widths", [[48, 40], [48, 40, 3], [48, 40, 40, 3]], ids=str)
def test_bfloat16_is_more_accurate_than_eager(widths: list[int], demodulate: bool) -> None:
    """The argument of the sine stays in float32; eager PyTorch rounds it to 8 bits, which at omega = 30 is a lot."""
    x, weights, styles, biases = network(4, 33, widths, shared=True, dtype=BF16)
    weights[0] = weights[0] / 4  # arguments of up to some 30 radians: the sine still means something
    sine = "sine" if len(widths) == 2 else None
    ours = modulated_siren(
        x, weights, styles, biases, omega=6.0, demodulate=demodulate, final_activation=sine, backend="triton"
    )

    def at_omega_6(*parts: Any) -> Tensor:
        y, *layers = parts
        for index, (weight, style, bias) in enumerate(zip(*layers, strict=True)):
            y = by_grouped_convolution(y, weight, style, bias, demodulate=demodulate)
            y = torch.sin(6.0 * y) if sine or index < len(weights) - 1 else y
        return y

    eager = at_omega_6(x, weights, styles, biases)
    exact = at_omega_6(x.double(), *([part.double() for part in layers] for layers in (weights, styles, biases)))
    our_error, eager_error = ((result.double() - exact).square().mean().sqrt() for result in (ours, eager))
    assert our_error < 0.75 * eager_error


def test_strides_do_not_matter() -> None:
    x, [weight], [style], [bias] = network(3, 20, [12, 30], shared=False)
    strided = [tensor.mT.contiguous().mT for tensor in (x, weight, style)]
    strided.append(bias.repeat_interleave(2)[::2])
    expected = modulated_linear(x, weight, style, bias, backend="triton")
    torch.testing.assert_close(modulated_linear(*strided, backend="triton"), expected, rtol=0, atol=0)
    everywhere = style[:1].expand(3, 12)
    torch.testing.assert_close(
        modulated_linear(x, weight, everywhere, backend="triton"),
        modulated_linear(x, weight, everywhere.contiguous(), backend="triton"),
        rtol=0,
        atol=0,
    )


def test_results_repeat_bit_for_bit() -> None:
    parts = network(40, 9, [10, 40, 30, 3], shared=True, dtype=BF16)
    grad = torch.randn(40, 9, 3, device=DEVICE)
    first, second = (with_gradients(modulated_siren, parts, grad, backend="triton") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
