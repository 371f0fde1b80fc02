"""Plain convolutional networks, to hold the transformers against: after DCGAN (Radford et al., 2016)."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.errors import InputError
from vitgan.models.base import ImageGenerator, MappingNetwork
from vitgan.models.layers import ClassLogits, EqualConv2d, EqualLinear, check_images, octaves
from vitgan_kernels import SpectralNormGroup


@dataclass(frozen=True)
class CnnGeneratorConfig:
    """The shape of the convolutional generator."""

    latent_dim: int = 128
    """Size of the latent z, and of w."""
    width: int = 32
    """Features at the image's own size; they double with every halving of the side, up to max_width."""
    max_width: int = 256
    """Most features of a layer."""
    mapping_depth: int = 2
    """Layers of the mapping network from z to w."""
    mapping_lr_multiplier: float = 0.01
    """Slows the mapping network down, as StyleGAN does."""


@dataclass(frozen=True)
class CnnDiscriminatorConfig:
    """The shape of the convolutional discriminator."""

    width: int = 32
    """Features at the image's own size; they double with every halving of the side, up to max_width."""
    max_width: int = 256
    """Most features of a layer."""


def widths(config: CnnGeneratorConfig | CnnDiscriminatorConfig, image_size: int) -> list[int]:
    """Features at each side: image_size, image_size / 2, ..., 4."""
    if min(config.width, config.max_width) < 1:
        raise InputError(f"width and max_width must be at least 1, got {config}")
    return [min(config.width * 2**level, config.max_width) for level in range(octaves(image_size) + 1)]


class CnnGenerator(ImageGenerator):
    """Latents in, images out: w becomes a 4 x 4 map, which is doubled and convolved up to the image.

    Features are normalised at each pixel (Karras et al., 2018) instead of over the batch, so that an image depends
    neither on the others nor on how they are shared out among processes. The output is linear.

    Args:
        config: the sizes of the network.
        image_size: side of the images in pixels: 4, 8, 16, ...
        channels: 1 to 4.
        classes: number of classes to generate by; 0 for none.
    """

    def __init__(
        self, config: CnnGeneratorConfig, *, image_size: int = 32, channels: int = 3, classes: int = 0
    ) -> None:
        if config.latent_dim < 1 or config.mapping_depth < 0:
            raise InputError(f"the generator's sizes must be positive (mapping_depth may be 0), got {config}")
        mapping = MappingNetwork(config.latent_dim, config.mapping_depth, config.mapping_lr_multiplier, classes=classes)
        super().__init__(mapping, latent_dim=config.latent_dim, image_size=image_size, channels=channels)
        self.config = config
        features = widths(config, image_size)[::-1]
        self.start = EqualLinear(config.latent_dim, 16 * features[0])
        self.convolutions = nn.ModuleList(
            EqualConv2d(before, after, 3) for before, after in zip(features, features[1:] + features[-1:], strict=True)
        )
        self.to_pixels = EqualConv2d(features[-1], channels, 1)

    def synthesise(self, w: Tensor) -> Tensor:
        x = pixel_norm(F.leaky_relu(self.start(w).unflatten(1, (-1, 4, 4)), 0.2))
        for level, convolution in enumerate(self.convolutions):
            x = pixel_norm(F.leaky_relu(convolution(x), 0.2))
            if level < len(self.convolutions) - 1:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
        # Normalised features give the sum a spread near 1; images shall have half of it.
        return self.to_pixels(x) / 2


class CnnDiscriminator(nn.Module):
    """Images in, one unbounded logit each out: convolutions of stride 2 down to 4 x 4, under spectral normalisation.

    Args:
        config: the sizes of the network.
        image_size: side of the images in pixels: 4, 8, 16, ...
        channels: 1 to 4.
        classes: number of classes to judge by; 0 for none.
    """

    def __init__(
        self, config: CnnDiscriminatorConfig, *, image_size: int = 32, channels: int = 3, classes: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (channels, image_size, image_size)
        features = widths(config, image_size)
        self.from_pixels = EqualConv2d(channels, features[0], 3)
        self.convolutions = nn.ModuleList(
            EqualConv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(features)
        )
        self.head = ClassLogits(16 * features[-1], classes)
        self.spectral_norm = SpectralNormGroup(self, improved=True)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits, positive for images taken as real. images (B, C, S, S), labels (B,) if conditional -> (B,)."""
        check_images(images, self.image_shape)
        x = F.leaky_relu(self.from_pixels(images), 0.2)
        for convolution in self.convolutions:
            x = F.leaky_relu(convolution(x), 0.2)
        return self.head(x.flatten(1), labels)


def pixel_norm(x: Tensor) -> Tensor:
    """Features (B, C, H, W), scaled to a mean square of 1 at each pixel."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)
