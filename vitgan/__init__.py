"""ViTGAN: generative adversarial networks made of vision transformers (Lee et al., 2021, arXiv 2107.04589)."""

from vitgan.models import Discriminator, DiscriminatorConfig, Generator, GeneratorConfig, ImageGenerator

__all__ = ["Discriminator", "DiscriminatorConfig", "Generator", "GeneratorConfig", "ImageGenerator"]
