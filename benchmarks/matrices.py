"""The matrices of the presets' discriminators, which spectral normalisation is measured on."""

from functools import cache

from vitgan.models.build import build_discriminator
from vitgan.presets import PRESETS


@cache
def matrices(preset: str) -> tuple[tuple[int, int], ...]:
    """(out, in) of every matrix."""
    parameters = build_discriminator(PRESETS[preset]).parameters()
    return tuple((p.shape[0], p.numel() // p.shape[0]) for p in parameters if p.ndim > 1)
