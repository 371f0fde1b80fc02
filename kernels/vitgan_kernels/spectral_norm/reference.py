"""The definition of (improved) spectral normalisation by power iteration."""

from collections.abc import Sequence

import torch
from torch import Tensor


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    sigma_init: Tensor | None = None,
    n_iterations: int = 1,
    eps: float = 1e-12,
    update: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:
    """sigma_init * W / sigma(W) for each W, with sigma = u^T W v after the power iteration has moved u and v in place.

    Shapes as in `vitgan_kernels.spectral_norm`. u and v are constants for every derivative. All is computed in the
    dtype of the weights, with sums as PyTorch takes them.
    """
    matrices = [weight.reshape(weight.shape[0], -1) for weight in weights]
    if update:
        with torch.no_grad():
            for matrix, u_l, v_l in zip(matrices, u, v, strict=True):
                for _ in range(n_iterations):
                    _normalise(matrix.t() @ u_l, eps, out=v_l)
                    _normalise(matrix @ v_l, eps, out=u_l)
    sigmas = [torch.dot(u_l, matrix @ v_l) for matrix, u_l, v_l in zip(matrices, *_copies(u, v), strict=True)]
    scaled = [weight / sigma for weight, sigma in zip(weights, sigmas, strict=True)]
    if sigma_init is not None:
        scaled = [weight * goal for weight, goal in zip(scaled, sigma_init.unbind(), strict=True)]
    return [weight.to(weight.dtype if dtype is None else dtype) for weight in scaled], torch.stack(sigmas)


def _normalise(x: Tensor, eps: float, *, out: Tensor) -> None:
    """x / max(|x|, eps), where squares of x may leave the range of its dtype."""
    largest = x.abs().amax()
    largest = torch.where(largest > 0, largest, 1)
    norm = largest * torch.linalg.vector_norm(x / largest)
    torch.div(x, norm.clamp_min(eps), out=out)  # torch.func lets out= pass, where copy_ is an error


def _copies(u: Sequence[Tensor], v: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """u and v for a graph to keep until its backward pass, while the next call moves the ones given.

    torch.compile drops a clone as if it did nothing, and would keep the vector itself. A concatenation it has to write.
    """
    vectors = torch.cat([*u, *v]).split([x.shape[0] for x in (*u, *v)])
    return vectors[: len(u)], vectors[len(u) :]
