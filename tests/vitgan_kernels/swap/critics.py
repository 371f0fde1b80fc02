"""A critic under PyTorch's spectral norm, and what is looked at in it."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

from vitgan_kernels.swap.recipes import grouped


def layer(inputs: int, outputs: int, **settings: Any) -> nn.Linear:
    return cast(nn.Linear, torch_spectral_norm(nn.Linear(inputs, outputs), **settings))


def critic(
    dtype: torch.dtype = torch.float64, normalise: Callable[[nn.Module], nn.Module] = torch_spectral_norm
) -> nn.Sequential:
    return nn.Sequential(
        normalise(nn.Conv2d(3, 8, 3, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        normalise(nn.Conv2d(8, 12, 3, stride=2, groups=2)),
        nn.Tanh(),
        nn.Flatten(),
        normalise(nn.Linear(12, 16)),
        nn.Tanh(),
        normalise(nn.Linear(16, 1)),
    ).to(dtype)


def state(module: nn.Module, name: str = "weight") -> _SpectralNorm:
    return cast(_SpectralNorm, grouped.parametrizations(module, name)[0])


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def assert_same_tensors(
    given: dict[str, Any], wanted: dict[str, Any], rtol: float | None = None, atol: float | None = None
) -> None:
    assert list(given) == list(wanted)
    torch.testing.assert_close(given, wanted, rtol=rtol, atol=atol)
