"""A modulated SIREN with its styles: points and a conditioning vector in, values out."""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from vitgan_kernels.backends import check_backend
from vitgan_kernels.checks import check_finite_number, check_flag, check_sizes
from vitgan_kernels.modulated_siren.op import modulated_siren


class ModulatedSiren(nn.Module):
    """A SIREN whose every layer is modulated by an affine map of a conditioning vector (ViTGAN section 3.3).

    The initialisation gives every sine an argument of unit variance, whatever omega is, as long as x has a mean
    square of 1/2 (as sines have) and the styles are near 1; the output then has a standard deviation near 1/3,
    or with demodulation near 2/3.

    Args:
        in_features: features of a point, I.
        hidden_features: width of the hidden layers.
        out_features: values of a point, for example colours.
        style_features: size of the conditioning vector.
        hidden_layers: number of layers with a sine; one linear layer follows.
        omega: frequency of the sines. With demodulation it has no part: demodulated rows have unit norm, so sqrt(2)
            is the frequency that gives unit variance.
        demodulate: as in `modulated_linear`.
        equalised: hold unit-variance weights and scale them in the forward pass (Karras et al., 2018), so that Adam
            moves them by the same relative step at any width and omega. The scale is the whole initialisation:
            it replaces SIREN's own instead of coming on top of it.
        linear: makes the affine style layers from (in, out); their bias is set to 1.
        backend: see `use_backend`.

    Shape: x (B, P, I) or (P, I), style (B, style_features) -> (B, P, out_features).
    Derivatives: those of `modulated_siren`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int,
        style_features: int,
        *,
        hidden_layers: int = 1,
        omega: float = 30.0,
        demodulate: bool = False,
        equalised: bool = False,
        linear: Callable[[int, int], nn.Linear] = nn.Linear,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        check_sizes(
            "ModulatedSiren",
            in_features=in_features,
            hidden_features=hidden_features,
            out_features=out_features,
            style_features=style_features,
            hidden_layers=hidden_layers,
        )
        check_finite_number("ModulatedSiren", "omega", omega)
        if omega <= 0:
            raise ValueError(f"ModulatedSiren: omega must be positive, got {omega}")
        check_flag("ModulatedSiren", "demodulate", demodulate)
        check_backend(backend)
        self.omega = math.sqrt(2) if demodulate else omega
        self.demodulate = demodulate
        self.backend = backend
        widths = [in_features] + [hidden_features] * hidden_layers + [out_features]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.to_styles = nn.ModuleList()
        self.weight_scales: list[float] = []
        self.bias_scales: list[float] = []
        for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
            hidden = layer < hidden_layers
            std = math.sqrt(2 / fan_in) / self.omega if hidden else math.sqrt(0.25 / fan_in)
            uniform = (torch.rand(fan_out, fan_in) * 2 - 1) * math.sqrt(3)
            self.weights.append(nn.Parameter(uniform if equalised else uniform * std))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
            self.weight_scales.append(std if equalised else 1.0)
            self.bias_scales.append(1 / self.omega if equalised and hidden else 1.0)
            to_style = linear(style_features, fan_in)
            nn.init.ones_(to_style.bias)
            self.to_styles.append(to_style)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        return modulated_siren(
            x,
            [weight * scale for weight, scale in zip(self.weights, self.weight_scales, strict=True)],
            [to_style(style) for to_style in self.to_styles],
            [bias * scale for bias, scale in zip(self.biases, self.bias_scales, strict=True)],
            omega=self.omega,
            demodulate=self.demodulate,
            backend=self.backend,
        )
