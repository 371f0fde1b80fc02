"""The recipes that `swap` knows, in the order in which they are tried: one file for each kind of module, and yours.

A recipe for a module of your own, which computes attention by L2 distance from two projections:

    import torch
    from torch import nn
    from vitgan_kernels import l2_attention, swap
    from vitgan_kernels.swap import ModuleRecipe, register


    class Attention(nn.Module):  # somebody else's
        def __init__(self, dim):
            super().__init__()
            self.query, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)

        def forward(self, x):
            q = self.query(x)
            norms = q.square().sum(-1)
            distances = norms.unsqueeze(-1) + norms.unsqueeze(-2) - 2 * q @ q.mT
            return torch.softmax(-distances / 4, dim=-1) @ self.value(x)


    class FusedAttention(ModuleRecipe):
        looks_for = "attention from a query and a value"
        runs = "l2_attention"

        def recognises(self, module):
            return isinstance(getattr(module, "query", None), nn.Linear) and hasattr(module, "value")

        def inputs(self, module):
            return [(2, 5, module.query.in_features)]

        @staticmethod
        def forward(module, x):
            return l2_attention(module.query(x), None, module.value(x), scale=0.25)


    register(FusedAttention())
    model = nn.Sequential(nn.Linear(3, 8), Attention(8))
    print(swap(model))

`recognises` may be generous: `swap` compares the two forwards, and leaves a module alone for which they disagree.
"""

from vitgan_kernels.swap.recipe import Recipe
from vitgan_kernels.swap.recipes.gigagan import GigaGanAttention
from vitgan_kernels.swap.recipes.modulated import LucidrainsModulatedConv, ModulatedConv, ModulatedLinear
from vitgan_kernels.swap.recipes.siren import SirenLayer, SirenStack
from vitgan_kernels.swap.recipes.torch_spectral_norm import TorchSpectralNorm
from vitgan_kernels.swap.recipes.vitgan_pytorch import (
    VitganPytorchAttention,
    VitganPytorchModulatedLinear,
    VitganPytorchSineLayer,
    VitganPytorchSiren,
    VitganPytorchSpectralNorm,
)

_recipes: list[Recipe] = [
    VitganPytorchAttention(),
    VitganPytorchSiren(),  # before its layers, which it then covers
    VitganPytorchSineLayer(),
    VitganPytorchModulatedLinear(),
    VitganPytorchSpectralNorm(),
    GigaGanAttention(),
    ModulatedLinear(),
    ModulatedConv(),
    LucidrainsModulatedConv(),
    SirenStack(),
    SirenLayer(),
    TorchSpectralNorm(),
]


def registered() -> list[Recipe]:
    """The recipes in the order in which `swap` tries them: yours first, the one registered last before all."""
    return [*_recipes]


def register(recipe: Recipe) -> None:
    """Let every `swap` from now on try this recipe, before those it knows already.

    Raises:
        TypeError: it lacks something that a `Recipe` has.
        ValueError: it is registered already.
    """
    needed = ("looks_for", "find", "trial", "time", "replace", "restore")
    missing = [name for name in needed if not hasattr(recipe, name)]
    if missing or isinstance(recipe, type):
        made = f"a class: give an object, {recipe.__name__}()" if isinstance(recipe, type) else type(recipe).__name__
        lacks = f" without {', '.join(missing)}" if missing else ""
        raise TypeError(f"register: a recipe is needed, got {made}{lacks}")
    if recipe in _recipes:
        raise ValueError(f"register: {recipe.looks_for!r} is registered already")
    _recipes.insert(0, recipe)


def unregister(recipe: Recipe) -> None:
    """Forget a recipe. What it has replaced stays so; `unswap` that first.

    Raises:
        ValueError: it is not registered.
    """
    if recipe not in _recipes:
        raise ValueError(f"unregister: {getattr(recipe, 'looks_for', recipe)!r} is not registered")
    _recipes.remove(recipe)
