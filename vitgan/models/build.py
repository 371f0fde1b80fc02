"""The networks that a configuration asks for: any generator with any discriminator."""

from vitgan.config import Config
from vitgan.models import (
    CnnDiscriminator,
    CnnGenerator,
    Discriminator,
    Generator,
    ImageGenerator,
    StyleGan2Discriminator,
)

AnyDiscriminator = Discriminator | CnnDiscriminator | StyleGan2Discriminator


def build_generator(config: Config) -> ImageGenerator:
    """A new generator. Raises ValueError where its sizes do not fit the images."""
    size = {"image_size": config.image_size, "channels": config.channels, "classes": len(config.class_names)}
    if config.generator_kind == "cnn":
        return CnnGenerator(config.cnn_generator, **size)
    return Generator(config.generator, **size)


def build_discriminator(config: Config) -> AnyDiscriminator:
    """A new discriminator. Raises ValueError where its sizes do not fit the images."""
    size = {"image_size": config.image_size, "channels": config.channels, "classes": len(config.class_names)}
    if config.discriminator_kind == "cnn":
        return CnnDiscriminator(config.cnn_discriminator, **size)
    if config.discriminator_kind == "stylegan2":
        return StyleGan2Discriminator(config.stylegan2_discriminator, **size)
    return Discriminator(config.discriminator, **size)


def images_compared(config: Config) -> int:
    """Images whose logits depend on each other: a part of a batch must be a multiple of it."""
    return config.stylegan2_discriminator.minibatch_group if config.discriminator_kind == "stylegan2" else 1
