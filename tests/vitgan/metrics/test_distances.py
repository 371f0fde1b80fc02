"""Distances between sets of images."""

import pytest
import torch

from vitgan.metrics.distances import mean_pairwise_distance, sliced_wasserstein


def images(count: int = 20, channels: int = 3, side: int = 4) -> torch.Tensor:
    return torch.randn(count, channels, side, side)


def test_a_set_is_at_no_distance_from_itself_in_any_order() -> None:
    a = images()
    assert sliced_wasserstein(a, a) == 0
    assert sliced_wasserstein(a, a[torch.randperm(len(a))]) == pytest.approx(0, abs=1e-6)


def test_constant_images_that_differ_by_c_are_c_apart() -> None:
    a = torch.zeros(8, 3, 8, 8)
    assert sliced_wasserstein(a, a + 0.5, projections=4096) == pytest.approx(0.5, rel=0.05)


def test_the_distance_is_exact_on_one_pixel() -> None:
    """In one dimension every projection is the pixel itself, and the sets are matched in their order."""
    a = torch.tensor([3.0, 0.0, 1.0]).view(3, 1, 1, 1)
    b = torch.tensor([1.0, 5.0, 1.0]).view(3, 1, 1, 1)
    assert sliced_wasserstein(a, b) == pytest.approx((((1 - 0) ** 2 + (1 - 1) ** 2 + (5 - 3) ** 2) / 3) ** 0.5)


def test_normal_samples_of_different_spread() -> None:
    """Between N(0, 1) and N(0, s^2) the distance on every line is |s - 1|."""
    a, b = torch.randn(4000, 1, 2, 2), 3 * torch.randn(4000, 1, 2, 2)
    assert sliced_wasserstein(a, b) == pytest.approx(2, rel=0.05)


def test_the_distance_is_symmetric_and_repeats() -> None:
    a, b = images(), images() + 1
    state = torch.get_rng_state()
    assert sliced_wasserstein(a, b) == sliced_wasserstein(b, a) == sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_distance_grows_with_the_shift() -> None:
    a, b = images(200), images(200)
    distances = [sliced_wasserstein(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)
    assert distances[0] < 0.3 < 1.8 < distances[-1]


@pytest.mark.parametrize(
    ("a", "b"),
    [((4, 3, 2, 2), (5, 3, 2, 2)), ((4, 3, 2, 2), (4, 1, 2, 2)), ((0, 3, 2, 2), (0, 3, 2, 2)), ((4, 3), (4, 3))],
)
def test_sets_that_cannot_be_compared(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"two equally large sets of images \(N, C, H, W\) are needed, got \("):
        sliced_wasserstein(torch.zeros(a), torch.zeros(b))


def test_pairwise_distance_of_two_images() -> None:
    pair = torch.zeros(2, 3, 4, 4)
    pair[1] = 2
    pair[1, :, :, :2] = 1
    assert mean_pairwise_distance(pair) == pytest.approx(((4 + 1) / 2) ** 0.5)


def test_pairwise_distance_is_zero_for_a_collapsed_generator() -> None:
    assert mean_pairwise_distance(images(1).expand(50, -1, -1, -1)) == 0


def test_pairs_are_of_two_different_images() -> None:
    """With both drawn freely, a tenth of the pairs of ten images would be at distance 0."""
    apart = torch.eye(10).view(10, 1, 2, 5)
    assert mean_pairwise_distance(apart, pairs=2500) == pytest.approx((2 / 10) ** 0.5)


def test_all_pairs_are_as_likely() -> None:
    three = torch.tensor([0.0, 0.0, 3.0]).view(3, 1, 1, 1)
    assert mean_pairwise_distance(three) == pytest.approx(2, rel=0.05)


def test_pairwise_distance_of_noise() -> None:
    assert mean_pairwise_distance(images(500, side=16)) == pytest.approx(2**0.5, rel=0.02)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (0, 3, 4, 4), (4, 3, 4)])
def test_too_few_images_for_a_pair(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"at least two images \(N, C, H, W\) are needed, got \("):
        mean_pairwise_distance(torch.zeros(shape))
