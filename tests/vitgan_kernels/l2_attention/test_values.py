"""What l2_attention computes, held against its definition written out in float64."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitgan_kernels import l2_attention


def by_definition(q: Tensor, k: Tensor | None, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax_j(-scale * ||q_i - k_j||^2) @ v from the differences themselves, in float64."""
    q, v = q.double(), v.double()
    k = q if k is None else k.double()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = -scale * (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("scale", [None, 0.3, 2.0, 0.0, -0.5])
@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((5, 3), (5, 3), (5, 3)),
        ((4, 3), (7, 3), (7, 2)),
        ((2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 1)),
        ((1, 8), (65, 8), (65, 8)),
        ((65, 1), (63, 1), (63, 5)),
        ((1, 1), (1, 1), (1, 1)),
    ],
)
def test_softmax_of_negative_squared_distances(
    q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], scale: float | None
) -> None:
    tensors = random(*q), random(*k), random(*v)
    torch.testing.assert_close(
        l2_attention(*tensors, scale=scale), by_definition(*tensors, scale), rtol=1e-11, atol=1e-12
    )


@given(
    leading=st.lists(st.integers(1, 3), max_size=2),
    collapsed=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**16),
)
def test_leading_dimensions_broadcast(
    leading: list[int], collapsed: tuple[bool, ...], sizes: tuple[int, int, int, int], seed: int
) -> None:
    torch.manual_seed(seed)
    queries, keys, d, e = sizes
    batches = [[1] * len(leading) if one else leading for one in collapsed]
    q, k, v = random(*batches[0], queries, d), random(*batches[1], keys, d), random(*batches[2], keys, e)
    expected = by_definition(q, k, v)
    actual = l2_attention(q, k, v)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def test_fewer_leading_dimensions_are_legal() -> None:
    q, k, v = random(2, 3, 4, 5), random(3, 6, 5), random(6, 2)
    torch.testing.assert_close(l2_attention(q, k, v), by_definition(q, k, v))


def test_no_key_means_that_queries_are_the_keys() -> None:
    q, v = random(2, 5, 3), random(2, 5, 4)
    expected = by_definition(q, q.clone(), v)
    for k in (None, q, q.clone()):
        torch.testing.assert_close(l2_attention(q, k, v), expected)


def test_attends_to_the_nearest_key_and_not_to_the_farthest() -> None:
    k = torch.tensor([[0.0, 0.0], [1.0, 0.0], [10.0, 0.0]])
    v = torch.tensor([[0.0], [1.0], [2.0]])
    q = torch.tensor([[0.9, 0.1], [9.0, 0.0], [-50.0, 0.0]])
    torch.testing.assert_close(l2_attention(q, k, v, scale=20.0), torch.tensor([[1.0], [2.0], [0.0]]))


def test_a_larger_key_does_not_draw_attention_by_its_size() -> None:
    """Dot-product attention, or a forgotten ||k||^2, would choose the longest key."""
    k = torch.tensor([[1.0, 0.0], [100.0, 0.0]])
    out = l2_attention(torch.tensor([[2.0, 0.0]]), k, torch.eye(2), scale=1.0)
    torch.testing.assert_close(out, torch.tensor([[1.0, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_the_softmax_sum_to_one(dtype: torch.dtype) -> None:
    q, k = 3 * random(2, 7, 4, dtype=dtype), 3 * random(2, 9, 4, dtype=dtype)
    weights = l2_attention(q, k, torch.eye(9, dtype=dtype))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7, dtype=dtype))
    assert not torch.allclose(weights.sum(-2), torch.ones(2, 9, dtype=dtype)), "columns need not"


def test_default_scale_is_one_over_the_root_of_the_features() -> None:
    q, k, v = random(3, 16), random(4, 16), random(4, 2)
    torch.testing.assert_close(l2_attention(q, k, v), by_definition(q, k, v, scale=0.25))


def test_one_key_is_always_attended_to() -> None:
    v = random(2, 1, 3)
    torch.testing.assert_close(l2_attention(random(2, 4, 5), random(2, 1, 5), v), v.expand(2, 4, 3))


@pytest.mark.parametrize(
    ("q", "k", "v", "out"),
    [
        ((2, 0, 3), (2, 4, 3), (2, 4, 5), (2, 0, 5)),
        ((0, 4, 3), (0, 6, 3), (0, 6, 5), (0, 4, 5)),
        ((0, 4, 3), (1, 6, 3), (6, 5), (0, 4, 5)),
        ((2, 4, 3), (2, 6, 3), (2, 6, 0), (2, 4, 0)),
    ],
    ids=["no query", "no batch", "no batch, broadcast", "no value"],
)
def test_empty(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], out: tuple[int, ...]) -> None:
    leaves = [random(*shape).requires_grad_() for shape in (q, k, v)]
    result = l2_attention(*leaves)
    assert result.shape == out
    result.sum().backward()
    assert all(leaf.grad is not None and not leaf.grad.any() for leaf in leaves)


def test_strides_do_not_matter() -> None:
    q, k, v = random(2, 5, 3), random(2, 6, 3), random(2, 6, 4)
    expected = by_definition(q, k, v)
    for stretch in (_transposed, _every_second, _last_of_two):
        torch.testing.assert_close(l2_attention(stretch(q), stretch(k), stretch(v)), expected)
    shared = random(6, 3)
    torch.testing.assert_close(l2_attention(q, shared.expand(2, 6, 3), v), by_definition(q, shared.repeat(2, 1, 1), v))


def _transposed(x: Tensor) -> Tensor:
    return x.mT.contiguous().mT


def _every_second(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=-1)[..., ::2]


def _last_of_two(x: Tensor) -> Tensor:
    return torch.stack([torch.full_like(x, torch.nan), x], dim=-1)[..., 1]


def eager(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What one writes without thought for precision: every step in the dtype of the inputs."""
    scores = 2 * q @ k.mT - k.square().sum(-1).unsqueeze(-2)
    return torch.softmax(q.shape[-1] ** -0.5 * scores, dim=-1) @ v


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_as_accurate_as_the_dtype_allows(
    dtype: torch.dtype, spread: float, assert_as_accurate: Callable[[Tensor, Tensor, Tensor], None]
) -> None:
    q, k, v = ((spread * random(4, 65, 64)).to(dtype) for _ in range(3))
    assert_as_accurate(l2_attention(q, k, v), eager(q, k, v), by_definition(q, k, v))


def test_norms_of_the_keys_are_kept_in_float32() -> None:
    """The squared norms are near 64, where neighbours in bfloat16 are 1/2 apart."""
    q, k, v = (random(4, 65, 64, dtype=torch.bfloat16) for _ in range(3))
    exact = by_definition(q, k, v)
    assert (l2_attention(q, k, v).double() - exact).abs().max() < 1e-2
    assert (eager(q, k, v).double() - exact).abs().max() > 2e-2, "or this test would show nothing"


@pytest.mark.parametrize("origin", [300, 30000])
@pytest.mark.parametrize("tied", [False, True])
def test_tokens_may_lie_far_from_the_origin(
    tied: bool, origin: float, assert_as_accurate: Callable[[Tensor, Tensor, Tensor], None]
) -> None:
    """As accurate as among tokens at the origin, but for what a shift rounds away beforehand."""
    q, k, v = (random(2, 65, 32) for _ in range(3))
    q, k = ((origin + x).float() for x in (q, k))  # by now rounded, and given so to both
    k = q if tied else k
    near_q, near_k = ((x - origin).float() for x in (q, k))  # exact
    exact = by_definition(q, k, v)
    assert_as_accurate(l2_attention(q, None if tied else k, v.float()), eager(near_q, near_k, v.float()), exact)
    assert (eager(q, k, v.float()) - exact).abs().max() > 1e-3, "or this test would show nothing"


def test_one_token_far_from_the_others_costs_them_nothing(
    assert_as_accurate: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    q, v = random(2, 65, 64, dtype=torch.float32), random(2, 65, 64, dtype=torch.float32)
    q[:, 0] += 1e4
    exact = by_definition(q, None, v)[:, 1:]
    assert_as_accurate(l2_attention(q, None, v)[:, 1:], eager(q, q, v)[:, 1:], exact)


def test_large_scores_do_not_overflow() -> None:
    q, k = 1e3 * random(4, 3, dtype=torch.float32), 1e3 * random(5, 3, dtype=torch.float32)
    out = l2_attention(q, k, torch.ones(5, 2))
    torch.testing.assert_close(out, torch.ones(4, 2))


@pytest.mark.parametrize("scale", [None, 0.7, -0.7])
def test_the_distance_itself_in_place_of_its_square(scale: float | None) -> None:
    q, k, v = 2 * random(3, 4, 5), 2 * random(3, 6, 5), random(3, 6, 2)
    distances = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1).sqrt()
    weights = torch.softmax(-(5**-0.5 if scale is None else scale) * distances, dim=-1)
    torch.testing.assert_close(l2_attention(q, k, v, scale=scale, metric="euclidean"), weights @ v)


def test_a_negative_scale_attends_to_the_farthest_key() -> None:
    k, v = torch.tensor([[0.0], [1.0], [9.0]]), torch.eye(3)
    for metric in ("sqeuclidean", "euclidean"):
        out = l2_attention(torch.tensor([[0.5]]), k, v, scale=-20.0, metric=metric)
        torch.testing.assert_close(out, v[2:])
