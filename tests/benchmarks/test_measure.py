"""What is timed and what is not: wrong results, failures, refusals; and the turns and inputs of what is."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import Case, Contender, Function, Inputs, one_pass
from benchmarks.measure import Measured, largest_error, measure
from benchmarks.records import Ceilings, percentiles
from benchmarks.timing import take_turns
from tests.benchmarks.helpers import run

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e9, {"float32": 1e9})
SECONDS = 1e-4


def cubes(x: Tensor, y: Tensor) -> Tensor:
    return x**3 * y


def case(**changes: Any) -> Case:
    """x ** 3 * y, with a gradient in x."""

    def inputs(seed: int) -> Inputs:
        random = torch.Generator().manual_seed(seed)
        x, y, cotangent = (torch.randn(7, generator=random) for _ in range(3))
        return [x, y], [cotangent]

    plain: dict[str, Any] = {
        "suite": "toys",
        "name": "cubes",
        "shape": {"n": 7},
        "dtype": torch.float32,
        "inputs": inputs,
        "exact": cubes,
        "plain": cubes,
        "wanted": (0,),
        "bytes": {"forward": 8e6},
        "flops": {"forward": 2e6},
    }
    return Case(**plain | changes)


def measured(contender: Contender, measures: str = "forward") -> Measured:
    (one,) = measure(case(), measures, [contender], CPU, CEILINGS, SECONDS)
    return one


class HalfWrong(torch.autograd.Function):
    """The right forward, and a backward that autograd takes for a constant: wrong from the second order on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return cubes(x, y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return 3 * x.detach() ** 2 * y * grad, None


def noisy(x: Tensor, y: Tensor) -> Tensor:
    return cubes(x, y) * (1 + 1e-5)


def not_numbers(x: Tensor, y: Tensor) -> Tensor:
    return cubes(x, y) / 0 * 0


def wrong_shape(x: Tensor, y: Tensor) -> Tensor:
    return cubes(x, y)[None]


def two_results(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return cubes(x, y), x


@pytest.mark.parametrize("measures", ["forward", "forward_backward", "second_order"])
def test_what_matches_is_timed_twice(measures: str) -> None:
    one = measured(Contender("who", cubes), measures)
    assert one.row.matched
    assert one.row.error is not None
    assert one.row.allowed is not None
    assert one.row.error <= one.row.allowed < 1e-5
    assert one.row.milliseconds == percentiles(one.samples)
    assert one.row.repeat_milliseconds is not None


@pytest.mark.parametrize("wrong", [noisy, not_numbers, wrong_shape, two_results])
def test_what_does_not_match_has_no_time(wrong: Function) -> None:
    one = measured(Contender("peer", wrong))
    assert not one.row.matched
    assert one.row.milliseconds is None
    assert one.row.repeat_milliseconds is None
    assert one.samples == []
    assert one.row.why


@pytest.mark.parametrize("wrong", [noisy, not_numbers, wrong_shape, two_results])
def test_a_row_without_a_time_can_be_saved(wrong: Function, tmp_path: Any) -> None:
    """Also where the error is not a number: the other rows must not be lost with it."""
    run(measured(Contender("peer", wrong)).row).save(tmp_path / "run.json")


def test_a_wrong_derivative_is_seen_at_its_order() -> None:
    contender = Contender("peer", HalfWrong.apply)
    assert measured(contender, "forward_backward").row.matched
    assert not measured(contender, "second_order").row.matched


def test_a_failure_is_the_reason() -> None:
    def fails(x: Tensor, y: Tensor) -> Tensor:
        raise RuntimeError("no such kernel\nand much more")

    row = measured(Contender("peer", fails)).row
    assert row.milliseconds is None
    assert row.why == "RuntimeError: no such kernel"


def test_a_failure_is_not_a_refusal() -> None:
    """Each of the two is the other's opposite for the test of a row of ours: one fails it, one skips it."""
    assert measured(Contender("ours", wrong_shape, ours=True)).tried
    assert not measured(Contender("ours", cubes, ours=True, unable={"*": "no compiler"})).tried


def test_memory_of_a_call() -> None:
    """Two of these vectors are alive at once, of three that are made: the second takes the first's place."""

    def doubled_twice(x: Tensor, y: Tensor) -> Tensor:
        z = x + x
        z = z + z
        return z + z

    one = measured(Contender("who", doubled_twice, exact=doubled_twice))
    assert one.row.peak_memory_bytes == 2 * 7 * 4


def test_a_refusal_is_the_reason() -> None:
    called = []
    contender = Contender("peer", lambda x, y: called.append(1), unable={"second_order": "it has none"})
    assert measured(contender, "second_order").row.why == "it has none"
    assert not called
    assert measured(Contender("peer", cubes, unable={"second_order": "it has none"})).row.matched


@pytest.mark.parametrize("measures", ["forward", "forward_backward", "second_order"])
def test_a_pass_can_be_compiled_as_one_graph(measures: str) -> None:
    run = one_pass(cubes, measures, (0,))
    inputs, cotangents = case().inputs(0)
    inputs[0].requires_grad_(measures != "forward")
    expected = run(inputs, cotangents)
    try:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            actual = torch.compile(run, fullgraph=True, backend="aot_eager")(inputs, cotangents)
    finally:
        torch._dynamo.reset()
    torch.testing.assert_close(list(actual), list(expected))


def test_a_lower_bound_is_held_against_its_own_definition() -> None:
    def squares(x: Tensor, y: Tensor) -> Tensor:
        return x**2 * y

    assert not measured(Contender("bound", squares)).row.matched
    assert measured(Contender("bound", squares, exact=squares)).row.matched
    assert not measured(Contender("bound", noisy, exact=squares)).row.matched


def test_one_row_a_contender_in_their_order() -> None:
    contenders = [Contender("b", cubes), Contender("wrong", noisy), Contender("a", cubes)]
    rows = [one.row for one in measure(case(), "forward", contenders, CPU, CEILINGS, SECONDS)]
    assert [row.who for row in rows] == ["b", "wrong", "a"]
    assert [row.matched for row in rows] == [True, False, True]


def test_the_floor_is_the_larger_of_bytes_and_operations() -> None:
    assert measured(Contender("who", cubes)).row.floor_milliseconds == 8
    (one,) = measure(case(flops={"forward": 9e6}), "forward", [Contender("who", cubes)], CPU, CEILINGS, SECONDS)
    assert one.row.floor_milliseconds == 9
    assert measured(Contender("who", cubes), "second_order").row.floor_milliseconds is None


def test_inputs_rotate_and_are_fresh() -> None:
    """Calls get different numbers in different memory, and leaves of their own in each set."""
    seen: list[tuple[int, float]] = []

    def watching(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x.data_ptr(), float(x.detach()[0])))
        return cubes(x, y)

    measured(Contender("who", watching), "forward_backward")
    assert len(set(seen[-16:])) == 16
    assert len({pointer for pointer, _ in seen[-16:]}) == 16


def test_contenders_take_turns() -> None:
    called: list[str] = []
    rounds = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, CPU, SECONDS)
    turns = [who for who, before in zip(called, [None, *called], strict=False) if who != before]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(rounds["a"]) == len(rounds["b"]) >= 5
    assert min(rounds["a"] + rounds["b"]) > 0


def test_largest_error_is_relative_to_each_result() -> None:
    exact = [torch.tensor([100.0, 1.0]).double(), torch.tensor([0.01]).double()]
    assert largest_error([torch.tensor([100.0, 2.0]), torch.tensor([0.01])], exact) == pytest.approx(0.01, rel=1e-6)
    assert largest_error([torch.tensor([100.0, 1.0]), torch.tensor([0.02])], exact) == pytest.approx(1, rel=1e-6)
    assert not largest_error([torch.tensor([float("nan"), 1.0]), torch.tensor([0.01])], exact) <= 1


def test_results_of_another_number_are_an_error() -> None:
    results: Sequence[Tensor] = [torch.ones(1)]
    with pytest.raises(ValueError):
        largest_error(results, [torch.ones(1).double()] * 2)
