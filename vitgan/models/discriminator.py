"""The ViTGAN discriminator (Lee et al., 2021, section 3.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitgan.errors import InputError
from vitgan.models.layers import (
    MLP,
    ClassLogits,
    EqualLinear,
    FourierPositions,
    OverlappingPatches,
    check_images,
    check_sizes,
)
from vitgan_kernels import L2SelfAttention, SpectralNormGroup


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The shape of the discriminator."""

    patch_size: int = 4
    """Stride of the patches in pixels, even; kernel 2 P and padding P / 2 make neighbours overlap by half."""
    dim: int = 384
    """Features of a token."""
    depth: int = 4
    """Transformer blocks."""
    heads: int = 6
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in units of dim."""
    position_frequency: float = 3.0
    """Spread of the frequencies of E_pos, in radians per unit of a grid from -1 to 1."""
    attention_scale: float | None = None
    """Score per squared distance between two tokens; None means (dim / heads) ** -0.5."""


class Discriminator(nn.Module):
    """Images in, one unbounded logit each out: a transformer on overlapping patches, kept Lipschitz.

        h_0   = [class token; patches + E_pos]
        h'    = L2-MSA(LN(h)) + h ;  h = MLP(LN(h')) + h'          depth times
        logit = linear(LN(h_L of the class token))

    Attention is by L2 distance with Wq = Wk. Every matrix is under improved spectral normalisation, which a forward in
    training mode advances by one power iteration.

    Args:
        config: the sizes of the network.
        image_size: side of the square images, in pixels; a multiple of the patch size.
        channels: 1 to 4.
        classes: number of classes to judge by; 0 for none.

    Raises:
        ValueError: a size does not divide or is out of range.
    """

    def __init__(
        self, config: DiscriminatorConfig, *, image_size: int = 32, channels: int = 3, classes: int = 0
    ) -> None:
        super().__init__()
        dim, patch = config.dim, config.patch_size
        check_sizes("discriminator", image_size, patch, channels, dim, config.heads)
        if config.depth < 0 or config.mlp_ratio <= 0:
            raise InputError(f"the discriminator's mlp_ratio must be positive and its depth at least 0, got {config}")
        if patch % 2:
            raise InputError(f"the discriminator's patch size must be even, to overlap by half, got {patch}")
        self.config = config
        self.image_shape = (channels, image_size, image_size)
        self.patches = OverlappingPatches(channels, dim, patch)
        self.class_token = nn.Parameter(torch.randn(dim))
        self.positions = FourierPositions(image_size // patch, dim, frequency=config.position_frequency)
        self.blocks = nn.ModuleList(DiscriminatorBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.head = ClassLogits(dim, classes)
        self.spectral_norm = SpectralNormGroup(self, improved=True)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits, positive for images taken as real (and of their class, if conditional).

        images (B, channels, image_size, image_size), labels int64 (B,) if conditional -> (B,).
        """
        return self.head(self.norm(self.encode(images, tokens=1)[:, 0]), labels)

    def encode(self, images: Tensor, tokens: int | None = None) -> Tensor:
        """The last block's tokens, the class token first: (B, 1 + patches, dim).

        With `tokens`, the first so many alone: the last block computes no others. Logits need the class token alone.

        Raises:
            ValueError: images of another size, or tokens that there are not.
        """
        check_images(images, self.image_shape)
        if tokens is not None and not 1 <= tokens <= 1 + len(self.positions.positions):
            raise InputError(f"tokens must be from 1 to {1 + len(self.positions.positions)}, got {tokens}")
        patches = self.patches(images) + self.positions()
        h = torch.cat([self.class_token.expand(len(images), 1, -1), patches], dim=1)
        for number, block in enumerate(self.blocks, start=1):
            h = block(h, tokens if number == len(self.blocks) else None)
        return h[:, :tokens]


class DiscriminatorBlock(nn.Module):
    """h' = L2-MSA(LN(h)) + h, then h = MLP(LN(h')) + h'. (B, L, dim) -> (B, L, dim), or its first `tokens` tokens."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.dim)
        self.attention = L2SelfAttention(config.dim, config.heads, scale=config.attention_scale, linear=EqualLinear)
        self.mlp_norm = nn.LayerNorm(config.dim)
        self.mlp = MLP(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, h: Tensor, tokens: int | None = None) -> Tensor:
        h = h[:, :tokens] + self.attention(self.attention_norm(h), queries=tokens)
        return h + self.mlp(self.mlp_norm(h))
