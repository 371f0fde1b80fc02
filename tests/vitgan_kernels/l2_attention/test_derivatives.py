"""The derivatives of l2_attention, to third order, in reverse and forward mode, and under torch.func."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from vitgan_kernels import l2_attention

# PyTorch's own forward mode compiles its formulas with torch.jit when it is first used.


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def duplicates() -> Tensor:
    """Five tokens, three of them the same: distances of exactly zero off the diagonal too."""
    tokens = torch.randn(2, 3, 4, dtype=torch.float64)
    return tokens[:, [0, 1, 1, 2, 1]].requires_grad_()


SHAPES = [
    ((2, 3, 4), (2, 5, 4), (2, 5, 2)),
    ((1, 3), (1, 3), (1, 2)),
    ((4, 1), (3, 1), (3, 1)),
    ((2, 1, 3, 2), (3, 4, 2), (4, 2)),
]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("scale", [None, 0.7])
def test_first_and_second_order(shapes: tuple[tuple[int, ...], ...], scale: float | None) -> None:
    q, k, v = (leaf(*shape) for shape in shapes)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, k, v, scale=scale)

    assert gradcheck(call, (q, k, v), check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(call, (q, k, v), check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("same", [lambda q: None, lambda q: q, lambda q: q.clone()], ids=["None", "q", "a copy"])
@pytest.mark.parametrize("make", [lambda: leaf(2, 4, 3), duplicates], ids=["distinct", "duplicate tokens"])
def test_tied(make: Callable[[], Tensor], same: Callable[[Tensor], Tensor | None]) -> None:
    q, v = make(), leaf(2, 5 if make is duplicates else 4, 2)

    def call(q: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, same(q), v, scale=0.6)

    assert gradcheck(call, (q, v), check_forward_ad=True)
    assert gradgradcheck(call, (q, v), check_fwd_over_rev=True)


def test_queries_that_equal_keys_are_no_special_point() -> None:
    q, v = duplicates(), leaf(2, 5, 2)
    k = q.detach().clone().requires_grad_()
    assert gradcheck(l2_attention, (q, k, v))
    assert gradgradcheck(l2_attention, (q, k, v))


def test_third_order() -> None:
    q, k, v = leaf(2, 3), leaf(3, 3), leaf(3, 2)
    weights = torch.randn(2, 2, dtype=torch.float64)

    def second_order(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = torch.autograd.grad((l2_attention(q, k, v) * weights).sum(), (q, k, v), create_graph=True)
        squares = torch.stack([g.square().sum() for g in first]).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(squares, (q, k, v), create_graph=True)])

    assert gradcheck(second_order, (q, k, v))


@pytest.mark.parametrize("needed", ["q", "k", "v", "qk", "kv", "qv"])
def test_only_what_requires_a_gradient_gets_one(needed: str) -> None:
    tensors = {"q": leaf(2, 3, 4), "k": leaf(5, 4), "v": leaf(2, 5, 2)}
    full = torch.autograd.grad(l2_attention(*tensors.values()).square().sum(), list(tensors.values()))
    some = {name: x.detach().requires_grad_(name in needed) for name, x in tensors.items()}
    l2_attention(*some.values()).square().sum().backward()
    for (name, x), expected in zip(some.items(), full, strict=True):
        if name in needed:
            torch.testing.assert_close(x.grad, expected)
        else:
            assert x.grad is None


def test_no_graph_without_a_gradient() -> None:
    q, k, v = leaf(2, 3, 4), leaf(5, 4), leaf(2, 5, 2)
    assert not l2_attention(q.detach(), k.detach(), v.detach()).requires_grad
    with torch.no_grad():
        assert not l2_attention(q, k, v).requires_grad


def test_tangents_are_not_dropped() -> None:
    """A registered operator under forward mode can return a tangent of zero and no error."""
    primals = tuple(leaf(*shape).detach() for shape in SHAPES[0])
    tangents = tuple(torch.randn_like(x) for x in primals)
    step = 1e-6
    ahead, behind = (l2_attention(*(x + s * t for x, t in zip(primals, tangents, strict=True))) for s in (step, -step))
    expected = (ahead - behind) / (2 * step)
    assert expected.abs().max() > 0.1
    tangent = torch.func.jvp(l2_attention, primals, tangents)[1]
    torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)
    with dual_level():
        q, k, v = (make_dual(x, t) for x, t in zip(primals, tangents, strict=True))
        torch.testing.assert_close(unpack_dual(l2_attention(q, k, v)).tangent, tangent)


def test_torch_func_agrees_with_autograd() -> None:
    q, k, v = (leaf(*shape) for shape in SHAPES[0])

    def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, k, v).square().sum()

    expected = torch.autograd.grad(loss(q, k, v), (q, k, v))
    primals = (q.detach(), k.detach(), v.detach())
    torch.testing.assert_close(torch.func.grad(loss, argnums=(0, 1, 2))(*primals), expected)

    def hessian_times_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        gradient = torch.func.grad(loss)
        return torch.func.jvp(lambda q: gradient(q, k, v), (q,), (torch.ones_like(q),))[1]

    (first,) = torch.autograd.grad(loss(q, k, v), q, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), q)
    torch.testing.assert_close(hessian_times_one(*primals), second)


def test_vmap_is_a_loop() -> None:
    q, k, v = (torch.randn(3, *shape, dtype=torch.float64) for shape in ((2, 4), (5, 4), (5, 2)))
    expected = torch.stack([l2_attention(*one) for one in zip(q, k, v, strict=True)])
    torch.testing.assert_close(torch.vmap(l2_attention)(q, k, v), expected)
    shared = torch.vmap(l2_attention, in_dims=(0, None, None))(q, k[0], v[0])
    torch.testing.assert_close(shared, l2_attention(q, k[0], v[0]))


def test_gradients_of_each_sample() -> None:
    q, v = torch.randn(3, 4, 2, dtype=torch.float64), torch.randn(3, 4, 2, dtype=torch.float64)

    def loss(q: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, None, v).square().sum()

    expected = torch.stack([torch.func.grad(loss)(*one) for one in zip(q, v, strict=True)])
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(q, v), expected)


def test_both_orders_of_a_distance() -> None:
    q, k, v = leaf(2, 3, 4), leaf(2, 5, 4), leaf(2, 5, 2)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return l2_attention(q, k, v, metric="euclidean")

    assert gradcheck(call, (q, k, v), check_forward_ad=True)
    assert gradgradcheck(call, (q, k, v), check_fwd_over_rev=True)


def test_a_distance_of_zero_has_a_derivative_of_zero() -> None:
    q, v = duplicates(), leaf(2, 5, 2)
    out = l2_attention(q, None, v, metric="euclidean")
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert first.isfinite().all()
    assert second.isfinite().all()
    alone = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(l2_attention(alone, None, v[:1, :1], metric="euclidean").sum(), alone)
    assert not gradient.any()
