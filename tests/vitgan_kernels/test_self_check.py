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
    orders = {case.operator: case.orders for case in self_check.cases("cpu")}
    assert orders == {"l2_attention": 2, "modulated_linear": 2, "modulated_siren": 2, "spectral_norm": 1}


class FirstOrderOnly(torch.autograd.Function):
    """The tensor itself, whose gradient is a constant to whoever differentiates it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach()


@pytest.mark.parametrize(
    ("damage", "dtype", "passed"),
    [
        (lambda x: x * 1.001, torch.float32, [False, False, False]),
        (lambda x: x.detach() + 0 * x, torch.float32, [True, False, False]),
        (lambda x: torch.where(torch.arange(x.shape[-1]) == 1, torch.nan, x), torch.float32, [False, False, False]),
        (FirstOrderOnly.apply, torch.float32, [True, True, False]),
        (lambda x: x * 1.03, torch.bfloat16, [False, False, False]),
    ],
    ids=["slightly off", "without a gradient", "not a number", "without a second derivative", "in bfloat16"],
)
def test_what_is_wrong_does_not_pass(
    damage: Callable[[Tensor], Tensor], dtype: torch.dtype, passed: list[bool]
) -> None:
    case = case_of("l2_attention")

    def damaged(q: Tensor, k: None, v: Tensor, *, backend: str) -> Tensor:
        return case.function(q, k, damage(v) if backend == "triton" else v, backend="reference")

    results = outcomes(replace(case, function=damaged), "triton", dtype)
    assert [ok for ok, _ in results] == passed
    assert all(ok or "the largest error is" in problem for ok, problem in results)


def test_an_exception_is_a_failure_with_its_text() -> None:
    def failing(*_args: Any, **_options: Any) -> Tensor:
        raise RuntimeError("no kernel image is available")

    (result,) = outcomes(replace(case_of("l2_attention"), function=failing), "triton")
    assert result == (False, "RuntimeError: no kernel image is available")


def test_it_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    self_check.cases("cpu")
    torch.testing.assert_close(torch.get_rng_state(), before)
