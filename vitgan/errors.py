"""The errors that a user of the command line can expect; each message says what is wrong and what to do."""


class VitganError(RuntimeError):
    """The base of this package's own errors."""


class InputError(VitganError, ValueError):
    """Something that was given does not fit."""


class CheckpointError(VitganError):
    """A run or checkpoint cannot be used."""


class TrainingError(VitganError):
    """Training cannot start or go on."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error says, of a device or of the CPU, for which PyTorch has no class."""
    import torch  # not above: the command line reads this file before it imports anything slow

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator: " in str(error)


def first_line(error: BaseException) -> str:
    """What an error says first, or its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def check(name: str, value: float, fits: bool, limit: str) -> None:
    """ValueError that names a setting and its limit, unless it fits."""
    if not fits:
        raise InputError(f"{name} must be {limit}, got {value}")
