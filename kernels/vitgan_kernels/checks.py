"""Argument checks shared by the operators. Each message says what was given and what is needed."""

import math
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from numbers import Real
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # PyTorch has no arithmetic in narrower ones


def check_tensors(op: str, *, optional: str = "", **tensors: Tensor | None) -> None:
    """Raise unless all given are tensors of one of the DTYPES, the same, on one device.

    A tensor may be None where its name begins with `optional`.
    """
    first_name, first = "", None
    for name, tensor in tensors.items():
        if tensor is None and optional and name.startswith(optional):
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{op}: {name} must be floating point, got {tensor.dtype}: convert it to float16, bfloat16, float32 or "
                f"float64, e.g. {name}.float()"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            raise TypeError(f"{op}: {name} must be a dense tensor, got one of layout {tensor.layout}: make it dense")
        if first is None:
            first_name, first = name, tensor
        elif tensor.dtype != first.dtype:
            raise TypeError(
                f"{op}: {first_name} is {first.dtype} but {name} is {tensor.dtype}: convert one, or use torch.autocast"
            )
        elif tensor.device != first.device:
            raise ValueError(
                f"{op}: {first_name} is on {first.device} but {name} is on {tensor.device}: move one of them"
            )


def check_list(op: str, name: str, value: Iterable[Any]) -> list[Any]:
    """The value as a list; TypeError where it is one tensor, or nothing that can be listed."""
    if isinstance(value, Tensor) or not isinstance(value, Iterable):
        raise TypeError(f"{op}: {name} must be a list of tensors, got {type(value).__name__}")
    return list(value)


def check_flag(op: str, name: str, value: bool) -> None:
    """Raise TypeError unless the value is True or False: "no" is true to Python."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_sizes(op: str, **sizes: int) -> None:
    """Raise ValueError unless all are whole numbers of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{op}: {name} must be a whole number of at least 1, got {size!r}")


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast fp32/fp16/bf16 tensors to the autocast dtype of their device, as PyTorch does for a matrix product."""
    device = next((t.device.type for t in tensors if isinstance(t, Tensor)), "cpu")
    if not _autocasts(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


def without_autocast(tensor: Tensor) -> AbstractContextManager[None]:
    """A block in which autocast leaves the precision of operations on the tensor's device alone."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: str) -> bool:
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


# torch.compile of PyTorch 2.11 cannot trace the query, whose answer a device never changes.
_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def check_finite_number(op: str, name: str, value: object) -> float:
    """The value as a float, a symbolic one as it is; ValueError unless it is a finite real number, NumPy's included."""
    if isinstance(value, torch.SymFloat | torch.SymInt):  # a condition on it would tie the graph to its present value
        return value  # type: ignore[return-value]
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        number = math.inf
    if not -sys.float_info.max <= number <= sys.float_info.max:  # torch.compile traces this, and not math.isfinite
        raise ValueError(f"{op}: {name} must be a finite number, got {_shown(value)}")
    return number


def _shown(value: object) -> str:
    """Its repr, which Python refuses for an integer of more than 4300 digits."""
    if isinstance(value, int) and abs(value) > sys.float_info.max:
        return f"an integer of {value.bit_length()} bits, more than a float holds"
    return repr(value)
