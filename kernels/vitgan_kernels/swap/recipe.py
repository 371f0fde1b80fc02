"""What a recipe is: something that recognises places in a model, and replaces them."""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitgan_kernels.swap.compare import Times, Trial, copied, normal_inputs, one_pass, time_in_turns, trial


@dataclass(frozen=True)
class Match:
    """A place that a recipe recognised: a module, or one tensor of it. `reason` says why it cannot be replaced."""

    module_path: str
    module: nn.Module
    was: str
    tensor: str = ""
    reason: str = ""

    @property
    def path(self) -> str:
        return ".".join(part for part in (self.module_path, self.tensor) if part)


class Recipe(Protocol):
    """One thing that `swap` recognises, and how it is replaced.

    `ModuleRecipe` is one for modules that are replaced one by one, of which it needs to know little.
    """

    looks_for: str

    def find(self, model: nn.Module) -> Iterator[Match]:
        """Every place that it recognises, those it cannot replace with the reason."""

    def trial(self, matches: list[Match], dtype: torch.dtype | None, replaced: bool) -> list[Trial]:
        """For each match, what a copy in the dtype (None: its own) computes, always from the same random input."""

    def time(self, matches: list[Match], given: Mapping[str, Sequence[Any]]) -> dict[str, Times]:
        """By path, how long a pass takes before and after, with the inputs given by path or else those of the trial."""

    def replace(self, model: nn.Module, matches: list[Match]) -> str:
        """Put the operator in, and say what runs now."""

    def restore(self, model: nn.Module) -> None:
        """Take out of the model, and all in it, what `replace` put in."""


class Swapped:
    """Stands before the class of a replaced module, in a class that is made for it. All but `forward` is inherited.

    So the module is still an instance of its own class, and can be copied, pickled and compiled like any other.
    """

    recipe: ClassVar[type["ModuleRecipe"]]
    original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (type(self).recipe, type(self).original), self.__getstate__()


class ModuleRecipe(ABC):
    """Recognises one kind of module, and has another forward for it. To be derived from; see `recipes` for an example.

    Attributes:
        looks_for: what it recognises, in a few words, for the report.
        runs: what runs instead, for the report: the name of an operator.
    """

    looks_for: str
    runs: ClassVar[str]

    @abstractmethod
    def recognises(self, module: nn.Module) -> bool:
        """Whether a module has the structure that this recipe is for. The check decides the rest."""

    def obstacle(self, module: nn.Module) -> str:
        """Why a module that is recognised cannot be replaced; empty if it can."""
        return ""

    @abstractmethod
    def inputs(self, module: nn.Module) -> Sequence[tuple[int, ...]]:
        """The shapes of inputs to check it with, small ones."""

    @staticmethod
    @abstractmethod
    def forward(module: Any, *inputs: Any) -> Any:
        """What runs instead of the module's own forward, which is `original_forward(module)`.

        It is given as many inputs as it names; a call with more runs the module's own, whose signature stays.
        """

    def bypassed(self, module: nn.Module) -> Iterable[nn.Module]:
        """Modules inside a replaced one that are not called, so that nobody replaces them.

        While one of them has hooks or a forward of its own, the module's own forward runs.
        """
        return ()

    def find(self, model: nn.Module) -> Iterator[Match]:
        """Every module that it recognises."""
        modules: dict[str, Any] = dict(model.named_modules())
        idle = {id(part) for m in modules.values() if _is_swapped(m) for part in m.recipe().bypassed(m)}
        for path, module in modules.items():
            if parametrize.is_parametrized(module):
                continue  # another class already stands before its own
            if _is_swapped(module):
                if module.recipe is type(self):
                    yield Match(path, module, module.original.__name__, reason="it is swapped already")
            elif id(module) not in idle and self.recognises(module):
                reason = self._general_obstacle(module) or self.obstacle(module)
                yield Match(path, module, type(module).__name__, reason=reason)

    def _general_obstacle(self, module: nn.Module) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "it is a TorchScript module"
        if "forward" in vars(module):
            return "a forward of its own was set on it"
        hooked = [part for part in self.bypassed(module) if _is_watched(part)]
        return f"a {hooked[0].__class__.__name__} in it has hooks, which would not run" if hooked else ""

    def calm(self, module: nn.Module) -> None:
        """Make a copy for the trial a smooth function, where small errors of two right ones would grow apart."""
        return

    def trial(self, matches: list[Match], dtype: torch.dtype | None, replaced: bool) -> list[Trial]:
        """Each module by itself, on a copy."""
        trials = []
        for match in matches:
            twin = copied(match.module, dtype)
            with torch.no_grad():
                self.calm(twin)
            if replaced:
                self._put_in(twin)
            trials.append(trial(twin, self.inputs(twin)))
        return trials

    def time(self, matches: list[Match], given: Mapping[str, Sequence[Any]]) -> dict[str, Times]:
        """Each module by itself, on copies, in the mode that it is in."""
        times = {}
        for match in matches:
            before, after = copied(match.module, None), copied(match.module, None)
            self._put_in(after)
            inputs = given.get(match.module_path) or normal_inputs(before, self.inputs(before))
            times[match.path] = time_in_turns(one_pass(before, inputs), one_pass(after, inputs))
        return times

    def replace(self, model: nn.Module, matches: list[Match]) -> str:
        """Give the modules their other forward."""
        for match in matches:
            self._put_in(match.module)
        return f"vitgan_kernels.{self.runs}"

    def _put_in(self, module: Any) -> None:
        module.__class__ = _swapped_class(type(self), module.__class__)

    def restore(self, model: nn.Module) -> None:
        """Give the modules back their own class."""
        for module in model.modules():
            if isinstance(module, Swapped) and module.recipe is type(self):
                module.__class__ = module.original  # type: ignore[assignment]


def original_forward(module: Any) -> Any:
    """The forward that a replaced module had, bound to it: for calls that the operator cannot serve."""
    return functools.partial(module.original.forward, module)


@functools.cache
def _swapped_class(recipe: type[ModuleRecipe], original: Any) -> Any:
    members = {
        "recipe": recipe,
        "original": original,
        "forward": _forward(recipe(), original),
        "__module__": original.__module__,
    }
    return type(original)(f"Swapped{original.__name__}", (Swapped, original), members)


_MISSING = object()


def _forward(recipe: ModuleRecipe, original: type[nn.Module]) -> Callable[..., Any]:
    """The recipe's forward where it can serve a call, with the original's signature."""
    theirs: Callable[..., Any] = original.forward
    parameters = [*inspect.signature(theirs).parameters.values()][1:]
    parameters = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    defaults = {p.name: _MISSING if p.default is p.empty else p.default for p in parameters}
    count = len(inspect.signature(recipe.forward).parameters) - 1

    def inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """What the recipe's forward takes, if that is all that the call gives."""
        if len(args) > len(defaults):
            return None
        named = dict(zip(defaults, args, strict=False))
        if kwargs.keys() - defaults.keys() or kwargs.keys() & named.keys():
            return None
        values = {**defaults, **named, **kwargs}
        given = tuple(values[name] for name in list(defaults)[:count])
        more = any(values[name] is not defaults[name] for name in list(defaults)[count:])
        return None if more or any(value is _MISSING for value in given) else given

    @functools.wraps(theirs)
    def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
        given = args if len(args) == count and not kwargs else inputs(args, kwargs)
        if given is None or any(_is_watched(part) for part in recipe.bypassed(module)):
            return theirs(module, *args, **kwargs)
        return recipe.forward(module, *given)

    return forward


def _new(recipe: type[ModuleRecipe], original: Any) -> Any:
    made = _swapped_class(recipe, original)
    return made.__new__(made)


def _is_swapped(module: Any) -> bool:
    return isinstance(module, Swapped)


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody has put hooks or a forward of its own on it, which would not run."""
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(kinds) or "forward" in vars(module)


def attribute(module: nn.Module, *names: str) -> Any:
    """The first of these attributes that the module has, or None: projects name the same thing differently."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def parameter_of(module: nn.Module, name: str, ndim: int) -> Tensor | None:
    """A floating-point parameter of that name and number of dimensions, or None.

    What a parametrization computes is not looked at: under spectral norm, that alone would move the vectors.
    """
    tensor = module._parameters.get(name)
    return tensor if tensor is not None and tensor.ndim == ndim and tensor.is_floating_point() else None
