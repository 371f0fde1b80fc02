"""Three operators of vision-transformer GANs, each one call that a fused kernel can serve, for any PyTorch code.

- `l2_attention`: attention by L2 distance (the Lipschitz form of Kim et al., 2021);
- `modulated_linear`, `modulated_siren`: a linear layer and a stack of them, modulated per sample, with a sine;
- `spectral_norm`, `SpectralNormGroup`: power iteration and scaling of every matrix of a model in one call.

`swap` puts them into somebody else's model, in place, and reports what it replaced; `unswap` takes them out.

`explain(name, *tensors)` says which implementation of an operator would run, and why not the others;
`use_backend` forces one. `reference` holds the definitions that every implementation is tested against.
"""

from vitgan_kernels import reference
from vitgan_kernels.backends import explain, use_backend
from vitgan_kernels.l2_attention import L2SelfAttention, l2_attention
from vitgan_kernels.modulated_siren import ModulatedSiren, modulated_linear, modulated_siren
from vitgan_kernels.spectral_norm import SpectralNormGroup, spectral_norm
from vitgan_kernels.swap import SwapReport, swap, unswap

__all__ = [
    "L2SelfAttention",
    "ModulatedSiren",
    "SpectralNormGroup",
    "SwapReport",
    "explain",
    "l2_attention",
    "modulated_linear",
    "modulated_siren",
    "reference",
    "spectral_norm",
    "swap",
    "unswap",
    "use_backend",
]
