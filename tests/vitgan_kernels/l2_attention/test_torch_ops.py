"""L2 attention as PyTorch knows it, in eager mode and registered: derivatives, opcheck, and what they refuse."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.library import opcheck

from vitgan_kernels import l2_attention, native_support, triton_support
from vitgan_kernels.backends import BackendError
from vitgan_kernels.l2_attention import torch_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = [
    pytest.param("cpp", marks=pytest.mark.skipif(not native_support.available()[0], reason="no extension")),
    pytest.param("triton", marks=pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")),
]


def registered(*args: Any) -> Tensor:
    return torch_ops.OPS.l2_attention.default(*args)[0]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


def tensors(tied: bool, duplicates: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
    q, v = leaf(2, 2, 5, 3), leaf(2, 2, 5, 2)
    if duplicates:
        q = q.detach()[..., [0, 1, 1, 2, 1], :].requires_grad_()
    return q, None if tied else leaf(2, 2, 5, 3), v


@pytest.mark.parametrize("way", [torch_ops.l2_attention, registered])
@pytest.mark.parametrize("euclidean", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_to_third_order(tied: bool, euclidean: bool, way: Callable[..., Tensor]) -> None:
    q, k, v = (None if x is None else x.detach()[:1, :1, :4].requires_grad_() for x in tensors(tied))
    assert q is not None
    assert v is not None
    inputs = (q, v) if k is None else (q, v, k)

    def call(q: Tensor, v: Tensor, k: Tensor | None = None) -> Tensor:
        return way(q, k, v, 0.3, euclidean, "closed_form")

    def gradient(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*inputs).sin().sum(), inputs, create_graph=True)

    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)
    assert gradgradcheck(gradient, inputs)


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("kernels", ["closed_form", *FUSED])
def test_agrees_with_the_reference_to_third_order(kernels: str, metric: Any, duplicates: bool) -> None:
    """Duplicate tokens included, where finite differences of a distance see its kink."""
    dtype = torch.float64 if kernels == "closed_form" else torch.float32
    q, _, v = (None if x is None else x.detach().to(DEVICE, dtype).requires_grad_() for x in tensors(True, duplicates))
    assert q is not None
    assert v is not None
    results = []
    for out in (
        torch_ops.l2_attention(q, None, v, 0.3, metric == "euclidean", kernels),
        l2_attention(q, None, v, scale=0.3, metric=metric, backend="reference"),
    ):
        first = torch.autograd.grad(out.square().sum(), (q, v), create_graph=True)
        second = torch.autograd.grad(first[0].sin().sum() + first[1].sin().sum(), (q, v), create_graph=True)
        third = torch.autograd.grad(second[0].sin().sum() + second[1].sin().sum(), (q, v))
        results.append((out, *first, *second, *third))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(("tied", "euclidean"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kernels", ["closed_form", *FUSED])
def test_opcheck(tied: bool, euclidean: bool, kernels: str) -> None:
    dtype = torch.float64 if kernels == "closed_form" else torch.bfloat16
    q, k, v = (None if x is None else x.detach().to(DEVICE, dtype).requires_grad_() for x in tensors(tied))
    assert q is not None
    assert v is not None
    settings = (0.3, euclidean, kernels)
    opcheck(torch_ops.OPS.l2_attention.default, (q, k, v, *settings))
    out, lse = (x.detach() for x in torch_ops.OPS.l2_attention.default(q, k, v, *settings))
    grad = torch.randn_like(out, requires_grad=True)
    opcheck(torch_ops.OPS.l2_attention_backward.default, (grad, q, k, v, out, lse, *settings))
    cotangents = tuple(None if x is None else torch.randn_like(x) for x in (q, k, v))
    plain = tuple(None if x is None else x.detach() for x in (grad, q, k, v))
    opcheck(torch_ops.OPS.l2_attention_double_backward.default, (*cotangents, *plain, out, lse, *settings))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kernels", ["closed_form", *FUSED])
def test_results_are_laid_out_as_the_compiler_was_told(tied: bool, kernels: str) -> None:
    """Tokens outside heads in memory, and features that are not adjacent: inputs that the kernels copy."""
    dtype = torch.float64 if kernels == "closed_form" else torch.bfloat16
    (q, k, v), (a, b, c) = (
        [torch.randn(2, width, 5, 3, dtype=dtype, device=DEVICE).permute(0, 3, 2, 1) for width in (4, 4, 2)]
        for _ in range(2)
    )
    keys, keys_cotangent, settings = None if tied else k, None if tied else b, (0.3, False, kernels)
    out, lse = torch_ops.OPS.l2_attention.default(q, keys, v, *settings)
    given = (torch.randn_like(out), q, keys, v, out, lse, *settings)
    for operator, arguments in (
        (torch_ops.OPS.l2_attention.default, (q, keys, v, *settings)),
        (torch_ops.OPS.l2_attention_backward.default, given),
        (torch_ops.OPS.l2_attention_double_backward.default, (a, keys_cotangent, c, *given)),
    ):
        opcheck(operator, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("kernels", FUSED)
def test_forward_mode_and_torch_func_never_reach_the_kernels(kernels: str) -> None:
    x = torch.randn(2, 5, 4, device=DEVICE)

    def call(x: Tensor) -> Tensor:
        return l2_attention(x, None, x, backend=kernels)

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
        registered(forward_ad.make_dual(q, q), None, v, 0.3, False, "closed_form")


@pytest.mark.parametrize("kernels", FUSED)
def test_batched_gradients(kernels: str) -> None:
    """Autograd's own vmap (is_grads_batched) hands the backward a batch of gradients, of either order."""
    q = torch.randn(1, 1, 5, 4, device=DEVICE, requires_grad=True)
    out = l2_attention(q, None, q, backend=kernels)
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    for result in (out, first):
        grads = torch.randn(3, *result.shape, device=DEVICE)
        expected = torch.stack([torch.autograd.grad(result, q, grad, retain_graph=True)[0] for grad in grads])
        actual = torch.autograd.grad(result, q, grads, is_grads_batched=True, retain_graph=True)[0]
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("kernels", FUSED)
def test_a_vectorised_hessian(kernels: str) -> None:
    """Both derivatives under autograd's vmap."""
    q = torch.randn(1, 1, 3, 2, device=DEVICE)
    one_by_one, vectorised = (
        torch.autograd.functional.hessian(
            lambda q: l2_attention(q, None, q, backend=kernels).square().sum(), q, vectorize=vectorize
        )
        for vectorize in (False, True)
    )
    torch.testing.assert_close(vectorised, one_by_one)
