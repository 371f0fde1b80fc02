"""Linear layers and 1x1 convolutions whose weight is modulated per sample, as in StyleGAN2 and CIPS."""

from typing import Any

from torch import Tensor, nn

from vitgan_kernels.modulated_siren import modulated_linear
from vitgan_kernels.swap.recipe import ModuleRecipe, attribute, parameter_of

DEMODULATE = ("demodulate", "demodulation", "demod")
STYLE = ("modulation", "affine", "to_style")


class ModulatedLinear(ModuleRecipe):
    """demod * (scale * weight * style) x, with style = modulation(w): x (B, P, I), w (B, features) -> (B, P, O).

    The structure: `weight` (O, I) or (1, O, I), a module `modulation` (or `affine`), `demodulate` (or `demodulation`),
    and, if they are there, `scale` (else 1), `eps` (else 1e-8) and a `bias` (O,).
    """

    looks_for = "modulated linear layers (CIPS, StyleGAN2)"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        weight = _one(parameter_of(module, "weight", 2), parameter_of(module, "weight", 3))
        return weight is not None and (weight.ndim == 2 or weight.shape[0] == 1) and _is_modulated(module)

    def inputs(self, module: nn.Module) -> list[tuple[int, ...]]:
        return [(2, 5, attribute(module, "weight").shape[-1]), (2, _style_features(module))]

    @staticmethod
    def forward(module: Any, x: Tensor, style: Tensor) -> Tensor:
        return _modulated(module, x, module.weight.flatten(0, -2), attribute(module, *STYLE)(style))


class ModulatedConv(ModuleRecipe):
    """The same as a 1x1 convolution: x (B, I, H, W) -> (B, O, H, W), with `weight` (1, O, I, 1, 1) or (O, I, 1, 1)."""

    looks_for = "modulated 1x1 convolutions (StyleGAN2, CIPS)"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        weight = _one(parameter_of(module, "weight", 4), parameter_of(module, "weight", 5))
        return weight is not None and (weight.ndim == 4 or weight.shape[0] == 1) and _is_modulated(module)

    def obstacle(self, module: nn.Module) -> str:
        height, width = attribute(module, "weight").shape[-2:]
        if (height, width) != (1, 1):
            return f"its kernel is {height}x{width}; one of 1x1 is a modulated linear layer"
        resampling = [name for name in ("upsample", "downsample", "up", "down") if _resamples(module, name)]
        return f"it resamples ({resampling[0]})" if resampling else ""

    def inputs(self, module: nn.Module) -> list[tuple[int, ...]]:
        return [(2, attribute(module, "weight").shape[-3], 3, 4), (2, _style_features(module))]

    @staticmethod
    def forward(module: Any, x: Tensor, style: Tensor) -> Tensor:
        weight = module.weight.flatten(-3).flatten(0, -2)
        return _as_image(module, x, weight, attribute(module, *STYLE)(style))


class LucidrainsModulatedConv(ModuleRecipe):
    """demod * (weight * (style + 1)) x: x (B, I, H, W), style (B, I) -> (B, O, H, W), with `weight` (O, I, 1, 1).

    The structure (stylegan2-pytorch and its relatives): `weight`, `demod`, `kernel` and `stride`, and no module inside.
    """

    looks_for = "modulated 1x1 convolutions of a style + 1 (stylegan2-pytorch)"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        flags = all(hasattr(module, name) for name in ("demod", "kernel", "stride"))
        return flags and parameter_of(module, "weight", 4) is not None and not list(module.children())

    def obstacle(self, module: Any) -> str:
        if module.kernel != 1:
            return f"its kernel is {module.kernel}x{module.kernel}; one of 1x1 is a modulated linear layer"
        return "" if module.stride == 1 else f"its stride is {module.stride}"

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(2, module.weight.shape[1], 3, 4), (2, module.weight.shape[1])]

    @staticmethod
    def forward(module: Any, x: Tensor, y: Tensor) -> Tensor:
        return _as_image(module, x, module.weight.flatten(1), y + 1)


def _as_image(module: Any, x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    out = _modulated(module, x.flatten(2).transpose(1, 2), weight, style)
    return out.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]).contiguous()


def _modulated(module: Any, x: Tensor, weight: Tensor, style: Tensor) -> Tensor:
    scale, eps = attribute(module, "scale"), attribute(module, "eps")
    return modulated_linear(
        x,
        weight if scale is None else weight * scale,
        style,
        attribute(module, "bias"),
        demodulate=bool(attribute(module, *DEMODULATE)),
        eps=1e-8 if eps is None else eps,
    )


def _is_modulated(module: nn.Module) -> bool:
    scale = attribute(module, "scale")
    return (
        isinstance(attribute(module, *STYLE), nn.Module)
        and isinstance(attribute(module, *DEMODULATE), bool)
        and (scale is None or isinstance(scale, int | float) or (isinstance(scale, Tensor) and scale.numel() == 1))
    )


def _style_features(module: nn.Module) -> int:
    """The size of the conditioning vector: that of the input of the layer that makes the style."""
    features: int = attribute(module, *STYLE).weight.shape[1]
    return features


def _resamples(module: nn.Module, name: str) -> bool:
    factor = getattr(module, name, False)
    return factor is True or (isinstance(factor, int) and factor > 1)


def _one(*candidates: Tensor | None) -> Tensor | None:
    return next((tensor for tensor in candidates if tensor is not None), None)
