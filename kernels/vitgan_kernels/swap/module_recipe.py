"""Recipes for modules that are replaced one by one: the same object, with another forward."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitgan_kernels.swap.recipe import Rehearsal, Site
from vitgan_kernels.swap.rehearsal import copied, rehearse


class Swapped:
    """Stands before the class of a replaced module, in a class that is made for it. All but `forward` is inherited.

    So the module is still an instance of its own class, and can be copied, pickled and compiled like any other.
    """

    recipe: ClassVar[type["ModuleRecipe"]]
    original: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _new, (type(self).recipe, type(self).original), self.__getstate__()


class ModuleRecipe(ABC):
    """Recognises one kind of module, and has another forward for it. To be derived from; see `registry` for an example.

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
        """What runs instead of the module's own forward, which is `original_forward(module)`."""

    def covers(self, module: nn.Module) -> Iterable[nn.Module]:
        """Modules inside a replaced one that are not called any more, so that nobody replaces them."""
        return ()

    def find(self, model: nn.Module) -> Iterator[Site]:
        """Every module that it recognises."""
        modules: dict[str, Any] = dict(model.named_modules())
        idle = {id(part) for m in modules.values() if _is_swapped(m) for part in m.recipe().covers(m)}
        for path, module in modules.items():
            if parametrize.is_parametrized(module):
                continue  # another class already stands before its own
            if _is_swapped(module):
                if module.recipe is type(self):
                    yield Site(path, module, module.original.__name__, reason="it is swapped already")
            elif id(module) not in idle and self.recognises(module):
                reason = self._general_obstacle(module) or self.obstacle(module)
                yield Site(path, module, type(module).__name__, reason=reason)

    def _general_obstacle(self, module: nn.Module) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "it is a TorchScript module"
        if "forward" in vars(module):
            return "a forward of its own was set on it"
        hooked = [part for part in self.covers(module) if _has_hooks(part)]
        return f"a {hooked[0].__class__.__name__} in it has hooks, which would not run" if hooked else ""

    def rehearse(self, sites: list[Site], dtype: torch.dtype | None, replaced: bool) -> list[Rehearsal]:
        """Each module by itself, on a copy."""
        rehearsals = []
        for site in sites:
            twin = copied(site.module, dtype)
            if replaced:
                self._put_in(twin)
            rehearsals.append(rehearse(twin, self.inputs(twin)))
        return rehearsals

    def replace(self, model: nn.Module, sites: list[Site]) -> str:
        """Give the modules their other forward."""
        for site in sites:
            self._put_in(site.module)
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
    members = {"recipe": recipe, "original": original, "forward": recipe.forward, "__module__": original.__module__}
    return type(original)(f"Swapped{original.__name__}", (Swapped, original), members)


def _new(recipe: type[ModuleRecipe], original: Any) -> Any:
    made = _swapped_class(recipe, original)
    return made.__new__(made)


def _is_swapped(module: Any) -> bool:
    return isinstance(module, Swapped)


def _has_hooks(module: nn.Module) -> bool:
    kinds = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any(kinds)


def attribute(module: nn.Module, *names: str) -> Any:
    """The first of these attributes that the module has, or None: projects name the same thing differently."""
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def parameter_of(module: nn.Module, name: str, ndim: int) -> Tensor | None:
    """A floating-point parameter of that name and number of dimensions, or None.

    What a parametrization computes is not looked at: under spectral norm, that alone would move the vectors.
    """
    tensor = module._parameters.get(name)
    return tensor if tensor is not None and tensor.ndim == ndim and tensor.is_floating_point() else None
