"""What the operators need to know before they call the compiled extension: whether they can, and what to do if not.

`vitgan_kernels._native` takes raw addresses and includes no PyTorch header. It is loaded at the first call, so that
everything imports, and `available` explains, where it was not built.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from vitgan_kernels import triton_support

MODULE = "vitgan_kernels._native"


def load() -> ModuleType:
    """The extension module.

    Raises:
        RuntimeError: it is not there, or cannot be loaded; the text says what to do.
    """
    try:
        return importlib.import_module(MODULE)
    except ModuleNotFoundError as error:
        if error.name != MODULE:
            raise
        raise RuntimeError(
            f"{MODULE} is not built: install a C++ compiler and Python's headers "
            "(on Debian and Ubuntu: apt install g++ python3-dev), then install vitgan again from its source; "
            "`pip install -v` shows why a build did not happen"
        ) from error
    except ImportError as error:
        raise RuntimeError(f"{MODULE} cannot be loaded ({error}): install vitgan again on this machine") from error


def build_info() -> dict[str, str]:
    """The `compiler`, `standard`, `flags`, `levels` of CPU kernels and `cuda` (architectures, or empty) of the build.

    Raises:
        RuntimeError: as `load`.
    """
    return dict(load().build_info())


def available() -> tuple[bool, str]:
    """Whether CPU kernels can run, and at which level of `csrc/levels.h`, or else what to do about it."""
    return _available()


# as in triton_support: torch.compile cannot trace an import, and the answer never changes
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _available() -> tuple[bool, str]:
    try:
        return True, f"compiled for {load().cpu_level()}"
    except RuntimeError as error:
        return False, str(error)


def unable(tensor: Tensor, dtypes: tuple[torch.dtype, ...]) -> str | None:
    """Why compiled CPU kernels of these dtypes cannot serve the tensor, or None if they can."""
    if not tensor.is_cpu:
        return f"the tensors are on {tensor.device.type}; the kernels run on the CPU"
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"the kernels take {names}, not {str(tensor.dtype).removeprefix('torch.')}"
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return "the call is exported, for where there are no kernels"
    able, why = available()
    return triton_support.transform() if able else why


def address(tensor: Tensor | None) -> int:
    """Where a tensor's numbers begin; 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
