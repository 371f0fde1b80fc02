"""What is timed and what is not: wrong results, failures, refusals; and the turns and inputs of what is."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.cases import MEASURES, Case, Inputs, one_pass
from benchmarks.measure import Implementation, Row, largest_error, measure, peak_memory, quartiles, take_turns

CPU = torch.device("cpu")
SECONDS = 1e-4


def cubes(x: Tensor, y: Tensor) -> Tensor:
    return x**3 * y


def case(measures: str = "forward") -> Case:
    """x ** 3 * y, with a gradient in x."""

    def inputs(seed: int) -> Inputs:
        random = torch.Generator().manual_seed(seed)
        x, y, cotangent = (torch.randn(7, generator=random) for _ in range(3))
        return [x, y], [cotangent]

    return Case("toys", "cubes", torch.float32, measures, inputs, cubes, cubes, (0,))


def measured(*implementations: Implementation, measures: str = "forward") -> list[Row]:
    exact = case(measures).exact_results()
    return measure(implementations, exact, case(measures).allowed(exact), CPU, SECONDS)


def row_of(function: Callable[..., Any], measures: str = "forward", **more: Any) -> Row:
    (row,) = measured(case(measures).implementation("one", function, **more), measures=measures)
    return row


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


def fails(x: Tensor, y: Tensor) -> Tensor:
    raise RuntimeError("no such kernel\nand much more")


@pytest.mark.parametrize("measures", MEASURES)
def test_a_match_is_timed(measures: str) -> None:
    row = row_of(cubes, measures)
    assert row.reason is None
    assert row.info["error"] <= row.info["allowed"] < 1e-5
    assert len(row.seconds) >= 5
    assert min(row.seconds) > 0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (noisy, "error 1.0e-05 of the largest value, "),
        (lambda x, y: cubes(x, y) / 0 * 0, "error nan"),
        (lambda x, y: cubes(x, y)[None], "ValueError: results have shapes [(1, 7)], and not [(7,)]"),
        (lambda x, y: (cubes(x, y), x), "ValueError: results have shapes"),
        (fails, "RuntimeError: no such kernel"),
    ],
)
def test_what_does_not_match_has_no_time(wrong: Callable[..., Any], reason: str) -> None:
    row = row_of(wrong)
    assert (row.seconds, row.failed) == ([], True)
    assert (row.reason or "").startswith(reason)


def test_a_refusal_is_no_failure() -> None:
    row = row_of(fails, unable="no compiler")
    assert (row.seconds, row.failed, row.reason) == ([], False, "no compiler")


def test_the_error_of_an_approximation_is_told() -> None:
    function = case().implementation("one", noisy, "other", approximate=True)
    (row,) = measured(function)
    assert row.seconds
    assert row.info["error"] > row.info["allowed"]


def test_a_wrong_derivative_is_seen_at_its_order() -> None:
    assert row_of(HalfWrong.apply, "forward_backward").seconds
    assert row_of(HalfWrong.apply, "second_order").failed


def test_what_computes_less_is_held_against_its_own_definition() -> None:
    def squares(x: Tensor, y: Tensor) -> Tensor:
        return x**2 * y

    exact = case().of(squares).exact_results
    assert row_of(squares).failed
    assert row_of(squares, exact=exact).seconds
    assert row_of(noisy, exact=exact).failed


def test_ratios_are_of_the_same_round_to_the_first_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"a": [1.0, 2.0, 4.0], "wrong": [], "ours": [2.0, 1.0, 4.0], "ours, compiled": [1.0, 1.0, 1.0]}
    monkeypatch.setattr("benchmarks.measure.take_turns", lambda calls, device, seconds: {n: times[n] for n in calls})
    make = case().implementation
    functions = {"a": cubes, "wrong": noisy, "ours": cubes, "ours, compiled": cubes}
    rows = measured(*(make(name, f, "ours" if "ours" in name else "baseline") for name, f in functions.items()))
    assert [row.name for row in rows] == list(times)
    assert rows[0].info["relative"] == quartiles([0.5, 2.0, 1.0]) == [0.75, 1.0, 1.5]
    assert rows[2].info["relative"] == [1, 1, 1]
    assert "relative" not in rows[1].info


def test_memory_of_a_call() -> None:
    """Two of these vectors are alive at once, of three that are made: the second takes the first's place."""
    x = torch.randn(7)

    def doubled_twice() -> Tensor:
        z = x + x
        z = z + z
        return z + z

    assert peak_memory(doubled_twice, CPU) == 2 * 7 * 4


@pytest.mark.parametrize("measures", MEASURES)
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


def test_inputs_rotate_and_are_fresh() -> None:
    """Calls get different numbers in different memory."""
    seen: list[int] = []

    def watching(x: Tensor, y: Tensor) -> Tensor:
        seen.append(x.data_ptr())
        return cubes(x, y)

    row_of(watching, "forward_backward")
    assert len(set(seen[-16:])) == 16


def test_implementations_take_turns() -> None:
    called: list[str] = []
    rounds = take_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, CPU, SECONDS)
    turns = [name for name, before in zip(called, [None, *called], strict=False) if name != before]
    assert turns == ["a", "b"] * (len(turns) // 2)
    assert len(rounds["a"]) == len(rounds["b"]) >= 5


def test_largest_error_is_relative_to_each_result() -> None:
    exact = [torch.tensor([100.0, 1.0]).double(), torch.tensor([0.01]).double()]

    def error(*values: Sequence[float]) -> float:
        return largest_error([torch.tensor(each) for each in values], exact)

    assert error([100.0, 2.0], [0.01]) == pytest.approx(0.01, rel=1e-6)
    assert error([100.0, 1.0], [0.02]) == pytest.approx(1, rel=1e-6)
    assert not error([float("nan"), 1.0], [0.01]) <= 1
