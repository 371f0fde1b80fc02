"""Layers under PyTorch's own spectral normalisation, taken over: one call of the operator a forward pass."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from vitgan_kernels.spectral_norm.group import _hooks_are_allowed, _itself, _serves
from vitgan_kernels.spectral_norm.op import OPERATOR, spectral_norm


class AdoptedSpectralNorm:
    """Runs layers under `torch.nn.utils.parametrizations.spectral_norm` through one call of `spectral_norm` a forward.

    PyTorch's state stays where it is (`layer.parametrizations.<tensor>.original`, `.0._u`, `.0._v`, the same objects),
    and so does what it does: the vectors move at each use in training mode, u before v, as the training flag,
    n_power_iterations and eps of each layer say. The forward of the model pays for the first use of each tensor with
    one call for all (one a setting, where these differ); a second use, and a layer called outside the model's forward,
    take PyTorch's own path. Two things differ: a layer that a forward does not use has its vectors moved all the same,
    and autocast inside the forward does not lower the precision of the normalisation.

    Args:
        module: the model, whose forward makes the call. `torch.nn.DataParallel` replicas take PyTorch's path.
        tensors: (layer, name of the tensor), each with this one parametrization, dim=0 and two or more dimensions.
    """

    def __init__(self, module: nn.Module, tensors: list[tuple[nn.Module, str]]) -> None:
        self.tensors = tensors
        for layer, name in tensors:
            parametrizations(layer, name)[0].__class__ = GroupedSpectralNorm
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
        for state, _ in self._entries():
            vars(state).pop("scaled", None)
            state.__class__ = _SpectralNorm  # type: ignore[assignment]

    def __str__(self) -> str:
        backends = [OPERATOR.select(None, *args, **options).backend for _, args, options in self._calls()]
        calls = "one call" if len(backends) == 1 else f"{len(backends)} calls"
        used = ", ".join(sorted(set(backends)))
        return f"vitgan_kernels.spectral_norm ({used}), {calls} a forward for {len(self.tensors)} tensors"

    def _entries(self) -> Iterator[tuple["GroupedSpectralNorm", Tensor]]:
        for layer, name in self.tensors:
            # remove_parametrizations may have taken a tensor out of the group since
            if parametrize.is_parametrized(layer, name):
                state = parametrizations(layer, name)[0]
                if isinstance(state, GroupedSpectralNorm):
                    yield state, parametrizations(layer, name).original

    def _calls(self) -> Iterator[tuple[list[tuple["GroupedSpectralNorm", Tensor]], tuple[Any, ...], dict[str, Any]]]:
        calls = defaultdict(list)
        for state, weight in self._entries():
            setting = (state.training, state.n_power_iterations, state.eps, weight.dtype, weight.device)
            calls[setting].append((state, weight))
        for (update, n_iterations, eps, _, _), entries in calls.items():
            # The operator moves v before u, PyTorch u before v: on W^T, with u and v in each other's place, it is the
            # same iteration.
            transposed = [weight.flatten(1).t() for _, weight in entries]
            vectors = [state._v for state, _ in entries], [state._u for state, _ in entries]
            yield entries, (transposed, *vectors), {"n_iterations": n_iterations, "eps": eps, "update": update}

    def _scale_all(self, module: nn.Module, _args: Any) -> None:
        if getattr(module, "_is_replica", False):
            return
        for entries, args, options in self._calls():
            for (state, weight), scaled in zip(entries, spectral_norm(*args, **options)[0], strict=True):
                state.scaled = scaled.t().reshape(weight.shape)

    def _forget(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        for state, _ in self._entries():
            state.scaled = None


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


def parametrizations(layer: nn.Module, name: str) -> parametrize.ParametrizationList:
    """What stands between a parametrised tensor of a layer and its original."""
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[name])
