"""The two networks of ViTGAN."""

from vitgan.models.discriminator import Discriminator, DiscriminatorConfig
from vitgan.models.generator import Generator, GeneratorConfig

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig"]
