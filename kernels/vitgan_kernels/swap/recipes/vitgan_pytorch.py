"""ViTGAN-pytorch's modules, with its mathematics as they are.

Its L2 attention attends to the farthest token, and divides after the softmax; its modulated layer reads the pixels of
a patch in the place of the channels; its spectral norm starts from the same vector in every forward, and is
differentiated through the iteration. All of that is kept: a trained model needs what it was trained with.
"""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vitgan_kernels.l2_attention import l2_attention
from vitgan_kernels.modulated_siren import modulated_linear, modulated_siren
from vitgan_kernels.swap.recipe import ModuleRecipe, attribute, parameter_of

SPECTRAL_EPS = 1e-4


class VitganPytorchAttention(ModuleRecipe):
    """softmax(+||q_i - k_j||) / sqrt(emb_size) @ v: the distance itself, with a plus sign, and rows that sum to less.

    The structure: `qkv` with its features in the order (head, d, qkv), `projection`, `emb_size`, `num_heads`,
    `att_drop`, and `discriminator` True.
    """

    looks_for = "ViTGAN-pytorch's attention"
    runs = 'l2_attention(metric="euclidean", scale=-1)'

    def recognises(self, module: nn.Module) -> bool:
        parts = [getattr(module, name, None) for name in ("qkv", "projection", "att_drop")]
        numbers = [getattr(module, name, None) for name in ("emb_size", "num_heads")]
        return (
            all(isinstance(part, nn.Module) for part in parts)
            and all(isinstance(number, int) and number > 0 for number in numbers)
            and isinstance(getattr(module, "discriminator", None), bool)
        )

    def obstacle(self, module: Any) -> str:
        if not module.discriminator:
            return "its scores are products of queries and keys, as in the generator"
        if getattr(module.att_drop, "p", 0):
            return f"it drops attention weights (p={module.att_drop.p}), which the operator does not keep"
        return ""

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(2, 7, module.emb_size)]

    def bypassed(self, module: Any) -> Iterable[nn.Module]:
        return [module.att_drop]

    @staticmethod
    def forward(module: Any, x: Tensor) -> Tensor:
        q, k, v = rearrange(module.qkv(x), "b n (h d qkv) -> qkv b h n d", h=module.num_heads, qkv=3)
        out = l2_attention(q, k, v, scale=-1.0, metric="euclidean") / module.emb_size**0.5
        return module.projection(rearrange(out, "b h n d -> b n (h d)"))


class VitganPytorchModulatedLinear(ModuleRecipe):
    """demod * (scale * weight * style) x, where x (B, P, I) is read as (B, I, P) and the output (B, O, P) as (B, P, O).

    The structure: `weight` (1, O, I, 1), `scale`, `style_size`, `in_channels`, `out_channels`, `demodulation`, and
    `modulation`, which is None where the style has in_channels features.
    """

    looks_for = "ViTGAN-pytorch's modulated linear layer"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        return _is_modulated(module)

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(2, 5, module.in_channels), (2, module.style_size)]

    @staticmethod
    def forward(module: Any, input: Tensor, style: Tensor) -> Tensor:
        return _scrambled(_product(module, _unscrambled(input), style, omega=None))


class VitganPytorchSineLayer(ModuleRecipe):
    """sin(omega_0 * linear(x, style)) of such a layer."""

    looks_for = "ViTGAN-pytorch's modulated sine layer"
    runs = "modulated_linear"

    def recognises(self, module: nn.Module) -> bool:
        return _is_sine(module)

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        return [(2, 5, module.linear.in_channels), (2, module.linear.style_size)]

    def bypassed(self, module: nn.Module) -> Iterable[nn.Module]:
        return [attribute(module, "linear")]

    def calm(self, module: Any) -> None:
        _calm([module])

    @staticmethod
    def forward(module: Any, input: Tensor, style: Tensor) -> Tensor:
        return _scrambled(_product(module.linear, _unscrambled(input), style, omega=module.omega_0))


class VitganPytorchSiren(ModuleRecipe):
    """A stack of sine layers and a last modulated layer. Coordinates are detached, as they are there.

    Between two layers one's reading undoes the other's, so that the pixels are in their place inside the stack.
    """

    looks_for = "ViTGAN-pytorch's modulated SIREN"
    runs = "modulated_siren"

    def recognises(self, module: nn.Module) -> bool:
        net: Any = getattr(module, "net", None)
        if not isinstance(net, nn.Sequential) or len(net) < 2 or len(list(module.children())) != 1:
            return False
        *hidden, last = net
        return all(_is_sine(layer) for layer in hidden) and (_is_sine(last) or _is_modulated(last))

    def obstacle(self, module: Any) -> str:
        omegas = {layer.omega_0 for layer in module.net if _is_sine(layer)}
        if len(omegas) > 1:
            return f"its layers have different frequencies ({', '.join(map(str, sorted(omegas)))}): each is by itself"
        demodulation = {_linear(layer).demodulation for layer in module.net}
        return "some of its layers are demodulated, others are not: each is by itself" if len(demodulation) > 1 else ""

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        first = module.net[0].linear
        return [(2, 5, first.in_channels), (2, first.style_size)]

    def bypassed(self, module: Any) -> Iterable[nn.Module]:
        return [module.net, *module.net, *(_linear(layer) for layer in module.net)]

    def calm(self, module: Any) -> None:
        _calm([layer for layer in module.net if _is_sine(layer)])

    @staticmethod
    def forward(module: Any, coords: Tensor, style: Tensor) -> Tensor:
        layers = [_linear(layer) for layer in module.net]
        out = modulated_siren(
            _unscrambled(coords.detach()),
            [_weight(layer) for layer in layers],
            [_style(layer, style) for layer in layers],
            omega=float(module.net[0].omega_0),
            demodulate=layers[0].demodulation,
            final_activation="sine" if _is_sine(module.net[-1]) else None,
        )
        return _scrambled(out)


class VitganPytorchSpectralNorm(ModuleRecipe):
    """Its wrapper of a layer: sigma_init * W / sigma(W), where sigma_init is the sigma of the first forward.

    `spectral_norm` does not serve here: the iteration starts from `weight_u` in every forward, and sigma is
    differentiated through it. What runs instead is the same in closed form, without what makes the wrapper slow, a
    copy of sigma_init in the size of the weight from the host to the device in every forward.

    The structure: `module` with `<name>_bar`, `<name>_u` and `<name>_v`; `name`, `power_iterations`, `w_init_sigma` and
    `w_initalized`, as it is spelled there.
    """

    looks_for = "ViTGAN-pytorch's spectral norm"
    runs = "swap: sigma in closed form, nothing from the host"

    def recognises(self, module: nn.Module) -> bool:
        names = ("name", "power_iterations", "w_init_sigma", "w_initalized")
        inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module) or not all(hasattr(module, name) for name in names):
            return False
        return all(hasattr(inner, f"{module.name}_{part}") for part in ("bar", "u", "v"))

    def obstacle(self, module: Any) -> str:
        if not isinstance(module.module, nn.Linear | nn.Conv2d):
            return f"it wraps a {type(module.module).__name__}; a Linear or Conv2d is known here"
        return ""

    def inputs(self, module: Any) -> list[tuple[int, ...]]:
        layer = module.module
        if isinstance(layer, nn.Linear):
            return [(3, layer.in_features)]
        return [(2, layer.in_channels, *(3 * size for size in layer.kernel_size))]

    def bypassed(self, module: Any) -> Iterable[nn.Module]:
        return [module.module]

    @staticmethod
    def forward(module: Any, *args: Any) -> Any:
        layer, name = module.module, module.name
        weight, u = getattr(layer, f"{name}_bar"), getattr(layer, f"{name}_u")
        sigma = _sigma(weight.flatten(1), u, module.power_iterations)
        if not module.w_initalized:  # as an array in the size of the weight, for the module's own forward
            module.w_init_sigma = sigma.detach().cpu().expand(weight.shape).numpy().copy()
            module.w_initalized = True
        goal = float(module.w_init_sigma.flat[0])
        setattr(layer, name, weight * (goal / sigma))
        return layer.forward(*args)


def _sigma(matrix: Tensor, u: Tensor, iterations: int) -> Tensor:
    """u^T W v with vectors divided by (norm + 1e-4): |Wv|^2 / (|Wv| + 1e-4), since u = Wv / (|Wv| + 1e-4)."""
    for step in range(iterations):
        v = matrix.t() @ u
        product = matrix @ (v / (v.norm() + SPECTRAL_EPS))
        norm = product.norm()
        if step < iterations - 1:
            u = product / (norm + SPECTRAL_EPS)
    return norm.square() / (norm + SPECTRAL_EPS)


def _is_modulated(module: object) -> bool:
    if not isinstance(module, nn.Module):
        return False
    weight = parameter_of(module, "weight", 4)
    sizes = [getattr(module, name, None) for name in ("out_channels", "in_channels")]
    return (
        weight is not None
        and tuple(weight.shape) == (1, *sizes, 1)
        and isinstance(getattr(module, "style_size", None), int)
        and isinstance(getattr(module, "demodulation", None), bool)
        and hasattr(module, "scale")
        and hasattr(module, "modulation")
    )


def _is_sine(module: object) -> bool:
    omega = getattr(module, "omega_0", None)
    return isinstance(omega, int | float) and _is_modulated(getattr(module, "linear", None))


def _calm(layers: list[Any]) -> None:
    """Divide the frequencies so that no layer makes a small difference larger."""
    gains = [layer.omega_0 * torch.linalg.matrix_norm(_weight(layer.linear).double(), 2) for layer in layers]
    steepest = max([1.0, *(abs(float(gain)) for gain in gains)])
    for layer in layers:
        layer.omega_0 /= steepest


def _linear(layer: Any) -> Any:
    return layer.linear if _is_sine(layer) else layer


def _weight(layer: Any) -> Tensor:
    return layer.weight[0, :, :, 0] * float(layer.scale)


def _style(layer: Any, style: Tensor) -> Tensor:
    return style if layer.style_size == layer.in_channels else layer.modulation(style)


def _product(layer: Any, x: Tensor, style: Tensor, *, omega: float | None) -> Tensor:
    return modulated_linear(
        x,
        _weight(layer),
        _style(layer, style),
        activation=None if omega is None else "sine",
        omega=1.0 if omega is None else float(omega),
        demodulate=layer.demodulation,
    )


def _unscrambled(x: Tensor) -> Tensor:
    """(B, P, I) as the layer reads it: its numbers in the same order as (B, I, P)."""
    return x.reshape(x.shape[0], x.shape[2], x.shape[1]).transpose(1, 2)


def _scrambled(y: Tensor) -> Tensor:
    """(B, P, O) as the layer hands it on: the numbers of (B, O, P) in their order, called (B, P, O)."""
    batch, points, outputs = y.shape
    return y.transpose(1, 2).reshape(batch, points, outputs)
