"""What spectral_norm computes, held against power iteration by hand and singular values from a decomposition."""

import pytest
import torch
from torch import Tensor

from vitgan_kernels import spectral_norm

SHAPES = [(5, 3), (3, 5), (4, 2, 3, 3), (1, 6), (6, 1), (1, 1), (2, 3, 2)]


def matrices(dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights of many shapes with unit vectors u and v that have nothing to do with them yet."""
    weights = [torch.randn(shape, dtype=dtype) for shape in SHAPES]
    u = [unit(torch.randn(weight.shape[0], dtype=dtype)) for weight in weights]
    v = [unit(torch.randn(weight[0].numel(), dtype=dtype)) for weight in weights]
    return weights, u, v


def unit(x: Tensor) -> Tensor:
    return x / x.dot(x).sqrt()


def largest_singular_value(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight.flatten(1))[0]


@pytest.mark.parametrize("n_iterations", [1, 2, 5])
def test_power_iteration_step_by_step(n_iterations: int) -> None:
    weights, u, v = matrices()
    expected = []
    for weight, u_l in zip(weights, u, strict=True):
        matrix, left = weight.flatten(1), u_l.clone()
        for _ in range(n_iterations):
            right = unit(torch.einsum("oi,o->i", matrix, left))
            left = unit(torch.einsum("oi,i->o", matrix, right))
        expected.append((left, right, torch.einsum("o,oi,i->", left, matrix, right)))
    given = [*u, *v]
    scaled, sigma = spectral_norm(weights, u, v, n_iterations=n_iterations)
    assert all(mine is yours for mine, yours in zip(given, [*u, *v], strict=True)), "u and v move in place"
    for index, (left, right, norm) in enumerate(expected):
        torch.testing.assert_close(u[index], left)
        torch.testing.assert_close(v[index], right)
        torch.testing.assert_close(sigma[index], norm)
        torch.testing.assert_close(scaled[index], weights[index] / norm)


def test_converges_to_the_largest_singular_value() -> None:
    weights, u, v = matrices()
    for _ in range(200):
        scaled, sigma = spectral_norm(weights, u, v)
    torch.testing.assert_close(sigma, torch.stack([largest_singular_value(weight) for weight in weights]))
    for weight in scaled:
        torch.testing.assert_close(largest_singular_value(weight), torch.ones((), dtype=torch.float64))


def test_iterations_of_one_call_or_of_many() -> None:
    weights, u, v = matrices()
    u_again, v_again = [x.clone() for x in u], [x.clone() for x in v]
    spectral_norm(weights, u, v, n_iterations=4)
    for _ in range(4):
        spectral_norm(weights, u_again, v_again)
    torch.testing.assert_close([*u, *v], [*u_again, *v_again], rtol=0, atol=0)


@pytest.mark.parametrize("still", [{"update": False}, {"n_iterations": 0}])
def test_without_an_update_u_and_v_stay_and_are_used_as_they_are(still: dict) -> None:
    weights, u, v = matrices()
    before = [x.clone() for x in (*u, *v)]
    scaled, sigma = spectral_norm(weights, u, v, **still)
    torch.testing.assert_close([*u, *v], before, rtol=0, atol=0)
    for weight, u_l, v_l, norm, result in zip(weights, u, v, sigma, scaled, strict=True):
        torch.testing.assert_close(norm, torch.einsum("o,oi,i->", u_l, weight.flatten(1), v_l))
        torch.testing.assert_close(result, weight / norm)


def test_improved_scales_each_matrix_to_its_own_norm() -> None:
    weights, u, v = matrices()
    sigma_init = torch.rand(len(weights), dtype=torch.float64) + 1
    spectral_norm(weights, u, v, n_iterations=200)
    scaled, sigma = spectral_norm(weights, u, v, sigma_init=sigma_init)
    for weight, norm, goal, result in zip(weights, sigma, sigma_init, scaled, strict=True):
        torch.testing.assert_close(result, goal * weight / norm)
        torch.testing.assert_close(largest_singular_value(result), goal)


def test_shapes_and_dtypes() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        weights, u, v = matrices(dtype)
        scaled, sigma = spectral_norm(weights, u, v, sigma_init=torch.ones(len(weights), dtype=dtype))
        assert [weight.shape for weight in scaled] == [weight.shape for weight in weights]
        assert sigma.shape == (len(weights),)
        assert {sigma.dtype, *(weight.dtype for weight in scaled)} == {dtype}


def test_the_weights_themselves_are_not_changed() -> None:
    weights, u, v = matrices()
    before = [weight.clone() for weight in weights]
    spectral_norm(weights, u, v)
    torch.testing.assert_close(weights, before, rtol=0, atol=0)


def test_strides_do_not_matter() -> None:
    weights, u, v = matrices()
    strided = [weight.transpose(0, 1).contiguous().transpose(0, 1) for weight in weights]
    assert not all(weight.is_contiguous() for weight in strided)
    apart = [torch.stack([x, torch.full_like(x, torch.nan)], dim=-1)[:, 0] for x in u]
    expected, sigma = spectral_norm(weights, [x.clone() for x in u], [x.clone() for x in v], n_iterations=2)
    actual, strided_sigma = spectral_norm(strided, apart, v, n_iterations=2)
    torch.testing.assert_close([*actual, strided_sigma], [*expected, sigma])


def test_a_matrix_of_zeros_comes_back_not_a_number_but_leaves_u_and_v_finite() -> None:
    u, v = torch.ones(3), torch.ones(2)
    [scaled], sigma = spectral_norm([torch.zeros(3, 2)], [u], [v])
    assert scaled.isnan().all()
    assert sigma.item() == 0
    assert not u.any()
    assert not v.any()


def test_eps_bounds_the_norm_that_is_divided_by() -> None:
    u, v = torch.ones(1), torch.ones(1)
    spectral_norm([torch.full((1, 1), 0.1)], [u], [v], eps=0.5)
    torch.testing.assert_close([v, u], [torch.tensor([0.2]), torch.tensor([0.04])])


def test_sigma_is_the_same_under_autocast() -> None:
    weights, u, v = matrices(torch.float32)
    expected = spectral_norm(weights, [x.clone() for x in u], [x.clone() for x in v])
    with torch.autocast("cpu", torch.bfloat16):
        actual = spectral_norm(weights, u, v)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
