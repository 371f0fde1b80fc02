"""L2 attention as registered operators: derivatives in float64, opcheck, and what they refuse."""

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck

from vitgan_kernels import l2_attention, triton_support
from vitgan_kernels.backends import BackendError
from vitgan_kernels.l2_attention import torch_ops

needs_triton = pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def tensors(tied: bool, duplicates: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
    q, v = leaf(2, 2, 5, 3), leaf(2, 2, 5, 2)
    if duplicates:
        q = q.detach()[..., [0, 1, 1, 2, 1], :].requires_grad_()
    return q, None if tied else leaf(2, 2, 5, 3), v


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_both_orders(tied: bool, euclidean: bool) -> None:
    q, k, v = tensors(tied)
    inputs = (q, v) if k is None else (q, v, k)

    def call(q: Tensor, v: Tensor, k: Tensor | None = None) -> Tensor:
        return torch_ops.l2_attention(q, k, v, 0.3, euclidean)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_duplicate_tokens() -> None:
    q, _, v = tensors(tied=True, duplicates=True)

    def call(q: Tensor, v: Tensor) -> Tensor:
        return torch_ops.l2_attention(q, None, v, 0.3, False)

    assert gradcheck(call, (q, v))
    assert gradgradcheck(call, (q, v))


@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("duplicates", [False, True])
def test_agrees_with_the_reference(duplicates: bool, euclidean: bool) -> None:
    """To order 2, duplicate tokens included, where finite differences of a distance see its kink."""
    q, _, v = tensors(tied=True, duplicates=duplicates)
    metric = "euclidean" if euclidean else "sqeuclidean"
    results = []
    for out in (
        torch_ops.l2_attention(q, None, v, 0.3, euclidean),
        l2_attention(q, None, v, scale=0.3, metric=metric, backend="reference"),  # type: ignore[arg-type]
    ):
        first = torch.autograd.grad(out.square().sum(), (q, v), create_graph=True)
        second = torch.autograd.grad(sum(x.sin().sum() for x in first), (q, v))  # type: ignore[arg-type]
        results.append((out, *first, *second))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("tied", "euclidean"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_opcheck(tied: bool, euclidean: bool, dtype: torch.dtype) -> None:
    q, k, v = (None if x is None else x.detach().to(dtype).requires_grad_() for x in tensors(tied))
    assert q is not None
    assert v is not None
    settings = (0.3, euclidean)
    opcheck(torch_ops.OPS.l2_attention.default, (q, k, v, *settings))
    out, lse = (x.detach() for x in torch_ops.OPS.l2_attention.default(q, k, v, *settings))
    grad = torch.randn_like(out, requires_grad=True)
    opcheck(torch_ops.OPS.l2_attention_backward.default, (grad, q, k, v, out, lse, *settings))
    cotangents = tuple(None if x is None else torch.randn_like(x) for x in (q, k, v))
    plain = tuple(None if x is None else x.detach() for x in (grad, q, k, v))
    opcheck(torch_ops.OPS.l2_attention_double_backward.default, (*cotangents, *plain, out, lse, *settings))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_results_are_laid_out_as_the_compiler_was_told(tied: bool, dtype: torch.dtype) -> None:
    """Tokens outside heads in memory, and features that are not adjacent: inputs that the kernels copy."""
    (q, k, v), (a, b, c) = (
        [torch.randn(2, width, 5, 3, dtype=dtype).permute(0, 3, 2, 1) for width in (4, 4, 2)] for _ in range(2)
    )
    keys, keys_cotangent, settings = None if tied else k, None if tied else b, (0.3, False)
    out, lse = torch_ops.OPS.l2_attention.default(q, keys, v, *settings)
    given = (torch.randn_like(out), q, keys, v, out, lse, *settings)
    for operator, arguments in (
        (torch_ops.OPS.l2_attention.default, (q, keys, v, *settings)),
        (torch_ops.OPS.l2_attention_backward.default, given),
        (torch_ops.OPS.l2_attention_double_backward.default, (a, keys_cotangent, c, *given)),
    ):
        opcheck(operator, arguments, test_utils="test_faketensor")


def test_a_third_order_is_an_error() -> None:
    q, _, v = tensors(tied=True)
    first = torch.autograd.grad(torch_ops.l2_attention(q, None, v, 0.3, False).sum(), q, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), q, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="to order 2, and a third was asked for"):
        torch.autograd.grad(second.sum(), q)


@needs_triton
def test_forward_mode_and_torch_func_never_reach_the_kernels() -> None:
    x = torch.randn(2, 5, 4, device=DEVICE)

    def call(x: Tensor) -> Tensor:
        return l2_attention(x, None, x, backend="triton")

    for transform in (lambda: torch.func.jvp(call, (x,), (x,)), lambda: torch.vmap(call)(x)):
        with pytest.raises(BackendError, match=r"a torch\.func transform is active"):
            transform()
    with forward_ad.dual_level(), pytest.raises(BackendError, match="forward-mode differentiation is active"):
        call(forward_ad.make_dual(x, x))


def test_a_tangent_that_would_be_lost_is_an_error() -> None:
    """As when a function that was compiled before, without tangents, meets them."""
    q, _, v = (None if x is None else x.detach() for x in tensors(tied=True))
    assert q is not None
    assert v is not None
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="have no forward-mode derivative"):
        torch_ops.l2_attention(forward_ad.make_dual(q, q), None, v, 0.3, False)


@needs_triton
def test_batched_gradients_are_right_or_an_error() -> None:
    """Autograd's own vmap (is_grads_batched) hands the backward operator a batch of gradients."""
    q = torch.randn(1, 1, 5, 4, device=DEVICE, requires_grad=True)
    out = l2_attention(q, None, q, backend="triton")
    grads = torch.randn(3, *out.shape, device=DEVICE)
    expected = torch.stack([torch.autograd.grad(out, q, grad, retain_graph=True)[0] for grad in grads])
    torch.testing.assert_close(torch.autograd.grad(out, q, grads, is_grads_batched=True)[0], expected)


@needs_triton
def test_a_vectorised_hessian() -> None:
    """Both derivatives under autograd's vmap, which `triton_support` cannot see."""
    q = torch.randn(1, 1, 3, 2, device=DEVICE)
    one_by_one, vectorised = (
        torch.autograd.functional.hessian(
            lambda q: l2_attention(q, None, q, backend="triton").square().sum(), q, vectorize=vectorize
        )
        for vectorize in (False, True)
    )
    torch.testing.assert_close(vectorised, one_by_one)
