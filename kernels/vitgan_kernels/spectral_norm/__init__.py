"""Spectral normalisation of every matrix of a model at once: the function and the group."""

from vitgan_kernels.spectral_norm.module import SpectralNormGroup
from vitgan_kernels.spectral_norm.op import spectral_norm

__all__ = ["SpectralNormGroup", "spectral_norm"]
