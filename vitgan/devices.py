"""What PyTorch computes with: devices, CPU threads, seeds."""

import operator
import os
import shlex
import shutil

import torch
from torch import Tensor

from vitgan.errors import InputError, TrainingError

MAX_THREADS = 1024


def pick_device(name: str | None) -> torch.device:
    """The device of that name, or CUDA where there is one. Raises TrainingError where it cannot be had."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise TrainingError(f"--device {name!r} names no device: give cpu, cuda, cuda:1, ...") from None
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise TrainingError(f"device {name!r} cannot be used here ({first_line}): choose another --device") from error
    return device


def use_threads(count: int | None) -> None:
    """Compute with so many CPU threads; None leaves the choice to PyTorch. ValueError where it cannot be."""
    check_threads(count)
    if count is not None:
        torch.set_num_threads(count)


def check_threads(count: int | None) -> None:
    """ValueError unless it is a number of threads, or None."""
    if count is not None and not 1 <= count <= MAX_THREADS:
        raise InputError(f"threads must be at least 1 and at most {MAX_THREADS}, got {count}")


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """A host's tensor on the device. The copy waits for nothing that the device has still to do."""
    if device.type == "cuda":  # only from pinned memory does it not wait
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def wait_for(device: torch.device) -> None:
    """Let the device finish what it was given: it may be behind by many steps."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_compiler() -> None:
    """Raise TrainingError where torch.compile has no C++ compiler for the code that it writes for the CPU."""
    command = shlex.split(os.environ.get("CXX", ""))[:1] or ["g++"]
    if shutil.which(command[0]) is None:
        raise TrainingError(
            f"--compile needs a C++ compiler, and there is no {command[0]} here: install one (Debian and Ubuntu: apt "
            "install g++), name yours in CXX, or leave --compile out"
        )


SEEDS = range(-(2**63), 2**63)
"""Those that PyTorch takes."""


def check_seed(seed: int) -> int:
    """The seed as an int. TypeError or ValueError unless random numbers can start from it."""
    try:
        number = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be a whole number, got {seed!r}") from None
    if not SEEDS.start <= number < SEEDS.stop:
        raise InputError(f"seed must be from {SEEDS.start} to {SEEDS.stop - 1}, got {seed}")
    return number


def another_seed(seed: int) -> int:
    """The next one, for numbers that are to be independent of those that `seed` gives."""
    return seed + 1 if seed + 1 in SEEDS else SEEDS.start
