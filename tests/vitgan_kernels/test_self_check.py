"""The check of every operator against float64: it passes here, and what is wrong does not."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import self_check
from vitgan_kernels.backends import OPERATORS
from vitgan_kernels.self_check import Case


def case_of(operator: str) -> Case:
    return next(case for case in self_check.cases("cpu") if case.operator == operator)


def outcomes(case: Case, backend: str = "reference", dtype: torch.dtype = torch.float32) -> list[tuple[bool, Any]]:
    return [(outcome.passed, outcome.problem) for outcome in self_check.check(case, backend, dtype)]


def test_there_is_a_case_of_every_operator() -> None:
    assert sorted(case.operator for case in self_check.cases("cpu")) == sorted(OPERATORS)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_every_backend_that_serves_the_call_passes(operator: str) -> None:
    case = case_of(operator)
    assert "reference" in case.backends()
    for backend in case.backends():
        assert outcomes(case, backend) == [(True, None)] * (case.orders + 1)


@pytest.mark.parametrize("operator", ["l2_attention", "modulated_siren"])
def test_bfloat16(operator: str) -> None:
    assert outcomes(case_of(operator), dtype=torch.bfloat16) == [(True, None)] * 3


def test_second_derivatives_are_among_them() -> None:
    assert {case.operator: case.orders for case in self_check.cases("cpu")} == {
        "l2_attention": 2,
        "modulated_linear": 2,
        "modulated_siren": 2,
        "spectral_norm": 1,
    }


def slightly_off(x: Tensor) -> Tensor:
    return x * 1.001


def without_a_gradient(x: Tensor) -> Tensor:
    return x.detach() + 0 * x


def not_a_number(x: Tensor) -> Tensor:
    return torch.where(torch.arange(x.shape[-1]) == 1, torch.nan, x)


@pytest.mark.parametrize(
    ("damage", "passed"),
    [
        (slightly_off, [False, False, False]),
        (without_a_gradient, [True, False, False]),
        (not_a_number, [False, False, False]),
    ],
)
def test_what_is_wrong_does_not_pass(damage: Callable[[Tensor], Tensor], passed: list[bool]) -> None:
    case = case_of("l2_attention")

    def damaged(*args: Any, backend: str, **options: Any) -> Tensor:
        result = case.function(*args, backend="reference", **options)
        return damage(result) if backend == "triton" else result

    results = outcomes(replace(case, function=damaged), "triton")
    assert [ok for ok, _ in results] == passed
    for ok, problem in results:
        assert ok or "the largest error is" in problem


def test_what_is_wrong_by_a_few_hundredths_does_not_pass_in_bfloat16() -> None:
    case = case_of("l2_attention")

    def damaged(*args: Any, backend: str, **options: Any) -> Tensor:
        result = case.function(*args, backend="reference", **options)
        return result * 1.03 if backend == "triton" else result

    results = outcomes(replace(case, function=damaged), "triton", torch.bfloat16)
    assert [ok for ok, _ in results] == [False] * 3


class FirstOrderOnly(torch.autograd.Function):
    """The tensor itself, whose gradient is a constant to whoever differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach()


def test_a_second_derivative_that_lacks_terms_does_not_pass() -> None:
    case = case_of("l2_attention")

    def damaged(q: Tensor, k: None, v: Tensor, *, backend: str) -> Tensor:
        return case.function(FirstOrderOnly.apply(q) if backend == "triton" else q, k, v, backend="reference")

    results = outcomes(replace(case, function=damaged), "triton")
    assert [ok for ok, _ in results] == [True, True, False]


def test_an_exception_is_a_failure_with_its_text() -> None:
    def failing(*_args: Any, **_options: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    (result,) = outcomes(replace(case_of("l2_attention"), function=failing), "triton")
    assert result == (False, "RuntimeError: no kernel image is available")


def test_it_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    self_check.cases("cpu")
    torch.testing.assert_close(torch.get_rng_state(), before)
