"""Every contender that needs no compiler computes the operator, in each order that it takes part in, at small sizes."""

from collections.abc import Sequence

import pytest
import torch

from benchmarks import test_l2_attention, test_modulated_siren, test_spectral_norm
from benchmarks.cases import Case, Contender
from benchmarks.measure import largest_error, measure
from benchmarks.peers.original_step import OriginalStep, draws, results, settings, settled
from benchmarks.records import Ceilings
from vitgan.training.state import Adversarial

CPU = torch.device("cpu")
CEILINGS = Ceilings(1e9, {"float32": 1e9})
FLOAT32 = torch.float32
SUITES: list[tuple[Case, Sequence[Contender], tuple[str, ...]]] = [
    (
        test_l2_attention.case(1, 2, 5, 8, FLOAT32),
        test_l2_attention.contenders(False),
        ("forward", "forward_backward", "second_order"),
    ),
    (
        test_modulated_siren.case(16, 16, 32, 1, FLOAT32),
        test_modulated_siren.contenders(False),
        ("forward", "forward_backward", "second_order"),
    ),
    (
        test_spectral_norm.case("tiny"),
        test_spectral_norm.contenders(False),
        ("forward", "forward_backward"),
    ),
]
CASES = [
    pytest.param(case, contender, measures, id=f"{case.suite}, {contender.who}, {measures}")
    for case, contenders, orders in SUITES
    for contender in contenders
    for measures in orders
    if contender.compiled is None and contender.who != "FlexAttention" and contender.why_not(measures) is None
]


@pytest.mark.parametrize(("case", "contender", "measures"), CASES)
def test_a_contender_computes_the_operator(
    case: Case, contender: Contender, measures: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.measure.INPUT_SETS", (1, 1))  # nothing is timed in earnest here
    (one,) = measure(case, measures, [contender], CPU, CEILINGS, 1e-4)
    assert one.row.matched, one.row.why
    assert one.row.milliseconds


@pytest.fixture(scope="module")
def training() -> Adversarial:
    return settled(Adversarial(settings("tiny", 2), CPU))


def test_the_early_recipe_computes_what_the_trainer_does(training: Adversarial) -> None:
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    numbers = draws(training)
    doubles = {name: each.double() for name, each in numbers.items()}
    exact = results(OriginalStep(training).double(), real.double(), doubles)
    assert all(each.dtype == torch.float64 for each in exact)
    plain = largest_error(results(OriginalStep(training), real, numbers), exact)
    assert largest_error(results(training, real, numbers), exact) <= 2 * plain + torch.finfo(FLOAT32).eps
    assert plain < 1e-3


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_recipe_of_other_weights_is_seen(training: Adversarial, part: str) -> None:
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    numbers = draws(training)
    other = OriginalStep(training)
    with torch.no_grad():
        next(getattr(other, part).parameters()).mul_(1.01)
    assert largest_error(results(other, real, numbers), results(training, real, numbers)) > 1e-3
