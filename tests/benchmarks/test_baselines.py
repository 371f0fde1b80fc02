"""Every implementation that needs no compiler computes the operator, in each order that it takes part in."""

import pytest
import torch

from benchmarks import test_l2_attention, test_modulated_siren, test_r1, test_spectral_norm
from benchmarks.baselines.vitgan_pytorch import Recipe, draws, results, settings, settled
from benchmarks.cases import MEASURES
from benchmarks.measure import Implementation, largest_error
from vitgan.models.build import build_discriminator
from vitgan.presets import PRESETS
from vitgan.training.state import GANState

CPU, FLOAT32 = torch.device("cpu"), torch.float32
CASES = [
    *[(test_l2_attention.case((1, 2, 5, 8), FLOAT32, order), test_l2_attention.implementations) for order in MEASURES],
    *[
        (test_l2_attention.case((1, 2, 5, 8), FLOAT32, order, euclidean=True),
         test_l2_attention.euclidean_implementations)
        for order in MEASURES
    ],
    *[(test_modulated_siren.case((16, 16, 32, 1), FLOAT32, order), test_modulated_siren.implementations)
      for order in MEASURES],
    *[(test_spectral_norm.case("tiny", order), test_spectral_norm.implementations) for order in MEASURES[:2]],
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "implementations"), CASES, ids=[f"{c.suite}, {c.name}, {c.measures}" for c, _ in CASES]
)
def test_implementations_compute_the_operator(
    case: test_l2_attention.Case, implementations: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.cases.INPUT_SETS", (1, 1))  # nothing is timed here
    exact = case.exact_results()
    allowed = case.allowed(exact)
    found: list[Implementation] = implementations(case, False)  # type: ignore[operator]
    assert found[0].role == "ours"
    assert found[0].info["backend"] in ("cpp", "reference")
    for each in found:
        if each.unable is None:
            found_results, call = each.prepare()
            error = largest_error(found_results, each.exact() if each.exact else exact)
            assert error <= allowed or each.name == "eager, expanded", (
                f"{each.name}: {error:.1e}, {allowed:.1e} allowed"
            )
            call()


def test_compiled_rows_have_the_same_anchor() -> None:
    for case, implementations in CASES:
        names = [each.name for each in implementations(case, True)]
        assert names[:2] == ["vitgan_kernels", "vitgan_kernels, compiled"]


@pytest.fixture(scope="module")
def training() -> GANState:
    return settled(GANState(settings("tiny", 2), CPU))


def test_the_recipe_computes_what_the_trainer_does(training: GANState) -> None:
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    numbers = draws(training)
    doubles = {name: each.double() for name, each in numbers.items()}
    exact = results(Recipe(training).double(), real.double(), doubles)
    assert all(each.dtype == torch.float64 for each in exact)
    plain = largest_error(results(Recipe(training), real, numbers), exact)
    assert largest_error(results(training, real, numbers), exact) <= 2 * plain + torch.finfo(FLOAT32).eps
    assert plain < 1e-3


@pytest.mark.parametrize("part", ["generator", "discriminator"])
def test_a_recipe_of_other_weights_is_seen(training: GANState, part: str) -> None:
    real = torch.rand(2, 3, 32, 32) * 2 - 1
    numbers = draws(training)
    other = Recipe(training)
    with torch.no_grad():
        next(getattr(other, part).parameters()).mul_(1.01)
    assert largest_error(results(other, real, numbers), results(training, real, numbers)) > 1e-3


def test_the_finite_difference_is_r1_in_expectation() -> None:
    """In float64 and averaged over draws; one of them is far off, which is what its row says."""
    torch.manual_seed(0)
    d = build_discriminator(PRESETS["tiny"]).double().eval()
    real = torch.rand(2, 3, 32, 32).double() * 2 - 1
    exact = test_r1.exact_penalty(d, real).item()
    with torch.no_grad():
        drawn = torch.stack([test_r1.finite_difference(d, real) for _ in range(200)])
    assert drawn.mean().item() == pytest.approx(exact, abs=4 * drawn.std().item() / 200**0.5)
