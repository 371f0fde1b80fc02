"""The closed forms of the gradients, in float64, against PyTorch's own differentiation of the reference."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from vitgan_kernels.modulated_siren.closed_form import Stack, backward, demodulation, double_backward

OMEGA = 1.3
KINDS = [(True, True), (True, False), (False, True), (False, False)]


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def stack_of(widths: tuple[int, ...], *, shared: bool, scaled: bool, biased: bool) -> Stack:
    x = leaf(3, widths[0]) if shared else leaf(2, 3, widths[0])
    scales = [leaf(2, o) for o in widths[1:]] if scaled else []
    biases = [leaf(o) for o in widths[1:]] if biased else []
    return Stack(x, [leaf(o, i) for i, o in pairwise(widths)], [leaf(2, i) for i in widths[:-1]], scales, biases)


def parts_of(stack: Stack) -> list[Tensor]:
    return [stack.x, *stack.weights, *stack.styles, *stack.scales, *stack.biases]


def forward(stack: Stack, sine: bool) -> Tensor:
    y = stack.x
    for index, (weight, style, scale, bias) in enumerate(stack.layers()):
        y = torch.einsum("...pi,bi,oi->bpo" if y.ndim == 2 else "bpi,bi,oi->bpo", y, style, weight)
        y = y if scale is None else y * scale.unsqueeze(1)
        y = y if bias is None else y + bias
        y = torch.sin(OMEGA * y) if sine or index < len(stack.weights) - 1 else y
    return y


@pytest.mark.parametrize("sine", [False, True])
@pytest.mark.parametrize(("scaled", "biased"), KINDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("widths", [(2, 3), (2, 3, 2), (2, 1, 3, 2)], ids=str)
def test_first_and_second_order(widths: tuple[int, ...], shared: bool, scaled: bool, biased: bool, sine: bool) -> None:
    stack = stack_of(widths, shared=shared, scaled=scaled, biased=biased)
    parts, grad = parts_of(stack), leaf(2, 3, widths[-1])
    exact = torch.autograd.grad(forward(stack, sine), parts, grad, create_graph=True)
    torch.testing.assert_close(parts_of(backward(grad, stack, OMEGA, sine)), list(exact))

    cotangents = [torch.randn_like(part) for part in parts]
    exact_grad, *exact_parts = torch.autograd.grad(
        exact, [grad, *parts], cotangents, allow_unused=True, materialize_grads=True
    )
    rest = iter(cotangents)
    lists = [[next(rest) for _ in part] for part in ([0], stack.weights, stack.styles, stack.scales, stack.biases)]
    tangents = Stack(lists[0][0], lists[1], lists[2], lists[3], lists[4])
    dgrad, dparts = double_backward(tangents, grad, stack, OMEGA, sine)
    torch.testing.assert_close(dgrad, exact_grad)
    torch.testing.assert_close(parts_of(dparts), exact_parts)


@pytest.mark.parametrize("widths", [(2, 3), (2, 1, 3, 2)], ids=str)
def test_scales_that_are_the_demodulation(widths: tuple[int, ...]) -> None:
    stack, eps = stack_of(widths, shared=True, scaled=False, biased=True), 0.1
    parts, grad = parts_of(stack), leaf(2, 3, widths[-1])
    scales = [demodulation(w, s, eps) for w, s, *_ in stack.layers()]
    out = forward(Stack(stack.x, stack.weights, stack.styles, scales, stack.biases), True)
    exact = torch.autograd.grad(out, parts, grad, create_graph=True)
    torch.testing.assert_close(parts_of(backward(grad, stack, OMEGA, True, eps)), list(exact))

    cotangents = [torch.randn_like(part) for part in parts]
    exact_grad, *exact_parts = torch.autograd.grad(exact, [grad, *parts], cotangents)
    depth = len(stack.weights)
    weights, styles, biases = (cotangents[1 + i * depth : 1 + (i + 1) * depth] for i in range(3))
    tangents = Stack(cotangents[0], weights, styles, [], biases)
    dgrad, dparts = double_backward(tangents, grad, stack, OMEGA, True, eps)
    torch.testing.assert_close(dgrad, exact_grad)
    torch.testing.assert_close(parts_of(dparts), exact_parts)


def test_cotangents_may_be_missing() -> None:
    stack = stack_of((2, 3, 2), shared=True, scaled=True, biased=True)
    grad = leaf(2, 3, 2)
    first = torch.randn_like(stack.weights[0])
    none = [None, None]
    some = Stack(None, [first, None], none, none, none)
    lists = [[torch.zeros_like(p) for p in part] for part in (stack.weights, stack.styles, stack.scales, stack.biases)]
    zeros = Stack(torch.zeros_like(stack.x), [first, lists[0][1]], lists[1], lists[2], lists[3])
    expected, actual = (double_backward(cotangents, grad, stack, OMEGA, False) for cotangents in (zeros, some))
    torch.testing.assert_close([actual[0], *parts_of(actual[1])], [expected[0], *parts_of(expected[1])])


def test_third_order() -> None:
    stack = stack_of((2, 2, 1), shared=True, scaled=True, biased=True)
    none = [None, None]
    cotangents = Stack(torch.randn_like(stack.x), none, none, none, none)
    grad = leaf(2, 3, 1)

    def second_order(*parts: Tensor) -> tuple[Tensor, ...]:
        lists = [list(parts[1 + start : 3 + start]) for start in (0, 2, 4, 6)]
        dgrad, dparts = double_backward(
            cotangents, grad, Stack(parts[0], lists[0], lists[1], lists[2], lists[3]), OMEGA, True
        )
        return (dgrad, *parts_of(dparts))

    assert gradcheck(second_order, tuple(parts_of(stack)))
