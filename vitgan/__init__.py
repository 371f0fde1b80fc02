"""ViTGAN: generative adversarial networks made of vision transformers (Lee et al., 2021, arXiv 2107.04589)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitgan.models import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, ImageGenerator

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "ImageGenerator"]
_MODULES = ("augment", "data", "losses", "metrics", "models")


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import: the command line answers, and can be interrupted, before that.
    if name in __all__:
        return getattr(import_module("vitgan.models"), name)
    if name in _MODULES:
        return import_module(f"vitgan.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
