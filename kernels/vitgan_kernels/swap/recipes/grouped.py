"""Layers under PyTorch's own spectral normalisation, which share calls of the operator."""

from collections.abc import Iterator
from typing import Any, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from vitgan_kernels.spectral_norm.grouping import Group, Member, Operands, Settings, outside_checkpoints
from vitgan_kernels.spectral_norm.op import OPERATOR


class TorchSpectralNormGroup(Group):
    """Runs layers under PyTorch's spectral norm, the parametrization or the older hook, through shared calls.

    PyTorch's state stays where it is (`layer.parametrizations.<tensor>.original`, `.0._u`, `.0._v`; or
    `layer.<tensor>_orig`, `_u`, `_v`; the same objects), and so does what it does: the vectors move at each use in
    training mode, u before v in the parametrization and v before u in the hook, as the training flag,
    n_power_iterations and eps of each layer say. Where a layer is called outside the model's forward, a second time in
    it, or under torch.func, PyTorch's own path runs. One thing differs: autocast inside the forward does not lower the
    precision of the normalisation.

    Args:
        module: the model, whose forward makes the calls.
        tensors: (layer, name of the tensor), each with this one parametrization or hook, dim=0 and two or more
            dimensions.
    """

    def __init__(self, module: nn.Module, tensors: list[tuple[nn.Module, str]]) -> None:
        super().__init__(module, [_member(layer, name) for layer, name in tensors], once=True)

    def remove(self) -> None:
        """Give the layers back to PyTorch's own path."""
        super().remove()
        for member in self.members:
            state = cast(_Parametrized | _Hooked, member).state
            if isinstance(state, GroupedSpectralNorm | GroupedHook):
                del state.member
                state.__class__ = type(state).__base__  # type: ignore[assignment]

    def __str__(self) -> str:
        calls: dict[Settings, list[Operands]] = {}
        for member in self.members:
            operands = member.operands()
            if operands is not None:
                calls.setdefault(member.settings(operands.weight), []).append(operands)
        backends = {
            OPERATOR.select(None, [w.matrix() for w in ws], [w.u for w in ws], [w.v for w in ws]).backend
            for ws in calls.values()
        }
        number = "one call" if len(calls) == 1 else f"{len(calls)} calls"
        used = ", ".join(sorted(backends))
        return f"vitgan_kernels.spectral_norm ({used}), {number} a forward for {len(self.members)} tensors"


class GroupedSpectralNorm(_SpectralNorm):
    """PyTorch's parametrization, which hands out the group's result."""

    _u: Tensor
    _v: Tensor
    member: "_Parametrized"

    def forward(self, weight: Tensor) -> Tensor:
        scaled = self.member.take()
        if scaled is not None:
            return scaled
        with outside_checkpoints():
            return super().forward(weight)


class GroupedHook(SpectralNorm):
    """PyTorch's older hook, which sets the group's result on the layer."""

    member: "_Hooked"

    def compute_weight(self, module: nn.Module, do_power_iteration: bool) -> Tensor:
        scaled = self.member.take()
        if scaled is not None:
            return scaled
        with outside_checkpoints():
            return super().compute_weight(module, do_power_iteration)


class _Parametrized(Member):
    """A tensor under the parametrization, whose iteration moves u before v.

    The operator moves v before u: on W^T, with u and v in each other's place, it is the same iteration.
    """

    def __init__(self, listed: parametrize.ParametrizationList) -> None:
        super().__init__()
        self.listed = listed
        self.state = cast(GroupedSpectralNorm, listed[0])

    def operands(self) -> Operands:
        weight = self.listed.original
        return Operands(weight, self.state._v, self.state._u, transposed=True)

    def settings(self, weight: Tensor) -> Settings:
        state = self.state
        return Settings(state.training, state.n_power_iterations, state.eps, weight.dtype, weight.device)


class _Hooked(Member):
    """A tensor under the hook."""

    def __init__(self, layer: nn.Module, hook: SpectralNorm) -> None:
        super().__init__()
        self.layer = layer
        self.state = cast(GroupedHook, hook)

    def operands(self) -> Operands | None:
        weight, u, v = (getattr(self.layer, f"{self.state.name}_{part}", None) for part in ("orig", "u", "v"))
        return None if weight is None or u is None or v is None else Operands(weight, u, v)

    def settings(self, weight: Tensor) -> Settings:
        state = self.state
        return Settings(self.layer.training, state.n_power_iterations, state.eps, weight.dtype, weight.device)


def _member(layer: nn.Module, name: str) -> Member:
    if parametrize.is_parametrized(layer, name):
        listed = parametrizations(layer, name)
        listed[0].__class__ = GroupedSpectralNorm
        state: Any = listed[0]
        state.member = _Parametrized(listed)
    else:
        state = spectral_norm_hook(layer, name)
        state.__class__ = GroupedHook
        state.member = _Hooked(layer, state)
    return cast(Member, state.member)


def groups_of(module: nn.Module) -> Iterator[TorchSpectralNormGroup]:
    """The groups whose calls are made by the forward of this module."""
    owners = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
    return (owner for owner in owners if isinstance(owner, TorchSpectralNormGroup))


def parametrizations(layer: nn.Module, name: str) -> parametrize.ParametrizationList:
    """What stands between a parametrised tensor of a layer and its original."""
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)[name])


def spectral_norm_hook(layer: nn.Module, name: str) -> SpectralNorm | None:
    """The hook that `torch.nn.utils.spectral_norm` has put on a tensor of a layer, or None."""
    hooks = layer._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, SpectralNorm) and hook.name == name), None)
