"""The recipes of this package, one file for each kind of module, in the order in which they are tried."""

from vitgan_kernels.swap.recipe import Recipe
from vitgan_kernels.swap.recipes.gigagan import GigaGanAttention
from vitgan_kernels.swap.recipes.modulated import LucidrainsModulatedConv, ModulatedConv, ModulatedLinear
from vitgan_kernels.swap.recipes.original_vitgan import (
    OriginalAttention,
    OriginalModulatedLinear,
    OriginalSineLayer,
    OriginalSiren,
    OriginalSpectralNorm,
)
from vitgan_kernels.swap.recipes.siren import SirenLayer, SirenStack
from vitgan_kernels.swap.recipes.torch_spectral_norm import TorchSpectralNorm

BUILT_IN: list[Recipe] = [
    OriginalAttention(),
    OriginalSiren(),  # before its layers, which it then covers
    OriginalSineLayer(),
    OriginalModulatedLinear(),
    OriginalSpectralNorm(),
    GigaGanAttention(),
    ModulatedLinear(),
    ModulatedConv(),
    LucidrainsModulatedConv(),
    SirenStack(),
    SirenLayer(),
    TorchSpectralNorm(),
]
