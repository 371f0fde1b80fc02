"""The gradient of spectral normalisation written out in PyTorch, which has derivatives of every order itself."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Tensor,
    sigma: Tensor,
    sigma_init: Tensor | None,
    grad_sigma: Tensor | None,
) -> list[Tensor]:
    """dW = (goal / sigma) G + (g - goal <G, W> / sigma^2) u v^T, with G the gradient of the scaled weight, g of sigma.

    Args:
        grads: L gradients G of the scaled weights.
        weights: L weights W (out, ...).
        vectors: u[0], v[0], u[1], ... in one tensor, constants.
        sigma: (L,), as a function of the weights where a derivative of the result is wanted.
        sigma_init: (L,) the goals; None means 1.
        grad_sigma: (L,) the gradients g; None means 0.
    """
    results = []
    start = 0
    for i, (grad, weight) in enumerate(zip(grads, weights, strict=True)):
        rows = weight.shape[0]
        u, v = vectors[start : start + rows + weight.numel() // rows].split([rows, weight.numel() // rows])
        start += rows + len(v)
        grad = grad.to(weight.dtype)
        scaled_grad = grad / sigma[i] if sigma_init is None else grad * (sigma_init[i] / sigma[i])
        along = -(scaled_grad * (weight / sigma[i])).sum()  # sigma^2 leaves the range of float32
        if grad_sigma is not None:
            along = along + grad_sigma[i]
        results.append(scaled_grad + (along * torch.outer(u, v)).view(weight.shape))
    return results
