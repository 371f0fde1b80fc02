"""Linear layers modulated per sample, and the SIREN made of them: the functions and the module."""

from vitgan_kernels.modulated_siren.module import ModulatedSiren
from vitgan_kernels.modulated_siren.op import modulated_linear, modulated_siren

__all__ = ["ModulatedSiren", "modulated_linear", "modulated_siren"]
