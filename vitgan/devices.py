"""Where to compute."""

import torch

from vitgan.errors import TrainingError


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
