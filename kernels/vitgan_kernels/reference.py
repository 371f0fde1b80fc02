"""The oracles: every operator in the plainest PyTorch, for any floating dtype and any order of derivative."""

from vitgan_kernels.l2_attention.reference import l2_attention
from vitgan_kernels.modulated_siren.reference import modulated_linear, modulated_siren
from vitgan_kernels.spectral_norm.reference import spectral_norm

__all__ = ["l2_attention", "modulated_linear", "modulated_siren", "spectral_norm"]
