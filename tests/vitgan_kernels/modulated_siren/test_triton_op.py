"""The fused operators in PyTorch: derivatives of every order, torch.func, torch.compile, autocast, explain."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.library import opcheck

from vitgan_kernels import explain, modulated_linear, modulated_siren
from vitgan_kernels.backends import BackendError

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WIDTHS = [(6, 8), (6, 8, 3), (6, 8, 7, 3)]
OPS = torch.ops.vitgan_kernels
# PyTorch's own forward mode compiles its formulas with torch.jit when it is first used.


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, requires_grad=True)


def leaves_of(widths: tuple[int, ...], *, batch: int = 4, points: int = 5, shared: bool = True) -> list[Tensor]:
    """x, weights, styles, biases."""
    x = leaf(points, widths[0]) if shared else leaf(batch, points, widths[0])
    weights = [(leaf(o, i) / i**0.5).detach().requires_grad_() for i, o in pairwise(widths)]
    return [x, *weights, *(leaf(batch, i) for i in widths[:-1]), *(leaf(o) for o in widths[1:])]


def call(leaves: list[Tensor], backend: str | None, **options: Any) -> Tensor:
    depth = (len(leaves) - 1) // 3
    weights, styles, biases = (leaves[1 + i * depth : 1 + (i + 1) * depth] for i in range(3))
    return modulated_siren(leaves[0], weights, styles, biases, omega=1.3, backend=backend, **options)


def derivative(order: int, leaves: list[Tensor], backend: str, **options: Any) -> tuple[Tensor, ...]:
    """The gradient of a penalty on the gradient of a penalty on ..."""
    value = call(leaves, backend, **options).square().mean()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, leaves, create_graph=True)
        value = torch.stack([gradient.square().mean() for gradient in gradients]).sum()
    return torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("final_activation", [None, "sine"])
@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("widths", [*WIDTHS, (1, 1, 1)], ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_derivatives_are_those_of_the_reference(
    order: int, widths: tuple[int, ...], demodulate: bool, final_activation: str | None
) -> None:
    leaves = leaves_of(widths, shared=not demodulate)
    options: dict[str, Any] = {"demodulate": demodulate, "final_activation": final_activation}
    actual, expected = (derivative(order, leaves, backend, **options) for backend in ("triton", "reference"))
    scale = max(gradient.abs().max() for gradient in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one / scale, other / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (4, 6), (5,), (1, 2, 5, 6)], ids=str)
def test_only_what_requires_a_gradient_gets_one(needed: tuple[int, ...]) -> None:
    leaves = leaves_of((6, 8, 3))
    full = torch.autograd.grad(call(leaves, "triton").square().sum(), leaves)
    some = [leaf.detach().requires_grad_(index in needed) for index, leaf in enumerate(leaves)]
    call(some, "triton").square().sum().backward()
    for index, leaf_ in enumerate(some):
        if index in needed:
            torch.testing.assert_close(leaf_.grad, full[index])
        else:
            assert leaf_.grad is None


def test_biases_may_be_missing_in_some_layers() -> None:
    x, *rest = leaves_of((6, 8, 3))
    weights, styles = rest[:2], rest[2:4]
    biases = [None, rest[5]]
    results = []
    for backend in ("triton", "reference"):
        out = modulated_siren(x, weights, styles, biases, omega=1.3, backend=backend)
        results.append(torch.autograd.grad(out.sum(), [*weights, rest[5]]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_batched_gradients() -> None:
    leaves = leaves_of((6, 8, 3))
    results = []
    vectors = torch.randn(3, 4, 5, 3, device=DEVICE)
    for backend in ("triton", "reference"):
        out = call(leaves, backend, demodulate=True)
        results.append(torch.autograd.grad(out, leaves, vectors, is_grads_batched=True))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", ["jacobian", "hessian"])
def test_vectorised_derivatives(function: str) -> None:
    """PyTorch vectorises them by tensors with a hidden dimension of their own, which are not those of torch.func."""
    leaves = [leaf_.detach() for leaf_ in leaves_of((6, 8, 3), batch=2, points=3)]
    results = []
    for backend in ("triton", "reference"):

        def loss(*leaves: Tensor, backend: str = backend) -> Tensor:
            out = call(list(leaves), backend)
            return out.square().mean() if function == "hessian" else out

        results.append(getattr(torch.autograd.functional, function)(loss, tuple(leaves), vectorize=True))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_forward_mode_is_the_references() -> None:
    leaves = [leaf_.detach() for leaf_ in leaves_of((6, 8, 3))]
    tangents = [torch.randn_like(leaf_) for leaf_ in leaves]

    def automatic(*leaves: Tensor) -> Tensor:
        return call(list(leaves), None, demodulate=True)

    tangent = torch.func.jvp(automatic, tuple(leaves), tuple(tangents))[1]
    ahead, behind = (
        call([p.double() + s * t.double() for p, t in zip(leaves, tangents, strict=True)], "reference", demodulate=True)
        for s in (1e-4, -1e-4)
    )
    torch.testing.assert_close(tangent.double(), (ahead - behind) / 2e-4, rtol=1e-4, atol=1e-4)
    assert tangent.abs().max() > 0.1


def test_forced_kernels_refuse_forward_mode_and_torch_func() -> None:
    leaves = [leaf_.detach() for leaf_ in leaves_of((6, 8))]
    with dual_level(), pytest.raises(BackendError, match="forward-mode differentiation is active"):
        call([make_dual(leaves[0], torch.ones_like(leaves[0])), *leaves[1:]], "triton")
    with pytest.raises(BackendError, match=r"a torch.func transform is active"):
        torch.func.jvp(lambda x: call([x, *leaves[1:]], "triton"), (leaves[0],), (leaves[0],))
    with pytest.raises(BackendError, match=r"a torch.func transform is active"):
        torch.func.grad(lambda x: call([x, *leaves[1:]], "triton").sum())(leaves[0])


def test_forward_mode_that_begins_after_the_forward_pass() -> None:
    leaves = leaves_of((6, 8, 3))
    grad, tangent = torch.randn(4, 5, 3, device=DEVICE), torch.randn(4, 5, 3, device=DEVICE)
    out = call(leaves, "triton")
    expected = torch.autograd.grad(call(leaves, "reference"), leaves, tangent)  # gradients are linear in grad
    with dual_level():
        duals = torch.autograd.grad(out, leaves, make_dual(grad, tangent))
        actual = [unpack_dual(dual).tangent for dual in duals]
    torch.testing.assert_close(actual, list(expected), rtol=1e-4, atol=1e-4)


def operands(widths: tuple[int, ...], scaled: bool) -> tuple[Any, ...]:
    """Of the registered operator, small enough for opcheck's tolerances."""
    x, *rest = leaves_of(widths, batch=2, points=3)
    depth = len(widths) - 1
    scales = [torch.rand(2, o, device=DEVICE, requires_grad=True) for o in widths[1:]] if scaled else []
    return x, rest[:depth], rest[depth : 2 * depth], scales, rest[2 * depth :] if scaled else []


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("widths", WIDTHS[:2], ids=str)
def test_opcheck(widths: tuple[int, ...], scaled: bool) -> None:
    arguments = (*operands(widths, scaled), 0.8, scaled)
    opcheck(OPS.modulated_siren.default, arguments)


@pytest.mark.parametrize("needed", [[True, True, True], [False, True, False]], ids=str)
def test_opcheck_of_the_gradient(needed: list[bool]) -> None:
    grad = torch.randn(2, 3, 3, device=DEVICE, requires_grad=True)
    arguments = (grad, *operands((6, 8, 3), needed[0]), 0.8, False, needed)
    opcheck(OPS.modulated_siren_backward.default, arguments, rtol=1e-4, atol=1e-4)


@pytest.fixture
def tracing_autograd() -> Iterator[None]:
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


def test_compiles_as_one_graph_for_inference_and_training() -> None:
    leaves = leaves_of((6, 8, 3))

    def run(*leaves: Tensor) -> Tensor:
        return call(list(leaves), "triton", demodulate=True)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*leaves), run(*leaves))
    actual, expected = (torch.autograd.grad(function(*leaves).square().sum(), leaves) for function in (compiled, run))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tracing_autograd")
def test_a_gradient_penalty_compiles_as_one_graph() -> None:
    leaves = leaves_of((6, 8))

    def penalty(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Tensor:
        out = modulated_linear(x, weight, style, bias, activation="sine", omega=1.3, backend="triton")
        (gradient,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        return gradient.square().mean()

    compiled = torch.compile(penalty, backend="aot_eager", fullgraph=True)
    actual, expected = (torch.autograd.grad(function(*leaves), leaves[1:]) for function in (compiled, penalty))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_the_inputs_and_nothing_else(dtype: torch.dtype) -> None:
    leaves = leaves_of((6, 8, 3))
    expected = call([leaf_.to(dtype) for leaf_ in leaves], "triton", demodulate=True)
    with torch.autocast(DEVICE, dtype):
        out = call(leaves, "triton", demodulate=True)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    gradients = torch.autograd.grad(out.float().sum(), leaves)
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)


@pytest.mark.skipif(DEVICE == "cuda", reason="the kernels come first on a GPU")
def test_the_interpreter_serves_only_those_who_ask_for_it() -> None:
    leaves = leaves_of((6, 8, 3))
    x, weights, styles = leaves[0], leaves[1:3], leaves[3:5]
    assert not explain("modulated_siren", x, weights, styles).startswith("modulated_siren: triton runs")
    assert explain("modulated_siren", x, weights, styles, backend="triton").startswith("modulated_siren: triton runs")


@pytest.mark.parametrize(
    ("widths", "options", "words"),
    [
        ((6, 8, 3), {}, "the whole network in one kernel; backward, the last layer together with the one before it"),
        ((6, 8, 3), {"demodulate": True}, "the whole network in one kernel; backward, each layer by itself"),
        ((6, 8, 17), {}, "one kernel a layer, because it has 17 outputs and one kernel takes at most 16"),
        ((6, 8, 8, 8, 3), {}, "one kernel a layer, because it has 3 hidden layers and one kernel takes 1 or 2"),
        ((6, 8, 513, 3), {}, "its second layer has 513 features and registers hold 512"),
    ],
)
def test_explain_says_which_kernels_run(widths: tuple[int, ...], options: dict[str, Any], words: str) -> None:
    leaves = [leaf_.detach().bfloat16() for leaf_ in leaves_of(widths)]
    depth = len(widths) - 1
    parts = leaves[0], leaves[1 : 1 + depth], leaves[1 + depth : 1 + 2 * depth]
    explained = explain("modulated_siren", *parts, backend="triton", **options)
    assert words in explained
    assert "only the inputs are kept, and backward computes the rest again" in explained


def test_what_the_kernels_do_not_take() -> None:
    x, weight, style, _ = leaves_of((6, 8))
    with pytest.raises(BackendError, match="the kernels take float16, bfloat16 and float32, not float64"):
        modulated_linear(x.double(), weight.double(), style.double(), backend="triton")
    with pytest.raises(BackendError, match="there is nothing to compute: a tensor has no elements"):
        modulated_linear(x[:0], weight, style, backend="triton")
