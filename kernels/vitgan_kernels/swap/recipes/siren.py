"""Plain SIRENs (Sitzmann et al., 2020): sin(omega * linear(x)), one after the other."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vitgan_kernels.modulated_siren import modulated_linear, modulated_siren
from vitgan_kernels.swap.recipe import ModuleRecipe, attribute, original_forward, parameter_of

OMEGA = ("omega_0", "omega", "w0")


class SirenStack(ModuleRecipe):
    """An nn.Sequential of sine layers, at the end perhaps an nn.Linear: one call of `modulated_siren`.

    A sine layer has a `linear` and an `omega_0` (or `omega`, `w0`), or is lucidrains' with `weight`, `bias` and an
    `activation` that has a `w0`. Frequencies that differ are multiplied into the weights.
    """

    looks_for = "SIRENs (sin(omega * linear(x)), in an nn.Sequential)"
    runs = "modulated_siren"

    def recognises(self, module: nn.Module) -> bool:
        return isinstance(module, nn.Sequential) and len(module) > 1 and _layers(module) is not None

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(5, _weight_and_bias(module[0])[0].shape[1])]

    def bypassed(self, module: nn.Module) -> Iterable[nn.Module]:
        return [part for part in module.modules() if part is not module]

    def calm(self, module: Any) -> None:
        _calm([layer for layer, omega in _layers(module) or [] if omega is not None])

    @staticmethod
    def forward(module: Any, x: Tensor) -> Tensor:
        layers = _layers(module)
        if layers is None:  # changed since, or a slice of the one that was replaced
            return original_forward(module)(x)
        omegas = [omega for _, omega in layers]
        omega = float(omegas[0])  # type: ignore[arg-type]
        weights, biases = [], []
        for layer, own in layers:
            weight, bias = _weight_and_bias(layer)
            ratio = 1.0 if own is None else own / omega
            weights.append(weight if ratio == 1 else weight * ratio)
            biases.append(bias if ratio == 1 or bias is None else bias * ratio)
        points = x.reshape(1, -1, x.shape[-1])
        styles = [weight.new_ones(1, weight.shape[1]) for weight in weights]
        final = None if omegas[-1] is None else "sine"
        out = modulated_siren(points, weights, styles, biases, omega=omega, final_activation=final)
        return out.reshape(*x.shape[:-1], out.shape[-1])


class SirenLayer(ModuleRecipe):
    """One sine layer outside of a stack."""

    looks_for = "SIREN layers (sin(omega * linear(x)))"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        return _omega(module) is not None

    def inputs(self, module: nn.Module) -> list[tuple[int, ...]]:
        return [(5, _weight_and_bias(module)[0].shape[1])]

    def bypassed(self, module: nn.Module) -> Iterable[nn.Module]:
        return module.children()

    def calm(self, module: nn.Module) -> None:
        _calm([module])

    @staticmethod
    def forward(module: Any, x: Tensor) -> Tensor:
        weight, bias = _weight_and_bias(module)
        points = x.reshape(1, -1, x.shape[-1])
        style = weight.new_ones(1, weight.shape[1])
        out = modulated_linear(points, weight, style, bias, activation="sine", omega=float(_omega(module) or 0))
        return out.reshape(*x.shape[:-1], out.shape[-1])


def _layers(sequence: nn.Sequential) -> list[tuple[nn.Module, float | None]] | None:
    """The layers with their frequencies (None for the linear one at the end), or None where one is something else."""
    layers = [(layer, _omega(layer)) for layer in sequence]
    if not layers or layers[0][1] is None or any(omega is None for _, omega in layers[:-1]):
        return None
    last, omega = layers[-1]
    return layers if omega is not None or type(last) is nn.Linear else None


def _omega(layer: nn.Module) -> float | None:
    """The frequency of a sine layer, or None where it is something else."""
    linear = getattr(layer, "linear", None)
    if isinstance(linear, nn.Linear) and len(list(layer.children())) == 1:
        omega = attribute(layer, *OMEGA)
    elif parameter_of(layer, "weight", 2) is not None and not isinstance(layer, nn.Linear):
        omega = attribute(getattr(layer, "activation", nn.Identity()), *OMEGA)
    else:
        return None
    number = isinstance(omega, int | float) and not isinstance(omega, bool)
    return float(omega) if number and omega != 0 else None


def _calm(layers: list[nn.Module]) -> None:
    """Divide the frequencies so that no layer makes a small difference larger."""
    norms = [float(torch.linalg.matrix_norm(_weight_and_bias(layer)[0].double(), 2)) for layer in layers]
    steepest = max([1.0, *(abs(_omega(layer) or 0) * norm for layer, norm in zip(layers, norms, strict=True))])
    for layer in layers:
        holder = layer if any(hasattr(layer, name) for name in OMEGA) else getattr(layer, "activation", layer)
        for name in OMEGA:
            if hasattr(holder, name):
                setattr(holder, name, getattr(holder, name) / steepest)


def _weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    holder: Any = attribute(layer, "linear") if isinstance(getattr(layer, "linear", None), nn.Linear) else layer
    return holder.weight, getattr(holder, "bias", None)
