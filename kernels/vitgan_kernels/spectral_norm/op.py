"""The public function: argument checks and the choice of an implementation."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vitgan_kernels.backends import Implementation, Operator, always
from vitgan_kernels.checks import check_finite_number, check_flag, check_list, check_tensors, without_autocast
from vitgan_kernels.spectral_norm import native, reference, torch_ops


def _compiled(
    weights: list[Tensor],
    u: list[Tensor],
    v: list[Tensor],
    *,
    sigma_init: Tensor | None = None,
    n_iterations: int = 1,
    eps: float = 1e-12,
    update: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:
    if update:
        scaled, sigma, _ = torch_ops.spectral_norm_(weights, u, v, sigma_init, n_iterations, eps, dtype)
    else:
        scaled, sigma, _ = torch_ops.spectral_norm(weights, u, v, sigma_init, 0, eps, dtype)
    return scaled, sigma


def _reference(*args: Any, **options: Any) -> tuple[list[Tensor], Tensor]:
    if not (options["update"] and torch._C._are_functorch_transforms_active()):
        return reference.spectral_norm(*args, **options)
    try:
        return reference.spectral_norm(*args, **options)
    except RuntimeError as error:
        if not re.search("in-?place|out=", str(error)):
            raise
        raise RuntimeError(
            "spectral_norm: under this transform of torch.func u and v cannot move in place: call it with "
            "update=False, or put the model in evaluation mode"
        ) from error


def _can_run_cpp(weights: Sequence[Tensor], *vectors: Any, **options: Any) -> tuple[bool, str]:
    if weights[0].device.type != "cpu":
        return False, f"it works on the CPU, the weights are on {weights[0].device}"
    if weights[0].dtype not in (torch.float32, torch.float64):
        return False, f"it takes float32 and float64, the weights are {weights[0].dtype}"
    if options.get("dtype") not in (None, weights[0].dtype):
        return False, f"its scaled weights have the dtype of the weights, {options['dtype']} was asked for"
    ok, why = _can_run_compiled(weights, *vectors, **options)
    return (ok, why) if not ok else _is_built()


def _can_run_cuda(weights: Sequence[Tensor], *vectors: Any, **options: Any) -> tuple[bool, str]:
    if weights[0].device.type != "cuda":
        return False, f"it works on CUDA devices, the weights are on {weights[0].device}"
    if weights[0].dtype != torch.float32:
        return False, f"it takes float32, the weights are {weights[0].dtype}"
    if options.get("dtype") not in (None, torch.float32, torch.bfloat16, torch.float16):
        return False, f"its scaled weights are float32, bfloat16 or float16, {options['dtype']} was asked for"
    ok, why = _can_run_compiled(weights, *vectors, **options)
    return (ok, why) if not ok else _runs_on(weights[0].device.index)


def _can_run_compiled(
    weights: Sequence[Tensor], u: Sequence[Tensor], v: Sequence[Tensor], **options: Any
) -> tuple[bool, str]:
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return False, "it has no forward mode and no torch.func"
    sigma_init = options.get("sigma_init")
    if sigma_init is not None and sigma_init.requires_grad:
        return False, "it has gradients in the weights only, and sigma_init requires one"
    for name, tensors in (("weights", weights), ("u", u), ("v", v)):
        for i, tensor in enumerate(tensors):
            if _is_wrapper(tensor):
                return False, f"{name}[{i}] is a {type(tensor).__name__}; it takes plain tensors"
            if name != "weights" and not tensor.is_contiguous():
                return False, f"{name}[{i}] has strides {tensor.stride()}; it takes contiguous u and v"
    return True, ""


def _is_wrapper(tensor: object) -> bool:
    return is_traceable_wrapper_subclass(tensor)


def _is_built() -> tuple[bool, str]:
    return native.available()


def _runs_on(device: int) -> tuple[bool, str]:
    return native.device_available(device)


# torch.compiler.assume_constant_result does just this, after an import of seconds that only compiled code needs.
_is_built._dynamo_marked_constant = True  # type: ignore[attr-defined]
_runs_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
        dtype: of the scaled weights; None means that of the weights.
        backend: see `use_backend`.

    Returns:
        The L scaled weights in their own shapes, and sigma (L,), which is always of the weights' dtype. A weight of
        zeros (a residual branch that starts closed) has sigma 0 and no direction to scale in: it comes back NaN, as
        from PyTorch's own, and an update makes its u and v zero, which stay so. Normalise it once it is not zero.

    Raises:
        TypeError: a tensor is not floating point, or the dtypes differ.
        ValueError: the lists differ in length; shapes, devices, n_iterations, eps or backend are not legal; an update
            is given one vector twice; or (cpp and cuda) a u or v overlaps with anything else. Weights may share storage
            with each other.
        RuntimeError: an update under a transform of torch.func that maps over the weights, or has forward mode in them.

    Everything is computed in the weights' dtype; the compiled implementations take norms and inner products in double.
    Equal inputs give equal bits, on the CPU whatever the number of threads (cpp).

    Derivatives, in the weights (and where the reference runs, sigma_init), with u and v constant: reverse mode of order
    one, fused; of higher orders composed of PyTorch's operations. Under forward mode and torch.func the reference runs.
    """
    args, options = _arguments(
        weights, u, v, sigma_init=sigma_init, n_iterations=n_iterations, eps=eps, update=update, dtype=dtype
    )
    with without_autocast(args[0][0]):
        chosen = OPERATOR.select(backend, *args, **options).backend
        return _reference(*args, **options) if chosen == "reference" else _compiled(*args, **options)


def _arguments(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    *,
    sigma_init: Tensor | None = None,
    n_iterations: int = 1,
    eps: float = 1e-12,
    update: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the implementations take, checked."""
    weights, u, v = (check_list("spectral_norm", n, x) for n, x in (("weights", weights), ("u", u), ("v", v)))
    if not weights or not len(weights) == len(u) == len(v):
        raise ValueError(
            f"spectral_norm: weights, u and v need one entry a matrix, got {len(weights)}, {len(u)} and {len(v)}"
        )
    named = {f"weights[{i}]": w for i, w in enumerate(weights)}
    named |= {f"u[{i}]": x for i, x in enumerate(u)} | {f"v[{i}]": x for i, x in enumerate(v)}
    check_tensors("spectral_norm", optional="sigma_init", **named, sigma_init=sigma_init)
    for i, (weight, u_l, v_l) in enumerate(zip(weights, u, v, strict=True)):
        _check_matrix(i, weight, u_l, v_l)
    if update and not torch.compiler.is_compiling():
        _check_apart(u, v)
    if sigma_init is not None and sigma_init.shape != (len(weights),):
        raise ValueError(f"spectral_norm: sigma_init must be ({len(weights)},), got {tuple(sigma_init.shape)}")
    check_settings("spectral_norm", n_iterations, eps)
    check_flag("spectral_norm", "update", update)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"spectral_norm: dtype must be a floating-point dtype or None, got {dtype!r}")
    options = {"sigma_init": sigma_init, "n_iterations": n_iterations, "eps": eps, "update": update, "dtype": dtype}
    return (weights, u, v), options


def check_settings(op: str, n_iterations: int, eps: float) -> None:
    """Raise ValueError unless both are legal."""
    if not isinstance(n_iterations, int) or isinstance(n_iterations, bool) or n_iterations < 0:
        raise ValueError(f"{op}: n_iterations must be an integer of at least 0, got {n_iterations!r}")
    check_finite_number(op, "eps", eps)
    if eps <= 0:
        raise ValueError(f"{op}: eps must be positive, got {eps}")


def _check_apart(u: Sequence[Tensor], v: Sequence[Tensor]) -> None:
    """The compiled implementations look at memory; this is for all, and finds the one tensor given twice."""
    vectors = [*u, *v]
    if len({id(x) for x in vectors}) == len(vectors):
        return
    names = [f"u[{i}]" for i in range(len(u))] + [f"v[{i}]" for i in range(len(v))]
    for i, vector in enumerate(vectors):
        for j in range(i):
            if vectors[j] is vector:
                raise ValueError(f"spectral_norm: {names[j]} and {names[i]} are one tensor and share memory; clone one")


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


OPERATOR = Operator(
    "spectral_norm",
    _arguments,
    [
        Implementation("cuda", _compiled, _can_run_cuda),
        Implementation("cpp", _compiled, _can_run_cpp),
        Implementation("reference", _reference, always),
    ],
)
