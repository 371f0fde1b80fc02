"""The definition of the modulated linear layer and of the modulated SIREN."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


def modulated_linear(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    omega: float = 30.0,
    demodulate: bool = False,
    eps: float = 1e-8,
) -> Tensor:
    """a = demod * (weight * style) x + bias, then sin(omega * a) if activation is "sine".

    Computed in at least float32 and returned in the dtype of x. Shapes as in `vitgan_kernels.modulated_linear`.
    """
    precise = torch.promote_types(x.dtype, torch.float32)
    weights, styles = weight.to(precise), style.to(precise)
    shift = None if bias is None else bias.to(precise)
    if demodulate:
        demod = torch.rsqrt(styles.square() @ weights.square().t() + eps)
        a = _modulated_product(x.to(precise), weights, styles) * demod.unsqueeze(-2)
        a = a if shift is None else a + shift
    else:
        a = _modulated_product(x.to(precise), weights, styles, shift)
    return (torch.sin(omega * a) if activation == "sine" else a).to(x.dtype)


def _modulated_product(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor | None = None) -> Tensor:
    """sum_i weight[o,i] * style[b,i] * x[b,p,i] + bias[o]: the style multiplies the operand that is smallest then."""
    batch, (outputs, inputs), points = style.shape[0], weight.shape, x.shape[-2]
    if x.ndim == 2 and outputs <= batch:
        shared = (x.unsqueeze(1) * weight).reshape(points * outputs, inputs)
        return linear(style, shared, None if bias is None else bias.repeat(points)).view(batch, points, outputs)
    if outputs <= points:
        product = x @ (weight * style.unsqueeze(1)).transpose(1, 2)
        # Of each sample first: then its gradient is summed in two steps, the second of few terms.
        return product if bias is None else product + bias.expand(batch, 1, -1)
    return linear(x * style.unsqueeze(1), weight, bias)


def modulated_siren(
    x: Tensor,
    weights: Sequence[Tensor],
    styles: Sequence[Tensor],
    biases: Sequence[Tensor | None] | None = None,
    *,
    omega: float = 30.0,
    demodulate: bool = False,
    final_activation: str | None = None,
) -> Tensor:
    """A stack of modulated linear layers: a sine after each but the last."""
    biases = [None] * len(weights) if biases is None else biases
    last = len(weights) - 1
    for layer, (weight, style, bias) in enumerate(zip(weights, styles, biases, strict=True)):
        activation = final_activation if layer == last else "sine"
        x = modulated_linear(x, weight, style, bias, activation=activation, omega=omega, demodulate=demodulate)
    return x
