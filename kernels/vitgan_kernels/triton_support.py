"""What the operators need to know before they launch a Triton kernel: whether they can, and in which precision."""

import functools
import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

INSTALLED = importlib.util.find_spec("triton") is not None
# Triton fixes this for a kernel when it is decorated, so it is read once, like there.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def unable(*tensors: Tensor | None, interpreted: bool = False) -> str | None:
    """Why Triton kernels cannot serve these tensors, or None if they can.

    Args:
        *tensors: the arguments of the call; None stands for one that was left out.
        interpreted: ask of Triton's interpreter on the CPU (TRITON_INTERPRET=1) instead of a GPU.
    """
    first = next(tensor for tensor in tensors if tensor is not None)
    if not INSTALLED:
        return "Triton is not installed (pip install 'vitgan[kernels]')"
    if interpreted and not INTERPRETED:
        return "Triton's interpreter is off (TRITON_INTERPRET=1, set before the import, turns it on)"
    if first.device.type != ("cpu" if interpreted else "cuda"):
        return f"the tensors are on {first.device.type}; the kernels run on CUDA and ROCm devices"
    if first.dtype not in DTYPES:
        return f"the kernels take float16, bfloat16 and float32, not {str(first.dtype).removeprefix('torch.')}"
    return transform()


def transform() -> str | None:
    """Why no kernel may run now, if so: it would drop tangents, or know nothing of a transform, without a word."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active; the kernels serve reverse mode by torch.autograd"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active; the kernels serve reverse mode"
    return None


# What torch.compiler.assume_constant_result does, which would import torch._dynamo, and with it Triton, for everyone.
transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def float32_precision() -> str:
    """The `input_precision` of a product of float32 matrices, by PyTorch's own setting: "ieee" or "tf32"."""
    chosen = torch.backends.cuda.matmul.fp32_precision
    if chosen == "none":
        chosen = torch.backends.fp32_precision  # type: ignore[attr-defined]
    return "tf32" if chosen == "tf32" else "ieee"


def target() -> str:
    """What this PyTorch compiles for: "cuda" or "hip" (ROCm). Tiles differ with the shared memory of the two."""
    return "cuda" if torch.version.hip is None else "hip"


def generation() -> int:
    """The major compute capability of the current CUDA device; 9, Hopper's, where there is none."""
    return _generation(torch.cuda.current_device()) if torch.cuda.is_available() else 9


@functools.cache
def _generation(device: int) -> int:
    return torch.cuda.get_device_capability(device)[0]
