"""The C++ kernels: their numbers held to float64, their bits, what is not finite, and their place in torch.compile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck

from vitgan_kernels import explain, modulated_linear, modulated_siren, native_support

if not native_support.available()[0]:
    pytest.skip(native_support.available()[1], allow_module_level=True)

OPS = torch.ops.vitgan_kernels
# (batch, points, widths): narrow and wide layers, ragged ones, one row, one column, samples of many parts, few outputs
NETWORKS = [
    (5, 7, [33, 65, 3]),
    (3, 20, [40, 40, 17, 5]),
    (1, 1, [16, 16]),
    (7, 1, [2, 1, 2]),
    (2, 300, [31, 3]),
    (40, 16, [32, 32, 3]),
    (9, 130, [8, 48, 20]),
]
OPTIONS: list[dict[str, Any]] = [{}, {"demodulate": True}, {"final_activation": "sine"}]


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


def network(sizes: tuple[int, int, list[int]], *, shared: bool, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weights, styles, biases, with gradients."""
    batch, points, widths = sizes
    x = torch.randn(points, widths[0]) if shared else torch.randn(batch, points, widths[0])
    weights = [torch.randn(o, i) / i**0.5 for i, o in pairwise(widths)]
    styles = [1 + 0.3 * torch.randn(batch, i) for i in widths[:-1]]
    return [t.to(dtype).requires_grad_() for t in (x, *weights, *styles, *(torch.randn(o) for o in widths[1:]))]


def call(tensors: list[Tensor], backend: str | None = "cpp", **options: Any) -> Tensor:
    depth = len(tensors) // 3
    weights, styles, biases = (tensors[1 + i * depth : 1 + (i + 1) * depth] for i in range(3))
    return modulated_siren(tensors[0], weights, styles, biases, omega=1.5, backend=backend, **options)


def values(tensors: list[Tensor], cotangent: Tensor, backend: str | None = "cpp", **options: Any) -> list[Tensor]:
    """The output and the gradients of all tensors."""
    out = call(tensors, backend, **options)
    return [out.detach(), *torch.autograd.grad(out, tensors, cotangent)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", NETWORKS, ids=str)
def test_errors(sizes: tuple[int, int, list[int]], dtype: torch.dtype, shared: bool, options: dict[str, Any]) -> None:
    """Over several draws, at most twice those of the reference in the same dtype, and a few roundings of the values."""
    errors: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for draw in range(4):
        torch.manual_seed(draw)
        tensors = network(sizes, shared=shared, dtype=dtype)
        cotangent = torch.randn(sizes[0], sizes[1], sizes[2][-1]).to(dtype)
        exact = values(
            [t.detach().double().requires_grad_() for t in tensors], cotangent.double(), "reference", **options
        )
        plain = values(tensors, cotangent, "reference", **options)
        both = zip(values(tensors, cotangent, **options), plain, exact, strict=True)
        errors.append([((a.double() - e).norm(), (r.double() - e).norm(), e.norm()) for a, r, e in both])
    for of_one in zip(*errors, strict=True):
        actual, allowed, size = (torch.stack(part).norm() for part in zip(*of_one, strict=True))
        # a sum of n numbers of random signs rounds to about n^(1/2) of their roundings
        assert actual <= 2 * allowed + 4 * torch.finfo(dtype).eps * size, f"{actual:.1e}, {allowed:.1e} of {size:.1e}"


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_every_level_that_this_machine_has(level: str) -> None:
    levels = native_support.build_info()["levels"].split()
    own = native_support.load().cpu_level()
    if level not in levels[: levels.index(own)]:
        pytest.skip(f"built: {levels}, here: {own}")
    chosen = ["-k", "test_errors or sine or finite", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "VITGAN_CPU_LEVEL": level}
    done = subprocess.run([sys.executable, "-m", "pytest", *chosen], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(48, 40, [33, 64, 3]), (3, 1100, [20, 24])], ids=str)
def test_bits_do_not_depend_on_threads(
    sizes: tuple[int, int, list[int]], dtype: torch.dtype, options: dict[str, Any], threads: None
) -> None:
    tensors = network(sizes, shared=True, dtype=dtype)
    cotangent = torch.randn(sizes[0], sizes[1], sizes[2][-1]).to(dtype)
    expected = values(tensors, cotangent, **options)
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        assert all(map(torch.equal, values(tensors, cotangent, **options), expected)), f"{count} threads"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sizes", [(13, 9, [33, 64, 3]), (3, 250, [20, 24])], ids=str)
def test_a_sample_has_the_same_bits_in_any_batch(
    sizes: tuple[int, int, list[int]], dtype: torch.dtype, options: dict[str, Any]
) -> None:
    tensors = network(sizes, shared=False, dtype=dtype)
    depth = len(tensors) // 3
    own = [0, *range(1 + depth, 1 + 2 * depth)]  # x and the styles are a sample's own, and so are their gradients
    cotangent = torch.randn(sizes[0], sizes[1], sizes[2][-1]).to(dtype)
    whole = values(tensors, cotangent, **options)
    for first, last in ((0, 1), (1, 3), (2, sizes[0])):
        some = [t[first:last].detach().requires_grad_() if i in own else t for i, t in enumerate(tensors)]
        part = values(some, cotangent[first:last], **options)
        for index in (0, *(i + 1 for i in own)):
            assert torch.equal(part[index], whole[index][first:last])


def test_strides_and_broadcasts() -> None:
    tensors = network((4, 6, [10, 12, 3]), shared=False)
    cotangent = torch.randn(4, 6, 3)
    expected = values(tensors, cotangent)
    strided = [t.detach().mT.contiguous().mT.requires_grad_() if t.ndim > 1 else t for t in tensors]
    assert all(map(torch.equal, values(strided, cotangent.mT.contiguous().mT), expected))
    one = torch.ones(()).expand(4, 6, 3)
    assert torch.equal(values(tensors, one)[2], values(tensors, one.contiguous())[2])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("index", range(8))
def test_what_is_not_finite_comes_out_where_pytorch_has_it(index: int, options: dict[str, Any], bad: float) -> None:
    """In each tensor, and as the last one in the gradient of the output."""
    tensors = network((3, 5, [6, 18, 3]), shared=False)
    cotangent = torch.randn(3, 5, 3)
    with torch.no_grad():
        [*tensors, cotangent][index].view(-1)[1] = bad
    for actual, expected in zip(
        values(tensors, cotangent, **options), values(tensors, cotangent, "reference", **options), strict=True
    ):
        assert torch.equal(actual.isfinite(), expected.isfinite())


def units_in_the_last_place(actual: Tensor, exact: Tensor) -> float:
    spacing = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()
    return ((actual.double() - exact) / spacing.double()).abs().max().item()


@pytest.mark.parametrize("limit", [1.0, 100.0, 1e4, 1e6, 1e30])
def test_sine_and_cosine(limit: float) -> None:
    z = (torch.rand(4096, 16) * 2 - 1) * limit
    if limit <= 1e4:  # where the reduction cancels most: next to the multiples of pi/2
        nearest = (
            (torch.arange(64 * 16, dtype=torch.float64) * int(limit / 1000 + 1) * torch.pi / 2).float().view(-1, 16)
        )
        z = torch.cat([z, nearest, torch.nextafter(nearest, torch.tensor(torch.inf))])
    z.requires_grad_()
    sine = modulated_linear(z, torch.eye(16), torch.ones(1, 16), activation="sine", omega=1.0, backend="cpp")[0]
    (cosine,) = torch.autograd.grad(sine.sum(), z)
    exact = z.detach().double()
    assert units_in_the_last_place(sine.detach(), exact.sin()) < 2
    assert units_in_the_last_place(cosine, exact.cos()) < 2


@pytest.mark.parametrize("demodulate", [False, True])
def test_styles_whose_squares_overflow(demodulate: bool) -> None:
    x, weight, style = torch.randn(2, 4, 8), torch.randn(5, 8), torch.randn(2, 8)
    small, large = (
        modulated_linear(x, weight, style * size, demodulate=demodulate, eps=0.0, backend="cpp")
        for size in (1, 2.0**83)
    )
    torch.testing.assert_close(large if demodulate else large / 2.0**83, small)


def derivative(order: int, tensors: list[Tensor], backend: str, **options: Any) -> tuple[Tensor, ...]:
    """The gradient of a penalty on the gradient of a penalty on ..."""
    value = call(tensors, backend, **options).square().mean()
    for _ in range(order - 1):
        gradients = torch.autograd.grad(value, tensors, create_graph=True)
        value = torch.stack([gradient.square().mean() for gradient in gradients]).sum()
    return torch.autograd.grad(value, tensors, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("order", [2, 3])
def test_higher_orders(order: int, options: dict[str, Any]) -> None:
    tensors = network((3, 4, [6, 8, 3]), shared=True)
    actual, expected = (derivative(order, tensors, backend, **options) for backend in ("cpp", "reference"))
    scale = max(gradient.abs().max() for gradient in expected)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one / scale, other / scale, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (4, 6), (5,)], ids=str)
def test_only_what_requires_a_gradient_gets_one(needed: tuple[int, ...]) -> None:
    tensors = network((3, 4, [6, 8, 3]), shared=True)
    full = torch.autograd.grad(call(tensors, demodulate=True).square().sum(), tensors)
    some = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    call(some, demodulate=True).square().sum().backward()
    for index, tensor in enumerate(some):
        assert tensor.grad is None if index not in needed else torch.equal(tensor.grad, full[index])  # type: ignore[arg-type]


def test_batched_gradients() -> None:
    tensors = network((3, 4, [6, 8, 3]), shared=True)
    out, cotangents = call(tensors, demodulate=True), torch.randn(2, 3, 4, 3)
    batched = torch.autograd.grad(out, tensors, cotangents, is_grads_batched=True, retain_graph=True)
    for index, cotangent in enumerate(cotangents):
        one = torch.autograd.grad(out, tensors, cotangent, retain_graph=True)
        torch.testing.assert_close([b[index] for b in batched], list(one), rtol=1e-4, atol=1e-5)


def test_registered_operators() -> None:
    """They compute the products again, to the same bits."""
    tensors = network((3, 20, [6, 8, 3]), shared=True)
    x, *parts = tensors
    stack: Any = (x, parts[:2], parts[2:4], [], parts[4:], 1.5, False)
    cotangent = torch.randn(3, 20, 3)
    out = OPS.modulated_siren_cpp(*stack)
    assert all(map(torch.equal, [out, *torch.autograd.grad(out, tensors, cotangent)], values(tensors, cotangent)))
    opcheck(OPS.modulated_siren_cpp, stack)
    opcheck(OPS.modulated_siren_cpp_backward, (cotangent, *stack, [True, True, True]))


@pytest.mark.parametrize("dynamic", [None, True, False])
def test_compiles_as_one_graph_with_an_omega_that_changes(dynamic: bool | None) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    x, weight, style, bias = network((3, 4, [6, 8]), shared=True)

    def function(weight: Tensor, omega: float) -> Tensor:
        return modulated_linear(x, weight, style, bias, activation="sine", omega=omega, demodulate=True)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    for omega in (1.0, 1.25, 1.5, 1.75):
        torch.testing.assert_close(compiled(weight, omega), function(weight, omega), rtol=1e-4, atol=1e-5)
    if dynamic is not False:  # which asks for one graph a value
        assert counter.frame_count <= 2


def test_explain_says_what_runs() -> None:
    x, weight, style, _ = network((3, 4, [6, 8]), shared=True)
    assert explain("modulated_linear", x, weight, style).startswith("modulated_linear: cpp runs")
    text = explain("modulated_linear", x.double(), weight.double(), style.double())
    assert text.startswith("modulated_linear: reference runs")
    assert "the kernels take float32, bfloat16, not float64" in text
