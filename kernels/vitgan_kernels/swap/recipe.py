"""What a recipe is: something that recognises places in a model, and replaces them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Rehearsal = list[list[Tensor]]
"""What was computed at one place: the outputs, then groups of tensors of one kind each (gradients, buffers)."""


@dataclass(frozen=True)
class Site:
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

    def find(self, model: nn.Module) -> Iterator[Site]:
        """Every place that it recognises, those it cannot replace with the reason."""

    def rehearse(self, sites: list[Site], dtype: torch.dtype | None, replaced: bool) -> list[Rehearsal]:
        """For each site, what a copy in the dtype (None: its own) computes, always from the same random input."""

    def replace(self, model: nn.Module, sites: list[Site]) -> str:
        """Put the operator in, and say what runs now."""

    def restore(self, model: nn.Module) -> None:
        """Take out of the model, and all in it, what `replace` put in."""
