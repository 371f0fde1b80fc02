"""The public function: argument checks and the choice of an implementation."""

from collections.abc import Sequence

from torch import Tensor

from vitgan_kernels.backends import Implementation, Operator, always
from vitgan_kernels.checks import check_finite_number, check_tensors, without_autocast
from vitgan_kernels.spectral_norm import reference

OPERATOR = Operator("spectral_norm", [Implementation("reference", reference.spectral_norm, always)])


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    sigma_init: Tensor | None = None,
    n_iterations: int = 1,
    eps: float = 1e-12,
    update: bool = True,
    backend: str | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Spectral normalisation of all matrices of a model at once (Miyato et al., 2018; improved: ViTGAN section 3.2).

    With update, u and v move in place, n_iterations times: v <- normalise(W^T u), u <- normalise(W v), where
    normalise(x) = x / max(||x||, eps). Then sigma = u^T W v, and each weight is scaled to sigma_init * W / sigma.

    Args:
        weights: L weights (out, ...), each seen as a matrix (out, in).
        u, v: L left and right vectors, (out,) and (in,), changed in place by an update.
        sigma_init: (L,) the norm each matrix is scaled to; None means 1, the classic form.
        n_iterations: power iterations a call.
        eps: smallest norm that normalise divides by.
        update: move u and v (training), or use them as they are (evaluation).
        backend: see `use_backend`.

    Returns:
        The L scaled weights in their own shapes, and sigma (L,). A weight of zeros has sigma 0 and comes back NaN.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: the lists differ in length, or shapes, devices, n_iterations or eps are not legal.

    Derivatives, in the weights with u and v constant: reverse mode to any order, forward mode.
    """
    weights, u, v = list(weights), list(u), list(v)
    if not weights or not len(weights) == len(u) == len(v):
        raise ValueError(
            f"spectral_norm: weights, u and v need one entry a matrix, got {len(weights)}, {len(u)} and {len(v)}"
        )
    named = {f"weights[{i}]": w for i, w in enumerate(weights)}
    named |= {f"u[{i}]": x for i, x in enumerate(u)} | {f"v[{i}]": x for i, x in enumerate(v)}
    check_tensors("spectral_norm", optional="sigma_init", **named, sigma_init=sigma_init)
    for i, (weight, u_l, v_l) in enumerate(zip(weights, u, v, strict=True)):
        _check_matrix(i, weight, u_l, v_l)
    if sigma_init is not None and sigma_init.shape != (len(weights),):
        raise ValueError(f"spectral_norm: sigma_init must be ({len(weights)},), got {tuple(sigma_init.shape)}")
    if not isinstance(n_iterations, int) or n_iterations < 0:
        raise ValueError(f"spectral_norm: n_iterations must be an integer of at least 0, got {n_iterations!r}")
    check_finite_number("spectral_norm", "eps", eps)
    if eps <= 0:
        raise ValueError(f"spectral_norm: eps must be positive, got {eps}")
    options = {"sigma_init": sigma_init, "n_iterations": n_iterations, "eps": eps, "update": update}
    with without_autocast(weights[0]):
        return OPERATOR.select(backend, weights, u, v, **options).run(weights, u, v, **options)


def _check_matrix(i: int, weight: Tensor, u: Tensor, v: Tensor) -> None:
    if weight.ndim < 2 or weight.numel() == 0:
        raise ValueError(f"spectral_norm: weights[{i}] must be (out, in, ...) and not empty, got {tuple(weight.shape)}")
    out_features = weight.shape[0]
    in_features = weight.numel() // out_features
    if u.shape != (out_features,) or v.shape != (in_features,):
        raise ValueError(
            f"spectral_norm: weights[{i}] {tuple(weight.shape)} is a matrix ({out_features}, {in_features}), so u must "
            f"be ({out_features},) and v ({in_features},), got {tuple(u.shape)} and {tuple(v.shape)}"
        )
    if u.requires_grad or v.requires_grad:
        raise ValueError(f"spectral_norm: u[{i}] and v[{i}] are constants and must not require a gradient: detach them")
