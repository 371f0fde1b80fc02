"""The networks: ViTGAN's own, and those it is held against and combined with."""

from vitgan.models.base import ImageGenerator
from vitgan.models.cnn import CnnDiscriminator, CnnDiscriminatorConfig, CnnGenerator, CnnGeneratorConfig
from vitgan.models.discriminator import Discriminator, DiscriminatorConfig
from vitgan.models.generator import Generator, GeneratorConfig
from vitgan.models.stylegan2 import StyleGan2Discriminator, StyleGan2DiscriminatorConfig

__all__ = [
    "CnnDiscriminator",
    "CnnDiscriminatorConfig",
    "CnnGenerator",
    "CnnGeneratorConfig",
    "Discriminator",
    "DiscriminatorConfig",
    "Generator",
    "GeneratorConfig",
    "ImageGenerator",
    "StyleGan2Discriminator",
    "StyleGan2DiscriminatorConfig",
]
