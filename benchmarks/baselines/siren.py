"""Other ways to a modulated SIREN: hidden layers of sin(omega (W (s * x) + b)), a last one without the sine.

Points x (P, I) are those of every patch; weights are W (O, I), b (O,), styles s (B, I), a layer each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear

OMEGA = 30.0


def layers(*parameters: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(weight, bias, style) of each layer, from one flat list."""
    count = len(parameters) // 3
    return list(zip(parameters[:count], parameters[count : 2 * count], parameters[2 * count :], strict=True))


def scaled_operand(x: Tensor, *parameters: Tensor) -> Tensor:
    """The style times the input, and one matrix product for all patches."""
    for index, (weight, bias, style) in enumerate(stack := layers(*parameters)):
        x = linear(x * style.unsqueeze(1), weight, bias)
        if index < len(stack) - 1:
            x = torch.sin(OMEGA * x)
    return x


def grouped_convolution(x: Tensor, *parameters: Tensor) -> Tensor:
    """Weights of its own for each patch, applied as the groups of a convolution: StyleGAN2's form."""
    batch = parameters[-1].shape[0]
    x = x.mT.expand(batch, -1, -1)
    for index, (weight, bias, style) in enumerate(stack := layers(*parameters)):
        own = (weight * style.unsqueeze(1)).flatten(0, 1).unsqueeze(-1)
        x = conv1d(x.reshape(1, -1, x.shape[-1]), own, groups=batch).view(batch, -1, x.shape[-1]) + bias.unsqueeze(-1)
        if index < len(stack) - 1:
            x = torch.sin(OMEGA * x)
    return x.mT


def plain(x: Tensor, *parameters: Tensor) -> Tensor:
    """A SIREN of the same size without styles, the floor of what an unfused form can reach. Styles get no gradient."""
    batch = parameters[-1].shape[0]
    x = x.expand(batch, -1, -1)
    for index, (weight, bias, style) in enumerate(stack := layers(*parameters)):
        x = linear(x, weight, bias) + 0 * style.sum()
        if index < len(stack) - 1:
            x = torch.sin(OMEGA * x)
    return x


def split(parameters: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights, biases and styles."""
    weights, biases, styles = zip(*layers(*parameters), strict=True)
    return list(weights), list(biases), list(styles)
