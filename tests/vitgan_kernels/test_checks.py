"""Checks of the numbers that operators take."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from vitgan_kernels.checks import check_finite_number


@pytest.mark.parametrize("value", [2, 0.5, np.float32(0.5), np.float64(0.5), np.int64(3), 2**1000, Fraction(1, 4)])
def test_a_finite_number_of_any_kind_becomes_a_float(value: float) -> None:
    checked = check_finite_number("op", "scale", value)
    assert type(checked) is float
    assert checked == value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (np.float32("inf"), "inf"),
        (10**400, "an integer of 1329 bits"),
        (-(10**5000), "an integer of 16610 bits"),
        (True, "True"),
        (np.True_, "True"),
        ("3", "'3'"),
        (None, "None"),
        (1j, "1j"),
        (torch.ones(()), "tensor"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # pytest cannot print 10**5000
)
def test_anything_else_is_a_clear_error(value: object, shown: str) -> None:
    with pytest.raises(ValueError, match=f"op: scale must be a finite number, got .*{shown}"):
        check_finite_number("op", "scale", value)


def test_a_symbolic_number_stays_symbolic() -> None:
    symbolic = ShapeEnv().create_unbacked_symfloat()
    assert check_finite_number("op", "scale", symbolic) is symbolic


def test_a_number_that_varies_compiles_to_one_graph() -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    @torch.compile(backend=keep, fullgraph=True, dynamic=True)
    def scaled(x: Tensor, scale: float) -> Tensor:
        return x * check_finite_number("op", "scale", scale)

    for scale in (0.5, 0.7, 1.3):
        torch.testing.assert_close(scaled(torch.ones(2), scale), torch.full((2,), scale))
    assert len(graphs) == 1
