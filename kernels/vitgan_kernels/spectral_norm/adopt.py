"""Layers under PyTorch's own spectral normalisation, taken over: one call of the operator a forward pass."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from vitgan_kernels.spectral_norm.group import _hooks_are_allowed, _itself, _serves
from vitgan_kernels.spectral_norm.op import OPERATOR, spectral_norm


class AdoptedSpectralNorm:
    """Runs layers under PyTorch's spectral norm, the parametrization or the older hook, through one call a forward.

    PyTorch's state stays where it is (`layer.parametrizations.<tensor>.original`, `.0._u`, `.0._v`; or
    `layer.<tensor>_orig`, `_u`, `_v`; the same objects), and so does what it does: the vectors move at each use in
    training mode, u before v in the parametrization and v before u in the hook, as the training flag,
    n_power_iterations and eps of each layer say. The forward of the model pays for the first use of each tensor with
    one call for all (one a setting, where these differ); a second use, and a layer called outside the model's forward,
    take PyTorch's own path. Two things differ: a layer that a forward does not use has its vectors moved all the same,
    and autocast inside the forward does not lower the precision of the normalisation.

    Args:
        module: the model, whose forward makes the call. `torch.nn.DataParallel` replicas take PyTorch's path.
        tensors: (layer, name of the tensor), each with this one parametrization or hook, dim=0 and two or more
            dimensions.
    """

    def __init__(self, module: nn.Module, tensors: list[tuple[nn.Module, str]]) -> None:
        self.tensors = tensors
        for layer, name in tensors:
            if parametrize.is_parametrized(layer, name):
                parametrizations(layer, name)[0].__class__ = GroupedSpectralNorm
            else:
                cast(SpectralNorm, spectral_norm_hook(layer, name)).__class__ = GroupedHook
        self._handles = [
            module.register_forward_pre_hook(self._scale_all),
            module.register_forward_hook(self._forget, always_call=True),
        ]

    @staticmethod
    def of(module: nn.Module) -> "list[AdoptedSpectralNorm]":
        """The groups whose call is made by the forward of this module."""
        owners = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
        return [owner for owner in owners if isinstance(owner, AdoptedSpectralNorm)]

    def release(self) -> None:
        """Give the layers back to PyTorch's own path."""
        for handle in self._handles:
            handle.remove()
        for entry in self._entries():
            vars(entry.state).pop("scaled", None)
            entry.state.__class__ = type(entry.state).__base__  # type: ignore[assignment]

    def __str__(self) -> str:
        backends = [OPERATOR.select(None, *args, **options).backend for _, args, options in self._calls()]
        calls = "one call" if len(backends) == 1 else f"{len(backends)} calls"
        used = ", ".join(sorted(set(backends)))
        return f"vitgan_kernels.spectral_norm ({used}), {calls} a forward for {len(self.tensors)} tensors"

    def _entries(self) -> Iterator["_Entry"]:
        for layer, name in self.tensors:
            # remove_parametrizations or remove_spectral_norm may have taken a tensor out of the group since
            if parametrize.is_parametrized(layer, name):
                listed = parametrizations(layer, name)
                state = listed[0]
                if isinstance(state, GroupedSpectralNorm):
                    yield _Entry(state, listed.original, state._u, state._v, state.training, u_first=True)
            else:
                hook = spectral_norm_hook(layer, name)
                if isinstance(hook, GroupedHook):
                    weight, u, v = (getattr(layer, f"{name}_{part}") for part in ("orig", "u", "v"))
                    yield _Entry(hook, weight, u, v, layer.training, u_first=False)

    def _calls(self) -> Iterator[tuple[list["_Entry"], tuple[Any, ...], dict[str, Any]]]:
        calls = defaultdict(list)
        for entry in self._entries():
            setting = (entry.training, entry.state.n_power_iterations, entry.state.eps)
            calls[(*setting, entry.weight.dtype, entry.weight.device)].append(entry)
        for (update, n_iterations, eps, _, _), entries in calls.items():
            args = zip(*(entry.arguments() for entry in entries), strict=True)
            yield (
                entries,
                tuple(list(arg) for arg in args),
                {"n_iterations": n_iterations, "eps": eps, "update": update},
            )

    def _scale_all(self, module: nn.Module, _args: Any) -> None:
        if getattr(module, "_is_replica", False):
            return
        for entries, args, options in self._calls():
            for entry, scaled in zip(entries, spectral_norm(*args, **options)[0], strict=True):
                entry.state.scaled = scaled.t().reshape(entry.weight.shape) if entry.u_first else scaled

    def _forget(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        for entry in self._entries():
            entry.state.scaled = None


class GroupedSpectralNorm(_SpectralNorm):
    """PyTorch's parametrization, which hands out the group's result at the first use after the group's call."""

    _u: Tensor
    _v: Tensor
    scaled: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        scaled, self.scaled = self.scaled, None
        if scaled is not None and _serves(scaled, weight):
            return scaled
        # for activation checkpointing, as in SpectralNormGroup
        with saved_tensors_hooks(_itself, _itself) if _hooks_are_allowed() else nullcontext():
            return super().forward(weight)


class GroupedHook(SpectralNorm):
    """PyTorch's older hook, which sets the group's result on the layer at the first use after the group's call."""

    scaled: Tensor | None = None

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        scaled, self.scaled = self.scaled, None
        if scaled is not None and _serves(scaled, getattr(module, f"{self.name}_orig")):
            return scaled
        return super().compute_weight(module, do_power_iteration)


@dataclass(frozen=True)
class _Entry:
    """One tensor of the group. `u_first`: its iteration moves u before v."""

    state: GroupedSpectralNorm | GroupedHook
    weight: Tensor
    u: Tensor
    v: Tensor
    training: bool
    u_first: bool

    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the operator takes, which moves v before u: on W^T, with u and v in each other's place, it is the same
        iteration as u before v on W."""
        return (self.weight.flatten(1).t(), self.v, self.u) if self.u_first else (self.weight, self.u, self.v)


def parametrizations(layer: nn.Module, name: str) -> parametrize.ParametrizationList:
    """What stands between a parametrised tensor of a layer and its original."""
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[name])


def spectral_norm_hook(layer: nn.Module, name: str) -> SpectralNorm | None:
    """The hook that `torch.nn.utils.spectral_norm` has put on a tensor of a layer, or None."""
    hooks = layer._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, SpectralNorm) and hook.name == name), None)
