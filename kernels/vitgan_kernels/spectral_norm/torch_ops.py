"""The compiled spectral normalisation as PyTorch operators: schemas, shapes without values, autograd, torch.compile.

- `spectral_norm_` moves u and v in place: one call of the extension. It is what runs in eager mode.
- `spectral_norm` leaves them alone. torch.compile turns the first into it and copies of what it returns.
- `spectral_norm_backward` is the gradient of both. Where a derivative of it is wanted (create_graph=True), or it
  is mapped over, `closed_form` computes it instead.

All return the scaled weights, sigma (L,), and u[0], v[0], u[1], ... after the iterations in one tensor, for the
backward pass: the next call moves u and v while this one's graph may still wait.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels.spectral_norm import closed_form, native

Result = tuple[list[Tensor], Tensor, Tensor]

_ARGUMENTS = "Tensor? sigma_init, int n_iterations, float eps, ScalarType? dtype"
_RESULTS = "(Tensor[] scaled, Tensor sigma, Tensor vectors)"

_library = torch.library.Library("vitgan_kernels", "FRAGMENT")
_library.define(
    f"spectral_norm_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, {_ARGUMENTS}) -> {_RESULTS}",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    f"spectral_norm(Tensor[] weights, Tensor[] u, Tensor[] v, {_ARGUMENTS}) -> {_RESULTS}",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "spectral_norm_backward(Tensor[] grads, Tensor[] weights, Tensor vectors, Tensor sigma, Tensor? sigma_init, "
    "Tensor? grad_sigma) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)
spectral_norm_ = torch.ops.vitgan_kernels.spectral_norm_.default
spectral_norm = torch.ops.vitgan_kernels.spectral_norm.default
spectral_norm_backward = torch.ops.vitgan_kernels.spectral_norm_backward.default


def _forward_in_place(*args: Any) -> Result:
    return native.spectral_norm(*args, in_place=True)


def _forward(*args: Any) -> Result:
    return native.spectral_norm(*args, in_place=False)


def _forward_shapes(
    weights: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    sigma_init: Tensor | None,
    n_iterations: int,
    eps: float,
    dtype: torch.dtype | None,
) -> Result:
    scaled = [torch.empty_like(native.as_it_is_read(weight), dtype=dtype) for weight in weights]
    vectors = weights[0].new_empty(sum(x.numel() for x in (*u, *v)))
    return scaled, weights[0].new_empty(len(weights)), vectors


def _backward_shapes(_grads: list[Tensor], weights: list[Tensor], *_: Any) -> list[Tensor]:
    return [torch.empty_like(native.as_it_is_read(weight)) for weight in weights]


for _device in ("CPU", "CUDA"):
    _library.impl("spectral_norm_", _forward_in_place, _device)
    _library.impl("spectral_norm", _forward, _device)
    _library.impl("spectral_norm_backward", native.spectral_norm_backward, _device)
for _name, _shapes in (
    ("spectral_norm_", _forward_shapes),
    ("spectral_norm", _forward_shapes),
    ("spectral_norm_backward", _backward_shapes),
):
    torch.library.register_fake(f"vitgan_kernels::{_name}", _shapes, lib=_library)


class _Differentiable(torch.autograd.Function):
    """Either forward operator, with the gradient in the weights."""

    @staticmethod
    def forward(ctx: Any, op: Callable[..., Result], others: tuple[Any, ...], *weights: Tensor) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            scaled, sigma, vectors = op(list(weights), *others)
        ctx.save_for_backward(vectors, sigma, others[2], *weights)
        constant = [x for x, wanted in zip(scaled, ctx.needs_input_grad[2:], strict=True) if not wanted]
        ctx.mark_non_differentiable(vectors, *constant)
        ctx.set_materialize_grads(False)
        ctx.scaled_dtype = scaled[0].dtype
        return vectors, sigma, *scaled

    @staticmethod
    def backward(ctx: Any, _: None, grad_sigma: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        vectors, sigma, sigma_init, *weights = ctx.saved_tensors
        given = [
            torch.zeros_like(weight, dtype=ctx.scaled_dtype) if grad is None else grad
            for grad, weight in zip(grads, weights, strict=True)
        ]
        plain = torch.is_grad_enabled() or any(map(_is_batched, (*given, grad_sigma)))
        gradients = closed_form.gradients if plain else spectral_norm_backward
        results = gradients(given, weights, vectors, sigma, sigma_init, grad_sigma)
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(result if want else None for result, want in zip(results, wanted, strict=True))


def _is_batched(grad: Tensor | None) -> bool:
    """Under torch.func.vmap, or is_grads_batched=True."""
    if grad is None:
        return False
    functorch: Any = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(grad) or functorch.is_legacy_batchedtensor(grad)


def _autograd_of(op: Callable[..., Result]) -> Callable[..., Result]:
    def run(weights: list[Tensor], *others: Any) -> Result:
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            vectors, sigma, *scaled = _Differentiable.apply(op, others, *weights)
            return scaled, sigma, vectors
        with torch._C._AutoDispatchBelowAutograd():
            return op(weights, *others)

    return run


_library.impl("spectral_norm_", _autograd_of(spectral_norm_), "Autograd")
_library.impl("spectral_norm", _autograd_of(spectral_norm), "Autograd")


def _no_second_order(_ctx: Any, *_grads: Any) -> None:
    raise RuntimeError("spectral_norm_backward: the operator itself has no derivative; closed_form.gradients has")


torch.library.register_autograd("vitgan_kernels::spectral_norm_backward", _no_second_order, lib=_library)


def _counting_changes(keyset: torch._C.DispatchKeySet, weights: list[Tensor], u: Any, v: Any, *others: Any) -> Result:
    """autograd must notice a u or v that it had saved and that has moved since."""
    if others[1] > 0:
        torch.autograd.graph.increment_version([*u, *v])
    with torch._C._AutoDispatchBelowADInplaceOrView():
        after = keyset & torch._C._after_ADInplaceOrView_keyset
        return spectral_norm_.redispatch(after, weights, u, v, *others)


_library.impl("spectral_norm_", _counting_changes, "ADInplaceOrView", with_keyset=True)


@spectral_norm_.py_functionalize_impl
def _functionalised(
    ctx: Any, weights: list[Tensor], u: list[Tensor], v: list[Tensor], sigma_init: Any, n_iterations: int, *others: Any
) -> Result:
    """For torch.compile: the operator that changes nothing, and the vectors that it returns copied into u and v."""
    args = ctx.unwrap_tensors((weights, u, v, sigma_init))
    with ctx.redispatch_to_next():
        scaled, sigma, vectors = spectral_norm(*args, n_iterations, *others)
        given = [x for pair in zip(u, v, strict=True) for x in pair]
        moved = vectors.split([x.shape[0] for x in given])
    if n_iterations > 0:
        for old, new in zip(given, moved, strict=True):
            ctx.replace(old, new.clone())
            ctx.commit_update(old)
            ctx.sync(old)
    return ctx.wrap_tensors((scaled, sigma, vectors))
