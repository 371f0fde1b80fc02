"""What `swap` leaves alone, with the reason, and how its report reads."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, orthogonal
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from tests.vitgan_kernels.swap.critics import critic, layer, state
from vitgan_kernels import SwapReport, swap, unswap, use_backend
from vitgan_kernels.spectral_norm import grouping, op


def wrong_value(weights: list[Tensor], u: list[Tensor], v: list[Tensor], **options: Any) -> Any:
    scaled, sigma = op.spectral_norm(weights, u, v, **options)
    return [w + 0.001 * w.detach() if w.shape == (12, 16) else w for w in scaled], sigma


def wrong_gradient(weights: list[Tensor], u: list[Tensor], v: list[Tensor], **options: Any) -> Any:
    scaled, sigma = op.spectral_norm(weights, u, v, **options)
    return [
        w * (s.detach() / s) ** 0.1 if w.shape == (12, 16) else w for w, s in zip(scaled, sigma, strict=True)
    ], sigma


def wrong_in_float32(weights: list[Tensor], u: list[Tensor], v: list[Tensor], **options: Any) -> Any:
    return (wrong_value if weights[0].dtype == torch.float32 else op.spectral_norm)(weights, u, v, **options)


def wrong_in_evaluation(weights: list[Tensor], u: list[Tensor], v: list[Tensor], **options: Any) -> Any:
    return (op.spectral_norm if options["update"] else wrong_value)(weights, u, v, **options)


def vectors_moved_in_evaluation(weights: list[Tensor], u: list[Tensor], v: list[Tensor], **options: Any) -> Any:
    results = op.spectral_norm(weights, u, v, **options)
    for vector in u:
        if not options["update"] and vector.shape == (12,):
            vector += 1e-4
    return results


@pytest.mark.parametrize(
    "broken",
    [wrong_value, wrong_gradient, wrong_in_float32, wrong_in_evaluation, vectors_moved_in_evaluation],
    ids=lambda function: function.__name__,
)
def test_what_disagrees_is_left_alone_and_reported(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Any]) -> None:
    model = critic(torch.float32)
    plain = copy.deepcopy(model)
    monkeypatch.setattr(grouping, "spectral_norm", broken)
    rows = {row.path: row for row in swap(model).rows}
    row = rows.pop("5.weight")  # the operator sees it transposed, as (12, 16)
    assert not row.swapped
    assert row.now == "the replacement disagrees with what was there"
    assert max(row.differences.values()) > 1e-5
    assert type(state(model[5])) is _SpectralNorm
    assert all(other.swapped for other in rows.values())
    assert all(max(other.differences.values()) < 1e-5 for other in rows.values())
    image = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(image), plain(image))


def test_the_order_of_the_iteration_is_part_of_what_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    def v_before_u(weights: list[Tensor], v: list[Tensor], u: list[Tensor], **options: Any) -> Any:
        scaled, sigma = op.spectral_norm([w.t() for w in weights], u, v, **options)
        return [w.t() for w in scaled], sigma

    monkeypatch.setattr(grouping, "spectral_norm", v_before_u)
    model = critic()
    assert not any(row.swapped for row in swap(model).rows[:3])
    assert not model[0]._forward_pre_hooks


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


class OwnSpectralNorm(_SpectralNorm):
    def forward(self, weight: Tensor) -> Tensor:
        return 3 * super().forward(weight)


def two_parametrizations() -> nn.Module:
    twice = layer(4, 4)
    return parametrize.register_parametrization(twice, "weight", Halved())


def subclassed() -> nn.Module:
    linear = nn.Linear(4, 4)
    return parametrize.register_parametrization(linear, "weight", OwnSpectralNorm(linear.weight))


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: torch_spectral_norm(nn.ConvTranspose1d(4, 4, 1)), "dim=1"),
        (lambda: layer(4, 4, dim=-1), "dim=1"),
        (two_parametrizations, "several parametrizations"),
        (subclassed, "OwnSpectralNorm is a class of its own"),
        (lambda: torch_spectral_norm(nn.Linear(4, 4), "bias"), "a vector"),
        (lambda: layer(1, 1), "single number"),
        (lambda: torch_spectral_norm(nn.Linear(4, 4, dtype=torch.complex64)), "complex64 is not"),
        (lambda: layer(4, 4).to("meta"), "the check could not run"),
    ],
)
def test_left_alone_with_the_reason(made: Callable[[], nn.Module], reason: str) -> None:
    model = made()
    plain = copy.deepcopy(model)
    (row,) = swap(model).rows
    assert not row.swapped
    assert reason in row.now
    assert not model._forward_pre_hooks
    assert [type(m) for m in model.parametrizations.modules()] == [  # type: ignore[union-attr]
        type(m)
        for m in plain.parametrizations.modules()  # type: ignore[union-attr]
    ]


def test_a_backend_that_cannot_serve_leaves_the_model_alone() -> None:
    model = critic()
    with use_backend("triton"):
        report = swap(model)
    assert not any(row.swapped for row in report.rows)
    assert "BackendError" in report.rows[0].now
    assert not model._forward_pre_hooks


def test_nothing_recognised_is_a_report_not_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), orthogonal(nn.Linear(3, 3)))
    report = swap(model)
    assert report.rows == []
    assert str(report).startswith("swap of Sequential: nothing recognised, nothing changed. Looked for: ViTGAN-pytorch")
    assert str(report).endswith(
        "layers under torch.nn.utils.parametrizations.spectral_norm or torch.nn.utils.spectral_norm."
    )
    assert not model._forward_pre_hooks
    unswap(model)


def test_report_prints_as_an_aligned_table() -> None:
    model = nn.Sequential(layer(4, 300), torch_spectral_norm(nn.ConvTranspose1d(300, 4, 1)))
    title, *lines = str(swap(model)).splitlines()
    assert title == "swap of Sequential: 1 of 2 swapped"
    assert len(lines) == 3
    starts = [lines[0].index(name) for name in ("path", "was", "now")]
    assert all(line[start - 2 : start] == "  " and line[start] != " " for line in lines for start in starts[1:])
    assert lines[1].startswith("0.weight")
    backend = op.OPERATOR.select(None, [torch.ones(2, 2)], [torch.ones(2)], [torch.ones(2)]).backend
    assert f"vitgan_kernels.spectral_norm ({backend}), one call a forward for 1 tensors" in lines[1]
    assert re.search(r"\d\.\de-\d\d \(float64\), \d\.\de-\d\d \(float32\)$", lines[1])
    assert "left alone: dim=1" in lines[2]
    assert isinstance(swap(model), SwapReport)


@pytest.mark.parametrize("function", [swap, unswap])
def test_something_that_is_no_module(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module is needed, got dict"):
        function({})
