"""ViTGAN: generative adversarial networks made of vision transformers (Lee et al., 2021, arXiv 2107.04589)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitgan.models import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, ImageGenerator
    from vitgan.training.checkpoint import load_generator

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "ImageGenerator", "load_generator"]
_ROOMS = ("data", "metrics", "models", "training")


def __getattr__(name: str) -> Any:
    # PyTorch takes seconds to import: the command line answers, and can be interrupted, before that.
    if name in __all__:
        home = "training.checkpoint" if name == "load_generator" else "models"
        return getattr(import_module(f"vitgan.{home}"), name)
    if name in _ROOMS:
        return import_module(f"vitgan.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
