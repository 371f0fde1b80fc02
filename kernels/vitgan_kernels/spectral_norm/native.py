"""The compiled extension, on tensors: power iteration of one matrix in C++.

`vitgan_kernels._native` takes raw addresses and includes no PyTorch header; here tensors are checked and
handed over. It is loaded at the first call, so this module imports, and `available` explains, where it was
not built.
"""

import importlib
from types import ModuleType

import torch
from torch import Tensor

_MODULE = "vitgan_kernels._native"
_DTYPES = {torch.float32: "power_iteration_float32", torch.float64: "power_iteration_float64"}


def available() -> tuple[bool, str]:
    """Whether the compiled extension can be used, and how it was built or else what to do about it."""
    try:
        info = _load().build_info()
    except RuntimeError as error:
        return False, str(error)
    return True, f"{_MODULE} is built: {info['compiler']}, {info['standard']}, {info['flags']}"


def build_info() -> dict[str, str]:
    """The `compiler`, `standard` and `flags` of the compiled extension.

    Raises:
        RuntimeError: the extension is not there or cannot be loaded.
    """
    return dict(_load().build_info())


def power_iteration(weight: Tensor, u: Tensor, v: Tensor, n_iterations: int = 1, eps: float = 1e-12) -> Tensor:
    """`n_iterations` times, in place: v <- normalise(W^T u), u <- normalise(W v). Then sigma = u^T W v.

    normalise(x) is x / max(||x||, eps). Not differentiable: u and v are constants of spectral normalisation,
    and sigma comes without a graph. Equal inputs give equal bits.

    Args:
        weight: (out, in), contiguous, float32 or float64, on the CPU.
        u: (out,), of the same dtype, contiguous; overwritten.
        v: (in,), of the same dtype, contiguous; overwritten.
        n_iterations: zero leaves u and v as they are.
        eps: the smallest norm divided by.

    Returns:
        sigma, a scalar tensor of the weight's dtype.

    Raises:
        ValueError: a tensor does not fit this description, or two of them share memory.
        RuntimeError: the extension is not there or cannot be loaded.

    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", algorithm 1.
    """
    _check(weight, u, v)
    function = getattr(_load(), _DTYPES[weight.dtype])
    sigma = function(weight.data_ptr(), *weight.shape, u.data_ptr(), v.data_ptr(), n_iterations, eps)
    if n_iterations > 0:
        # the extension writes behind PyTorch's back; autograd must still notice a u or v that it had saved
        torch.autograd.graph.increment_version((u, v))
    return torch.tensor(sigma, dtype=weight.dtype)


def _load() -> ModuleType:
    try:
        return importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name != _MODULE:
            raise
        raise RuntimeError(
            f"{_MODULE} is not built: install a C++ compiler and Python's headers "
            "(on Debian and Ubuntu: apt install g++ python3-dev), then install vitgan again from its source; "
            "`pip install -v` shows why a build did not happen"
        ) from error
    except ImportError as error:
        raise RuntimeError(f"{_MODULE} cannot be loaded ({error}): install vitgan again on this machine") from error


def _check(weight: Tensor, u: Tensor, v: Tensor) -> None:
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; a matrix (out, in) is needed: use flatten(1)")
    if weight.dtype not in _DTYPES:
        raise ValueError(f"weight is {weight.dtype}; float32 or float64 is needed: convert it")
    expected = {"weight": (weight, weight.shape), "u": (u, weight.shape[:1]), "v": (v, weight.shape[1:])}
    for name, (tensor, shape) in expected.items():
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} is on {tensor.device}; this function works on the CPU: use {name}.cpu()")
        if tensor.shape != shape:
            given, needed, matrix = tuple(tensor.shape), tuple(shape), tuple(weight.shape)
            raise ValueError(f"{name} has shape {given}; {needed} is needed for a weight {matrix}")
        if tensor.dtype != weight.dtype:
            raise ValueError(f"{name} is {tensor.dtype}, but weight is {weight.dtype}: convert one of them")
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}; it must be contiguous: use {name}.contiguous()")
    for name, tensor in (("u", u), ("v", v)):
        if tensor.requires_grad:
            raise ValueError(f"{name} requires grad, but is overwritten: give {name}.detach()")
