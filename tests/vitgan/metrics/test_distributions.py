"""The mathematics of the scores, against second implementations."""

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from vitgan.metrics.distances import frechet_distance, inception_score, kernel_distance, moments, precision_recall


def features(seed: int, count: int = 60, width: int = 7, shift: float = 0.0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=random)
    return torch.randn(count, width, generator=random) @ mixing + shift


def test_moments_are_numpy_s() -> None:
    x = features(0)
    mean, covariance = moments(x)
    np.testing.assert_allclose(mean, x.double().numpy().mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy(), rowvar=False))
    assert mean.dtype == covariance.dtype == torch.float64
    with pytest.raises(ValueError, match="at least two rows"):
        moments(x[:1])


@pytest.mark.parametrize("width", [3, 7, 20])
@pytest.mark.parametrize("count", [10, 300])
def test_frechet_distance_is_that_of_scipy_s_matrix_root(width: int, count: int) -> None:
    """With more features than images the covariances are singular, as they are for few images of a wide network."""
    a, b = moments(features(0, count, width)), moments(features(1, count, width, shift=0.5))
    root = scipy.linalg.sqrtm((a[1] @ b[1]).numpy()).real
    expected = (a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * np.trace(root)
    assert frechet_distance(*a, *b) == pytest.approx(float(expected), rel=1e-4)


def test_frechet_distance_of_normal_distributions_on_a_line() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert frechet_distance(zero, one, zero + 3, 4 * one) == pytest.approx(9 + (2 - 1) ** 2)
    same = moments(features(0))
    assert frechet_distance(*same, *same) == pytest.approx(0, abs=1e-8)


def test_kernel_distance_is_torchmetrics_polynomial_discrepancy() -> None:
    a, b = features(0), features(1, shift=0.3)
    value, deviation = kernel_distance(a, b, subsets=3, subset_size=100)
    expected = poly_mmd(a.double(), b.double(), degree=3, gamma=None, coef=1.0)
    assert value == pytest.approx(float(expected), rel=1e-6)
    assert deviation is None, "subsets of everything are all the same"
    _, deviation = kernel_distance(a, b, subset_size=20)
    assert deviation is not None
    assert deviation > 0


def test_kernel_distance_of_two_halves_of_one_set_is_zero_on_average() -> None:
    values = []
    for seed in range(30):
        whole = torch.randn(200, 5, generator=torch.Generator().manual_seed(seed))
        values.append(kernel_distance(whole[:100], whole[100:], subsets=1)[0])
    assert abs(np.mean(values)) < 3 * np.std(values) / 30**0.5, "unbiased"


def test_inception_score_is_that_of_scipy_s_entropy() -> None:
    logits = 3 * features(0, 200, 10)
    value, deviation = inception_score(logits, splits=1)
    p = torch.softmax(logits.double(), 1).numpy()
    expected = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    assert value == pytest.approx(expected)
    assert deviation == 0
    sure = 100 * torch.eye(10).repeat(100, 1)
    assert inception_score(sure)[0] == pytest.approx(10, rel=0.05), "ten classes, each as sure as can be"
    assert inception_score(torch.zeros(20, 10))[0] == pytest.approx(1)


def test_precision_and_recall_are_those_written_out_with_loops() -> None:
    real, fake = features(0, 30, 3), features(0, 40, 3)[10:] * 1.3

    def inside(points: Tensor, centres: Tensor) -> float:
        hits = 0
        radii = [sorted((c - o).norm().item() for o in centres)[3] for c in centres]
        for point in points:
            hits += any((point - c).norm().item() <= r for c, r in zip(centres, radii, strict=True))
        return hits / len(points)

    assert precision_recall(real, fake) == pytest.approx((inside(fake, real), inside(real, fake)))


def test_precision_and_recall_tell_fewer_modes_from_worse_images() -> None:
    modes = 20 * torch.randn(10, 5)
    real = modes.repeat(30, 1) + torch.randn(300, 5)
    half = modes[:5].repeat(60, 1) + torch.randn(300, 5)
    fresh = modes.repeat(30, 1) + torch.randn(300, 5)
    best_precision, best_recall = precision_recall(real, fresh)
    precision, recall = precision_recall(real, half)
    assert precision == pytest.approx(best_precision, abs=0.05)
    assert recall == pytest.approx(best_recall / 2, abs=0.05)
    wide = modes.repeat(30, 1) + 6 * torch.randn(300, 5)
    assert precision_recall(real, wide)[0] < 0.3
