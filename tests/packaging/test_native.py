"""The compiled extension: the power iteration, its errors, and what happens where it is missing."""

import importlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitgan_kernels.spectral_norm import native

DTYPES = [torch.float32, torch.float64]
MODULE = "vitgan_kernels._native"


@pytest.fixture(autouse=True)
def _built(request: pytest.FixtureRequest) -> None:
    ok, why = native.available()
    if not ok and "without_extension" not in request.fixturenames:
        assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", why
        pytest.skip(why)


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)


def make(rows: int, cols: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight, u, v = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((rows, cols), (rows,), (cols,))
    )
    return weight, u, v


def torch_power_iteration(
    weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    for _ in range(n_iterations):
        v = weight.T @ u
        v = v / v.norm().clamp_min(eps)
        u = weight @ v
        u = u / u.norm().clamp_min(eps)
    return u @ (weight @ v), u, v


def native_power_iteration(
    weight: Tensor, u: Tensor, v: Tensor, n_iterations: int, eps: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor]:
    u, v = u.clone(), v.clone()
    sigma = native.power_iteration(weight, u, v, n_iterations, eps)
    return sigma, u, v


shapes = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.just(1), st.integers(1, 300)),
    st.tuples(st.integers(1, 300), st.just(1)),
    st.sampled_from([(63, 65), (65, 63), (16, 16), (17, 15), (257, 4), (4, 257)]),
)
on_any_shape = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def exact_power_iteration(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int) -> list[np.ndarray]:
    """In long double, which float64 can be judged by too."""
    w, x, y = (tensor.numpy().astype(np.longdouble) for tensor in (weight, u, v))
    for _ in range(n_iterations):
        y = w.T @ x
        y = y / np.sqrt(y @ y)
        x = w @ y
        x = x / np.sqrt(x @ x)
    return [x @ (w @ y), x, y]


@on_any_shape
@given(shape=shapes, dtype=st.sampled_from(DTYPES), n_iterations=st.integers(0, 3), seed=st.integers(0, 9))
def test_is_as_exact_as_torch(shape: tuple[int, int], dtype: torch.dtype, n_iterations: int, seed: int) -> None:
    weight, u, v = make(*shape, dtype, seed)
    exact = exact_power_iteration(weight, u, v, n_iterations)
    ours = native_power_iteration(weight, u, v, n_iterations)
    theirs = torch_power_iteration(weight, u, v, n_iterations)
    for name, x, y, reference in zip(("sigma", "u", "v"), ours, theirs, exact, strict=True):
        assert x.dtype == dtype
        assert x.shape == reference.shape
        scale = 1.0
        if name == "sigma":  # |sigma| is at most this, and its rounding errors are of this size
            scale = (weight.norm() * (u.norm() * v.norm() if n_iterations == 0 else 1)).item()
        # the rounding of sums of so many terms, for the cases where PyTorch happens to be exact
        floor = 2 * torch.finfo(dtype).eps * math.sqrt(sum(shape)) * scale
        error, error_of_torch = (np.abs(result.numpy() - reference).max() for result in (x, y))
        assert error <= 2 * error_of_torch + floor, name


@on_any_shape
@given(shape=shapes, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_converges_to_the_largest_singular_value(shape: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    weight, u, v = make(*shape, dtype, seed)
    largest = torch.linalg.svdvals(weight.double())[0].item()
    sigma, u, v = native_power_iteration(weight, u, v, 1000)
    assert sigma.item() == pytest.approx(largest, rel=2e-3)
    assert sigma.item() <= largest * (1 + 8 * torch.finfo(dtype).eps)
    assert u.norm().item() == pytest.approx(1, abs=1e-6)
    assert v.norm().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_converges_fully_where_the_spectrum_has_a_gap(dtype: torch.dtype) -> None:
    left, right = (torch.linalg.qr(make(48, 48, torch.float64, seed)[0])[0] for seed in (1, 2))
    spectrum = torch.linspace(1, 0, 48, dtype=torch.float64)
    spectrum[0] = 3.0
    weight = (left @ torch.diag(spectrum) @ right).to(dtype)
    _, u, v = make(48, 48, dtype)
    sigma, u, v = native_power_iteration(weight, u, v, 60)
    assert sigma.item() == pytest.approx(3.0, rel=8 * torch.finfo(dtype).eps)
    assert (u.double() @ left[:, 0]).abs().item() == pytest.approx(1, abs=1e-5)
    assert (v.double() @ right[0]).abs().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (33, 20)])
def test_zero_matrix_gives_zero_and_no_nan(shape: tuple[int, int], dtype: torch.dtype) -> None:
    _, u, v = make(*shape, dtype)
    for result in native_power_iteration(torch.zeros(shape, dtype=dtype), u, v, 2):
        assert torch.equal(result, torch.zeros_like(result))


def test_eps_is_the_smallest_norm_divided_by() -> None:
    weight, u, v = make(5, 7, torch.float64)
    ours = native_power_iteration(1e-3 * weight, u, v, 1, eps=10.0)
    theirs = torch_power_iteration(1e-3 * weight, u, v, 1, eps=10.0)
    assert ours[2].norm() < 1e-2, "the case must be one where eps decides"
    for x, y in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(x, y)
    # sigma is u^T W v with the u and v that were just stored, whatever their length
    torch.testing.assert_close(ours[0], theirs[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_as_in_torch(bad: float) -> None:
    weight, u, v = make(20, 30, torch.float32)
    weight[3, 4] = bad
    ours = native_power_iteration(weight, u, v, 1)
    assert ours[0].isnan()
    for x, y in zip(ours, torch_power_iteration(weight, u, v, 1), strict=True):
        torch.testing.assert_close(x, y, equal_nan=True)


def test_norms_of_large_floats_do_not_overflow() -> None:
    weight, u, v = make(20, 30, torch.float32)
    sigma, _, _ = native_power_iteration(weight * 1e25, u, v, 50)
    assert sigma.item() == pytest.approx(1e25 * native_power_iteration(weight, u, v, 50)[0].item(), rel=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_iteration_leaves_u_and_v_alone(dtype: torch.dtype) -> None:
    weight, u, v = make(19, 35, dtype)
    sigma, new_u, new_v = native_power_iteration(weight, u, v, 0)
    assert torch.equal(new_u, u)
    assert torch.equal(new_v, v)
    torch.testing.assert_close(sigma, u @ weight @ v)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_repeat_bit_for_bit_wherever_the_tensors_lie(dtype: torch.dtype) -> None:
    weight, u, v = make(130, 77, dtype)
    first = native_power_iteration(weight, u, v, 3)
    for offset in range(1, 9):
        moved = []
        for tensor in (weight, u, v):
            room = torch.empty(tensor.numel() + offset, dtype=dtype)
            moved.append(room[offset:].view(tensor.shape).copy_(tensor))
        sigma = native.power_iteration(moved[0], moved[1], moved[2], 3)
        for x, y in zip(first, (sigma, *moved[1:]), strict=True):
            assert torch.equal(x, y)


def test_iterations_in_one_call_are_those_of_many_calls() -> None:
    weight, u, v = make(50, 60, torch.float32)
    at_once = native_power_iteration(weight, u, v, 4)
    for _ in range(4):
        sigma = native.power_iteration(weight, u, v, 1)
    for x, y in zip(at_once, (sigma, u, v), strict=True):
        assert torch.equal(x, y)


def test_weight_may_require_grad_and_autograd_sees_that_u_changed() -> None:
    weight, u, v = make(6, 5, torch.float32)
    weight.requires_grad_()
    depends_on_u = (weight.detach().clone().requires_grad_().T @ u).sum()
    assert not native.power_iteration(weight, u, v).requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        depends_on_u.backward()


def test_works_on_inference_tensors() -> None:
    with torch.inference_mode():
        weight, u, v = make(6, 5, torch.float32)
        inside = native.power_iteration(weight, u, v).item()
    weight, u, v = make(6, 5, torch.float32)
    assert inside == native.power_iteration(weight, u, v).item()


def test_other_threads_run_meanwhile() -> None:
    weight, u, v = make(400, 400, torch.float32)
    thread = threading.Thread(target=native.power_iteration, args=(weight, u, v, 4000))
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, u, v: (w[None], u, v), r"weight has shape \(1, 6, 5\); a matrix \(out, in\) is needed"),
        (lambda w, u, v: (w.bfloat16(), u, v), "weight is torch.bfloat16; float32 or float64 is needed"),
        (lambda w, u, v: (w.to("meta"), u, v), "weight is on meta"),
        (lambda w, u, v: (w, u, v.to("meta")), "v is on meta"),
        (lambda w, u, v: (w, u[:-1], v), r"u has shape \(5,\); \(6,\) is needed for a weight \(6, 5\)"),
        (lambda w, u, v: (w, u, u), r"v has shape \(6,\); \(5,\) is needed for a weight \(6, 5\)"),
        (lambda w, u, v: (w, u.double(), v), "u is torch.float64, but weight is torch.float32"),
        (lambda w, u, v: (w.T.contiguous().T, u, v), r"weight has strides \(1, 6\); it must be contiguous"),
        (lambda w, u, v: (w, u.repeat(2)[::2], v), r"u has strides \(2,\); it must be contiguous"),
        (lambda w, u, v: (w, u[:1].expand(6), v), r"u has strides \(0,\); it must be contiguous"),
        (lambda w, u, v: (w, u.requires_grad_(), v), "u requires grad, but is overwritten"),
        (lambda w, u, v: (w[:0], u[:0], v), "rows is 0; it must be at least 1"),
        (lambda w, u, v: (w[:, :0].contiguous(), u, v[:0]), "cols is 0; it must be at least 1"),
        (lambda w, u, v: (w[:5], v, v), "u and v share memory"),
        (lambda w, u, v: (w, u, w[2]), "weight and v share memory"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    change: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], message: str
) -> None:
    weight, u, v = change(*make(6, 5, torch.float32))
    with pytest.raises(ValueError, match=message):
        native.power_iteration(weight, u, v)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_iterations": -1}, "n_iterations is -1; it must be at least 0"),
        ({"eps": -1.0}, "eps is -1.000000; it must be zero or more"),
        ({"eps": float("nan")}, "eps is nan; it must be zero or more"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.power_iteration(*make(6, 5, torch.float32), **arguments)


def test_binding_refuses_addresses_that_cannot_be_right() -> None:
    function = importlib.import_module(MODULE).power_iteration_float32
    weight, u, v = make(6, 5, torch.float32)
    good = {"weight_ptr": weight.data_ptr(), "u_ptr": u.data_ptr(), "v_ptr": v.data_ptr()}
    sizes = {"rows": 6, "cols": 5, "n_iterations": 1, "eps": 1e-12}
    with pytest.raises(ValueError, match="u is a null address"):
        function(**sizes, **(good | {"u_ptr": 0}))
    with pytest.raises(ValueError, match="which is not a multiple of 4"):
        function(**sizes, **(good | {"v_ptr": good["v_ptr"] + 1}))
    assert function(**sizes, **good) > 0


def test_build_info_says_how_it_was_built() -> None:
    info = native.build_info()
    assert info["standard"] == "c++17"
    assert "-march" not in info["flags"], "a wheel must run on other machines than the one that built it"
    assert info["compiler"].split()[0] in ("gcc", "clang")
    ok, why = native.available()
    assert ok
    assert info["compiler"] in why


@pytest.mark.usefixtures("without_extension")
def test_a_missing_extension_says_what_to_do() -> None:
    ok, why = native.available()
    assert not ok
    assert "\n" not in why
    for word in ("is not built", "C++ compiler", "apt install g++ python3-dev", "install vitgan again"):
        assert word in why
    with pytest.raises(RuntimeError, match="is not built"):
        native.power_iteration(*make(6, 5, torch.float32))
    with pytest.raises(RuntimeError, match="is not built"):
        native.build_info()


def test_an_extension_that_cannot_be_loaded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libstdc++.so.6: version not found")

    monkeypatch.setattr(importlib, "import_module", fail)
    ok, why = native.available()
    assert not ok
    assert "cannot be loaded (libstdc++.so.6: version not found): install vitgan again on this machine" in why
