"""The derivatives of the modulated layers, to third order, in reverse and forward mode, and under torch.func."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from vitgan_kernels import modulated_linear, modulated_siren

# PyTorch's own forward mode compiles its formulas with torch.jit when it is first used.
# (batch, points, in, out): few outputs, as many as points, and many, each of which multiplies in another order
SIZES = [(2, 3, 2, 2), (1, 2, 3, 3), (3, 1, 2, 2), (1, 1, 1, 1)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"demodulate": True, "eps": 0.1},
    {"activation": "sine", "omega": 1.3},
    {"activation": "sine", "omega": 1.3, "demodulate": True},
]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def layer(sizes: tuple[int, int, int, int], *, shared: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, points, inputs, outputs = sizes
    x = leaf(points, inputs) if shared else leaf(batch, points, inputs)
    return x, leaf(outputs, inputs), leaf(batch, inputs), leaf(outputs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_first_and_second_order(sizes: tuple[int, int, int, int], shared: bool, options: dict[str, Any]) -> None:
    tensors = layer(sizes, shared=shared)

    def call(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, **options)

    assert gradcheck(call, tensors, check_forward_ad=True)
    assert gradgradcheck(call, tensors)


@pytest.mark.parametrize("shared", [False, True])
def test_batched_gradients_and_forward_over_reverse(shared: bool) -> None:
    tensors = layer(SIZES[0], shared=shared)

    def call(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, activation="sine", omega=1.3, demodulate=True)

    assert gradcheck(call, tensors, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, tensors, check_fwd_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("demodulate", [False, True])
def test_siren(demodulate: bool) -> None:
    def call(x: Tensor, *parts: Tensor) -> Tensor:
        weights, styles, biases = parts[:2], parts[2:4], parts[4:]
        return modulated_siren(x, weights, styles, biases, omega=1.3, demodulate=demodulate)

    weights, styles, biases = (leaf(3, 2), leaf(4, 3)), (leaf(2, 2), leaf(2, 3)), (leaf(3), leaf(4))
    tensors = (leaf(3, 2), *weights, *styles, *biases)
    assert gradcheck(call, tensors, check_forward_ad=True)
    assert gradgradcheck(call, tensors)


def test_a_style_of_zero_is_no_special_point() -> None:
    x, weight, _, bias = layer(SIZES[0], shared=False)
    style = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)

    def call(style: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, demodulate=True, eps=0.1)

    assert gradcheck(call, style)
    assert gradgradcheck(call, style)


def test_third_order() -> None:
    tensors = layer((2, 3, 2, 2), shared=False)

    def second_order(*tensors: Tensor) -> Tensor:
        out = modulated_linear(*tensors, activation="sine", omega=1.3, demodulate=True, eps=0.1)
        first = torch.autograd.grad(out.pow(3).sum(), tensors, create_graph=True)
        squares = torch.stack([gradient.square().sum() for gradient in first]).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(squares, tensors, create_graph=True)])

    assert gradcheck(second_order, tensors)


@pytest.mark.parametrize("needed", ["x", "weight", "style", "bias", "x bias", "weight style"])
@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_only_what_requires_a_gradient_gets_one(sizes: tuple[int, int, int, int], needed: str) -> None:
    tensors = layer(sizes, shared=False)
    options: dict[str, Any] = {"activation": "sine", "demodulate": True}
    full = torch.autograd.grad(modulated_linear(*tensors, **options).pow(3).sum(), tensors)
    names = ("x", "weight", "style", "bias")
    some = [x.detach().requires_grad_(name in needed.split()) for name, x in zip(names, tensors, strict=True)]
    modulated_linear(*some, **options).pow(3).sum().backward()
    for name, x, expected in zip(names, some, full, strict=True):
        if name in needed.split():
            torch.testing.assert_close(x.grad, expected)
        else:
            assert x.grad is None


@pytest.mark.parametrize("shared", [False, True])
def test_tangents_are_not_dropped(shared: bool) -> None:
    """A registered operator under forward mode can return a tangent of zero and no error."""
    primals = tuple(x.detach() for x in layer(SIZES[0], shared=shared))
    tangents = tuple(torch.randn_like(x) for x in primals)

    def call(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, activation="sine", omega=1.3, demodulate=True)

    step = 1e-6
    ahead, behind = (call(*(x + s * t for x, t in zip(primals, tangents, strict=True))) for s in (step, -step))
    expected = (ahead - behind) / (2 * step)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.func.jvp(call, primals, tangents)[1], expected, rtol=1e-6, atol=1e-8)
    with dual_level():
        x, weight, style, bias = (make_dual(p, t) for p, t in zip(primals, tangents, strict=True))
        torch.testing.assert_close(unpack_dual(call(x, weight, style, bias)).tangent, expected, rtol=1e-6, atol=1e-8)


def test_torch_func_agrees_with_autograd() -> None:
    tensors = layer(SIZES[0], shared=True)

    def loss(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, activation="sine", demodulate=True).square().sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    primals = tuple(tensor.detach() for tensor in tensors)
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1, 2, 3))(*primals), expected)


@pytest.mark.parametrize("sizes", SIZES[:3], ids=str)
def test_vmap_is_a_loop(sizes: tuple[int, int, int, int]) -> None:
    x, weight, style, bias = (torch.stack([one, -2 * one]).detach() for one in layer(sizes, shared=True))

    def call(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        return modulated_linear(x, weight, style, bias, demodulate=True)

    expected = torch.stack([call(*one) for one in zip(x, weight, style, bias, strict=True)])
    torch.testing.assert_close(torch.vmap(call)(x, weight, style, bias), expected)
    one_style = torch.vmap(call, in_dims=(None, None, 0, None))(x[0], weight[0], style, bias[0])
    expected = torch.stack([call(x[0], weight[0], one, bias[0]) for one in style])
    torch.testing.assert_close(one_style, expected)
