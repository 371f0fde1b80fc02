"""Layers that share one call of the operator a forward pass, each with the result that it would have by itself."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks

from vitgan_kernels.spectral_norm.op import spectral_norm


@dataclass(frozen=True)
class Operands:
    """W (out, ...) of one tensor, u and v as the operator takes them, and the norm it is scaled to (None: 1).

    `transposed`: the operator is given the matrix W^T, and u and v in each other's place.
    """

    weight: Tensor
    u: Tensor
    v: Tensor
    sigma_init: Tensor | None = None
    transposed: bool = False

    def matrix(self) -> Tensor:
        """What the operator takes."""
        return self.weight.flatten(1).t() if self.transposed else self.weight

    def versions(self) -> tuple[int, ...]:
        """Numbers that change where a tensor is written to. torch.compile keeps track by itself."""
        tensors = (self.weight, self.u, self.v)
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return ()
        return tuple(tensor._version for tensor in tensors)


@dataclass(frozen=True)
class Settings:
    """What the members of one call have in common."""

    update: bool
    n_iterations: int
    eps: float
    dtype: torch.dtype
    device: torch.device


@dataclass
class _Result:
    """The scaled weight of a member, what it was computed from, and its vectors before (None: they did not move)."""

    scaled: Tensor
    operands: Operands
    settings: Settings
    versions: tuple[int, ...]
    before: tuple[Tensor, Tensor] | None

    def holds(self, operands: Operands, settings: Settings) -> bool:
        """Whether it is what the member would compute now. A model called without gradients may enable them inside."""
        was = self.operands
        same = operands.weight is was.weight and operands.u is was.u and operands.v is was.v
        graph = self.scaled.requires_grad or not (was.weight.requires_grad and torch.is_grad_enabled())
        return same and graph and settings == self.settings and was.versions() == self.versions


class Member:
    """One tensor of a group. Derived classes say what the operator takes for it."""

    def __init__(self) -> None:
        self.group: Any = None  # while its forward runs; so a copy of a layer is not one of all the group
        self.result: _Result | None = None
        self.used = False  # in the forward that runs now
        # Whether the last forward used it in the model's own training mode, and gradients as they were at its start;
        # None where it did not use it. Only members of the same habit are computed together.
        self.habit: tuple[bool, bool] | None = (True, True)
        self.next_habit: tuple[bool, bool] | None = None

    def operands(self) -> Operands | None:
        """None where the tensor is no longer normalised."""
        raise NotImplementedError

    def settings(self, weight: Tensor) -> Settings:
        """Its settings at this moment."""
        raise NotImplementedError

    def take(self) -> Tensor | None:
        """The scaled weight, for a use at this moment; None where the layer has to compute its own."""
        return None if self.group is None else cast(Tensor | None, self.group.serve(self))

    def give_back(self) -> None:
        """Forget a result that was not used, as if it had never been computed."""
        if self.result is not None and self.result.before is not None:
            with torch.no_grad():
                self.result.operands.u.copy_(self.result.before[0])
                self.result.operands.v.copy_(self.result.before[1])
        self.result = None


class Group:
    """Computes members together while the forward of a model runs.

    The first member that is used has the operator compute it and, in the same call, the unused ones of the same
    settings and habit. A result serves its member if nothing that it depends on has changed by the time of its use;
    vectors that moved for a result that nobody used get their values back.

    Args:
        model: whose forward makes the calls. Its torch.nn.DataParallel replicas are served nothing.
        members: in the order of the model.
        once: each use of a member in a forward is a computation of its own, as with PyTorch's spectral norm; a second
            use is served nothing. Otherwise one result serves all.
        backend: see `use_backend`.
    """

    def __init__(self, model: nn.Module, members: Sequence[Member], *, once: bool, backend: str | None = None) -> None:
        self.members = list(members)
        self.once = once
        self.backend = backend
        self._start = (True, True)
        self._handles = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Take the group off the model."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, model: nn.Module, _args: Any) -> None:
        self._end()
        self._start = (model.training, torch.is_grad_enabled())
        if not getattr(model, "_is_replica", False):
            for member in self.members:
                member.group = self

    def _end(self, *_args: Any) -> None:
        for member in self.members:
            if member.group is not None:
                if not member.used:
                    member.give_back()
                member.habit, member.next_habit = member.next_habit, None
                member.group, member.used, member.result = None, False, None

    def serve(self, member: Member) -> Tensor | None:
        """`Member.take`, while the forward runs."""
        if self.once and (member.used or under_transform()):
            return None
        operands = member.operands()
        if operands is None:
            return None
        settings = member.settings(operands.weight)
        if member.result is not None and not member.result.holds(operands, settings):
            if member.used:
                member.result = None
            else:
                member.give_back()
        if member.result is None:
            self._compute(member, operands, settings)
            assert member.result is not None
        scaled = member.result.scaled
        if not member.used:
            member.used, member.next_habit = True, self._habit(settings)
        if self.once or under_transform():
            member.result = None
        return scaled if torch.is_grad_enabled() or not scaled.requires_grad else scaled.detach()

    def _habit(self, settings: Settings) -> tuple[bool, bool]:
        return settings.update == self._start[0], torch.is_grad_enabled() == self._start[1]

    def _compute(self, member: Member, operands: Operands, settings: Settings) -> None:
        chosen = [(member, operands)]
        moves = settings.update and not member.used
        if not (member.used or under_transform()):
            habit = self._habit(settings)
            for other in self.members:
                if other is member or other.used or other.result is not None or other.habit != habit:
                    continue
                theirs = other.operands()
                if theirs is not None and other.settings(theirs.weight) == settings:
                    chosen.append((other, theirs))
        before: list[tuple[Tensor, Tensor] | None] = [None] * len(chosen)
        if moves and len(chosen) > 1:
            kept = [vector for _, each in chosen[1:] for vector in (each.u, each.v)]
            copies = torch.cat(kept).split([len(vector) for vector in kept])
            before[1:] = zip(copies[::2], copies[1::2], strict=True)
        all_operands = [each for _, each in chosen]
        goals = [each.sigma_init for each in all_operands if each.sigma_init is not None]
        with outside_checkpoints():
            scaled, _ = spectral_norm(
                [each.matrix() for each in all_operands],
                [each.u for each in all_operands],
                [each.v for each in all_operands],
                sigma_init=torch.stack(goals) if goals else None,
                n_iterations=settings.n_iterations,
                eps=settings.eps,
                update=moves,
                backend=self.backend,
            )
        for (each, theirs), weight, vectors in zip(chosen, scaled, before, strict=True):
            if theirs.transposed:
                weight = weight.t().reshape(theirs.weight.shape)
            each.result = _Result(weight, theirs, settings, theirs.versions(), vectors)


def under_transform() -> bool:
    """Whether torch.func or forward mode is at work, under which nothing may be written that is undone later."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def outside_checkpoints() -> AbstractContextManager[Any]:
    """Keeps what is saved for the backward pass out of the count of activation checkpointing.

    That must find as many tensors when it runs a block again, without the group's result. torch.compile and torch.func
    know no such hooks, and no checkpointing that would need them.
    """
    if torch.compiler.is_compiling() or not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return nullcontext()
    return saved_tensors_hooks(_itself, _itself)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
