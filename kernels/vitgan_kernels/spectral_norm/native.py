"""The compiled extension, on tensors: the spectral normalisation of all matrices of a model in C++ or CUDA.

The arguments are those that `vitgan_kernels.spectral_norm` has checked.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitgan_kernels import native_support
from vitgan_kernels.native_support import MODULE, address

# Whether a call on a CUDA device may be one launch with barriers across the grid, where the device can.
cooperative = True


def available() -> tuple[bool, str]:
    """Whether the compiled extension can be used, and how it was built or else what to do about it."""
    try:
        info = native_support.build_info()
    except RuntimeError as error:
        return False, str(error)
    cuda = f"CUDA for {info['cuda']}" if info["cuda"] else "without CUDA"
    return True, f"{MODULE} is built: {info['compiler']}, {info['standard']}, {info['flags']}; {cuda}"


@functools.cache
def device_available(device: int) -> tuple[bool, str]:
    """Whether its CUDA kernels can run on the device of this number, or why not and what to do about it."""
    ok, why = available()
    if not ok:
        return False, why
    cuda = native_support.build_info()["cuda"]
    if not cuda:
        what_to_do = "install nvcc, then install vitgan again from its source"
        return False, f"{MODULE} was built without CUDA: {what_to_do} (`pip install -v` shows what the build found)"
    try:
        native_support.load().check_cuda_device(device)
    except RuntimeError as error:
        problem = f"the kernels, built for {cuda}, cannot run on cuda:{device} ({error})"
        return False, f"{problem}: build for it with VITGAN_CUDA_ARCHS, or update the driver"
    return True, f"CUDA, built for {cuda}"


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma_init: Tensor | None,
    n_iterations: int,
    eps: float,
    dtype: torch.dtype | None,
    *,
    in_place: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Power iteration, sigma and the scaled weights of all matrices, as `vitgan_kernels.spectral_norm` defines them.

    A weight is read where it lies if it is contiguous or a matrix whose transpose is; any other is copied first.

    Args:
        weights, u, v, sigma_init, n_iterations, eps, dtype: as there; u and v contiguous.
        in_place: move u and v, or leave them alone and return the moved vectors only.

    Returns:
        The scaled weights, laid out as the weights are read; sigma (L,); and u[0], v[0], u[1], ... after the
        iterations, in one new tensor. No graph.

    Raises:
        ValueError: what is written overlaps with something else.
        RuntimeError: the extension is not there or cannot be loaded, or an error of CUDA.
    """
    first = weights[0]
    if in_place:
        vectors = first.new_empty(sum(x.numel() for x in (*u, *v)))
    else:
        vectors = torch.cat([x for pair in zip(u, v, strict=True) for x in pair])
    weights = [as_it_is_read(weight) for weight in weights]
    scaled = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    sigma = first.new_empty(len(weights))
    goals = None if sigma_init is None else sigma_init.contiguous()
    table = []
    for weight, result, u_l, v_l, (u_copy, v_copy) in zip(weights, scaled, u, v, _pairs(vectors, weights), strict=True):
        moved = (u_l.data_ptr(), v_l.data_ptr()) if in_place else (u_copy, v_copy)
        table.append((*_memory(weight), weight.data_ptr(), *moved, u_copy, v_copy, result.data_ptr()))
    arguments = (address(goals), sigma.data_ptr(), n_iterations, eps)
    module = native_support.load()
    try:
        if _on_cuda(first):
            workspace = _workspace(module.spectral_norm_workspace, weights)
            module.spectral_norm_cuda(table, _name(scaled[0].dtype), *arguments, *_launch(workspace))
        else:
            run = module.spectral_norm_float32 if first.dtype == torch.float32 else module.spectral_norm_float64
            run(table, *arguments, torch.get_num_threads())
    except ValueError as error:
        raise ValueError(f"spectral_norm: {error}") from None
    return scaled, sigma, vectors


def spectral_norm_backward(
    grads: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Tensor,
    sigma: Tensor,
    sigma_init: Tensor | None,
    grad_sigma: Tensor | None,
) -> list[Tensor]:
    """The gradients of all weights, from those of the scaled weights and of sigma (None: zero).

    A gradient that does not lie in memory as its weight is read is copied first.
    """
    weights = [as_it_is_read(weight) for weight in weights]
    grads = [_laid_out_as(weight, grad) for weight, grad in zip(weights, grads, strict=True)]
    results = [torch.empty_like(weight) for weight in weights]
    goals = None if sigma_init is None else sigma_init.contiguous()
    sigma, grad_sigma = sigma.contiguous(), None if grad_sigma is None else grad_sigma.contiguous()
    table = [
        (*_memory(weight), weight.data_ptr(), *pair, grad.data_ptr(), result.data_ptr())
        for weight, grad, result, pair in zip(weights, grads, results, _pairs(vectors, weights), strict=True)
    ]
    arguments = (address(goals), sigma.data_ptr(), address(grad_sigma))
    module = native_support.load()
    if _on_cuda(vectors):
        workspace = _workspace(module.spectral_norm_backward_workspace, weights)
        module.spectral_norm_backward_cuda(table, _name(grads[0].dtype), *arguments, *_launch(workspace))
    else:
        float32 = vectors.dtype == torch.float32
        run = module.spectral_norm_backward_float32 if float32 else module.spectral_norm_backward_float64
        run(table, *arguments, torch.get_num_threads())
    return results


def as_it_is_read(weight: Tensor) -> Tensor:
    """The weight itself if it, or its transpose, is contiguous; otherwise a contiguous copy."""
    return weight if _is_transposed(weight) else weight.contiguous()


def _is_transposed(weight: Tensor) -> bool:
    return weight.ndim == 2 and not weight.is_contiguous() and weight.t().is_contiguous()


def _laid_out_as(weight: Tensor, grad: Tensor) -> Tensor:
    return grad.t().contiguous().t() if _is_transposed(weight) else grad.contiguous()


def _memory(weight: Tensor) -> tuple[int, int, bool]:
    """Rows and columns as they lie in memory, and whether that is the transpose of the weight."""
    rows = weight.shape[0]
    cols = weight.numel() // rows
    return (cols, rows, True) if _is_transposed(weight) else (rows, cols, False)


def _pairs(vectors: Tensor, weights: Sequence[Tensor]) -> list[tuple[int, int]]:
    """The addresses of each u and v in the one tensor that holds them all."""
    pairs, address, size = [], vectors.data_ptr(), vectors.element_size()
    for weight in weights:
        rows = weight.shape[0]
        pairs.append((address, address + rows * size))
        address += (rows + weight.numel() // rows) * size
    return pairs


def _on_cuda(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _workspace(bytes_for: Callable[[list[tuple[int, int]]], int], weights: Sequence[Tensor]) -> Tensor:
    """Scratch on the weights' device, in units of eight bytes, for its alignment."""
    size = bytes_for([_memory(weight)[:2] for weight in weights])
    return torch.empty(-(-size // 8), dtype=torch.float64, device=weights[0].device)


def _launch(workspace: Tensor) -> tuple[int, int, int, int, bool]:
    """Where and how a CUDA call runs. The workspace has to live until the call has returned, and no longer."""
    return (*_device_and_stream(workspace), workspace.data_ptr(), 8 * workspace.numel(), cooperative)


def _device_and_stream(tensor: Tensor) -> tuple[int, int]:
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
