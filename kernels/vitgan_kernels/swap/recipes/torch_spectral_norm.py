"""Layers under PyTorch's spectral norm, the parametrization or the older hook: one call of `spectral_norm` for all."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils import spectral_norm as hook_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from vitgan_kernels.swap.compare import Times, Trial, one_pass, time_in_turns
from vitgan_kernels.swap.recipe import Match
from vitgan_kernels.swap.recipes.grouped import (
    GroupedHook,
    GroupedSpectralNorm,
    TorchSpectralNormGroup,
    groups_of,
    parametrizations,
    spectral_norm_hook,
)


class TorchSpectralNorm:
    """Both kinds in one group."""

    looks_for = "layers under torch.nn.utils.parametrizations.spectral_norm or torch.nn.utils.spectral_norm"

    def find(self, model: nn.Module) -> Iterator[Match]:
        for path, layer in model.named_modules():
            if parametrize.is_parametrized(layer):
                was = f"torch spectral_norm of {parametrize.type_before_parametrizations(layer).__name__}"
                for tensor in cast(nn.ModuleDict, layer.parametrizations):
                    listed = parametrizations(layer, tensor)
                    if any(isinstance(state, _SpectralNorm) for state in listed):
                        reason = "there are several parametrizations on this tensor" if len(listed) > 1 else ""
                        yield Match(path, layer, was, tensor, reason or self._why_not(listed[0], listed.original))
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, SpectralNorm):
                    was = f"torch spectral_norm (hook) of {type(layer).__name__}"
                    weight = getattr(layer, f"{hook.name}_orig")
                    yield Match(path, layer, was, hook.name, self._why_not(hook, weight))

    def _why_not(self, state: object, weight: Tensor) -> str:
        if isinstance(state, GroupedSpectralNorm | GroupedHook):
            return "it is swapped already"
        if type(state) not in (_SpectralNorm, SpectralNorm):
            return f"{type(state).__name__} is a class of its own, derived from PyTorch's"
        if weight.ndim < 2 or weight.numel() == 1:
            return "a vector or single number is divided by its norm, which takes no power iteration"
        if state.dim != 0:  # type: ignore[attr-defined]
            return f"dim={state.dim}, as transposed convolutions have it; the operator takes dim=0"  # type: ignore[attr-defined]
        return "" if weight.is_floating_point() else f"{weight.dtype} is not a real floating-point dtype"

    def trial(self, matches: list[Match], dtype: torch.dtype | None, replaced: bool) -> list[Trial]:
        """The normalised weight as a function of the original: of a layer, nothing else changes."""
        model = _Weights([_copied(match, dtype) for match in matches])
        originals = [_original(layer) for layer in model.layers]
        if replaced:
            TorchSpectralNormGroup(model, [(layer, "weight") for layer in model.layers])
        random = torch.Generator().manual_seed(0)
        results: list[Trial] = [[[], [], []] for _ in matches]
        for training in (True, True, False):
            weights = model.train(training)()
            towards = [torch.randn(w.shape, generator=random, dtype=torch.float64).to(w) for w in weights]
            gradients = torch.autograd.grad(weights, originals, towards)
            for result, layer, weight, gradient in zip(results, model.layers, weights, gradients, strict=True):
                result[0].append(weight.detach())
                result[1].append(gradient)
                result[2].extend(buffer.clone() for buffer in layer.buffers())
            with torch.no_grad():
                for original, step in zip(originals, towards, strict=True):
                    original += 0.1 * original.square().mean().sqrt() * step
        return results

    def time(self, matches: list[Match], given: Mapping[str, Sequence[Any]]) -> dict[str, Times]:
        """Of all weights together, which is what a forward computes of them; whatever the input."""
        before, after = (_Weights([_copied(match, None) for match in matches]) for _ in range(2))
        for model in (before, after):
            for layer, match in zip(model.layers, matches, strict=True):
                layer.train(_is_training(match))
            model.training = any(map(_is_training, matches))
        TorchSpectralNormGroup(after, [(layer, "weight") for layer in after.layers])
        times = time_in_turns(one_pass(before, []), one_pass(after, []))
        return {match.path: times for match in matches}

    def replace(self, model: nn.Module, matches: list[Match]) -> str:
        return str(TorchSpectralNormGroup(model, [(match.module, match.tensor) for match in matches]))

    def restore(self, model: nn.Module) -> None:
        for part in model.modules():
            for group in groups_of(part):
                group.remove()


class _Layer(nn.Module):
    """A layer that computes nothing but its weight."""

    def forward(self) -> Tensor:
        return cast(Tensor, self.weight)


class _Weights(nn.Module):
    """A model of such layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self) -> list[Tensor]:
        return [layer() for layer in self.layers]


def _is_training(match: Match) -> bool:
    hook = spectral_norm_hook(match.module, match.tensor)
    return match.module.training if hook else parametrizations(match.module, match.tensor)[0].training


def _copied(match: Match, dtype: torch.dtype | None) -> nn.Module:
    hook = spectral_norm_hook(match.module, match.tensor)
    listed = None if hook else parametrizations(match.module, match.tensor)
    original = listed.original if listed is not None else getattr(match.module, f"{match.tensor}_orig")
    layer = _Layer()
    layer.weight = nn.Parameter(original.detach().to(original.dtype if dtype is None else dtype, copy=True))
    if listed is not None:
        state = copy.deepcopy(listed[0]).to(layer.weight.dtype)
        parametrize.register_parametrization(layer, "weight", state, unsafe=True)
        return layer
    assert hook is not None
    hook_spectral_norm(layer, "weight", hook.n_power_iterations, hook.eps, hook.dim)
    for part in ("u", "v"):
        getattr(layer, f"weight_{part}").copy_(getattr(match.module, f"{match.tensor}_{part}"))
    return layer


def _original(layer: nn.Module) -> Tensor:
    if parametrize.is_parametrized(layer):
        return parametrizations(layer, "weight").original
    return cast(Tensor, layer.weight_orig)
