"""The ViTGAN generator (Lee et al., 2021, section 3.3)."""

from dataclasses import dataclass
from typing import Literal

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.errors import InputError
from vitgan.models.base import ImageGenerator, MappingNetwork
from vitgan.models.layers import MLP, EqualLinear, FourierPositions, check_sizes
from vitgan_kernels import ModulatedSiren


@dataclass(frozen=True)
class GeneratorConfig:
    """The shape of the generator."""

    patch_size: int = 4
    """Side of a patch in pixels; the sequence has (image size / patch size)^2 tokens."""
    latent_dim: int = 384
    """Size of the latent z, and of w."""
    dim: int = 384
    """Features of a token."""
    depth: int = 4
    """Transformer blocks."""
    heads: int = 6
    """Attention heads of a block."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in units of dim."""
    mapping_depth: int = 8
    """Layers of the mapping network from z to w."""
    mapping_lr_multiplier: float = 0.01
    """Slows the mapping network down, as StyleGAN does."""
    sln: Literal["vector", "scalar"] = "vector"
    """Self-modulated LayerNorm: a gamma and beta for each feature, or one for all."""
    head: Literal["siren", "linear"] = "siren"
    """From token to pixels: a modulated SIREN, or one linear layer."""
    scope: Literal["patch", "image"] = "patch"
    """One SIREN a patch, modulated by its token, or one for the whole image, modulated by all tokens together."""
    siren_dim: int | None = None
    """Width of the SIREN and number of its Fourier features; None means dim."""
    siren_hidden_layers: int = 1
    """Layers of the SIREN with a sine, before the linear one."""
    equalised_siren: bool = True
    """Equalise the SIREN's weights too; else they start as SIREN's own, and Adam's steps are omega times larger."""
    omega: float = 30.0
    """Frequency of the SIREN's sines. Equalised weights are scaled by 1 / omega and cancel it, exactly and for good."""
    demodulate: bool = False
    """Demodulate the SIREN's weights, as StyleGAN2 does."""
    position_frequency: float = 3.0
    """Spread of the frequencies of E_pos, in radians per unit of a grid from -1 to 1."""
    fourier_frequency: float = 3.0
    """Likewise of E_fou, on the pixels of a patch (or, with scope image, of the whole image)."""


class Generator(ImageGenerator):
    """Latents in, images out: a transformer whose tokens become patches of an image.

        w   = mapping(z)
        h_0 = E_pos
        h'  = MSA(SLN(h, w)) + h ;  h = MLP(SLN(h', w)) + h'      depth times
        y   = SLN(h_L, w)
        x_i = f(E_fou, y_i)                                        patch i of the image

    Args:
        config: the sizes of the network.
        image_size: side of the square images, in pixels; a multiple of the patch size.
        channels: 1 to 4.
        classes: number of classes to generate by; 0 for none.

    Raises:
        ValueError: a size does not divide or is out of range.
    """

    def __init__(self, config: GeneratorConfig, *, image_size: int = 32, channels: int = 3, classes: int = 0) -> None:
        check_sizes("generator", image_size, config.patch_size, channels, config.dim, config.heads)
        positive = (config.latent_dim, config.mlp_ratio, config.mapping_lr_multiplier, config.siren_hidden_layers)
        if min(positive) <= 0 or min(config.depth, config.mapping_depth) < 0:
            raise InputError(f"the generator's sizes must be positive (a depth may be 0), got {config}")
        mapping = MappingNetwork(config.latent_dim, config.mapping_depth, config.mapping_lr_multiplier, classes=classes)
        super().__init__(mapping, latent_dim=config.latent_dim, image_size=image_size, channels=channels)
        self.config = config
        grid = image_size // config.patch_size
        self.positions = FourierPositions(grid, config.dim, frequency=config.position_frequency)
        self.blocks = nn.ModuleList(GeneratorBlock(config) for _ in range(config.depth))
        self.norm = SelfModulatedLayerNorm(config)
        head = SirenHead if config.head == "siren" else LinearHead
        self.head = head(config, grid, channels)

    def synthesise(self, w: Tensor) -> Tensor:
        """Images for mapped latents. w (B, latent_dim) -> (B, channels, image_size, image_size)."""
        h = self.positions().expand(w.shape[0], -1, -1)
        for block in self.blocks:
            h = block(h, w)
        return self.head(self.norm(h, w))


class SelfModulatedLayerNorm(nn.Module):
    """SLN(h, w) = gamma(w) * (h - mean) / std + beta(w) (ViTGAN eq. 7). h (B, L, dim), w (B, latent_dim)."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        features = config.dim if config.sln == "vector" else 1
        self.norm = nn.LayerNorm(config.dim, elementwise_affine=False)
        self.gamma = EqualLinear(config.latent_dim, features, bias_init=1.0)
        self.beta = EqualLinear(config.latent_dim, features)

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        return self.gamma(w).unsqueeze(1) * self.norm(h) + self.beta(w).unsqueeze(1)


class GeneratorBlock(nn.Module):
    """h' = MSA(SLN(h, w)) + h, then h = MLP(SLN(h', w)) + h', with an SLN of its own at each site."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.attention_norm = SelfModulatedLayerNorm(config)
        self.attention = SelfAttention(config.dim, config.heads)
        self.mlp_norm = SelfModulatedLayerNorm(config)
        self.mlp = MLP(config.dim, int(config.dim * config.mlp_ratio))

    def forward(self, h: Tensor, w: Tensor) -> Tensor:
        h = h + self.attention(self.attention_norm(h, w))
        return h + self.mlp(self.mlp_norm(h, w))


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product self-attention. (B, L, dim) -> (B, L, dim)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = EqualLinear(dim, 3 * dim)
        self.to_out = EqualLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b l (qkv heads d) -> qkv b heads l d", qkv=3, heads=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b heads l d -> b l (heads d)"))


class LinearHead(nn.Module):
    """Each token through one linear layer to the pixels of its patch. (B, L, dim) -> (B, C, H, W)."""

    def __init__(self, config: GeneratorConfig, grid: int, channels: int) -> None:
        super().__init__()
        self.linear = EqualLinear(config.dim, config.patch_size**2 * channels)
        self.fold = {"gh": grid, "gw": grid, "ph": config.patch_size, "pw": config.patch_size}

    def forward(self, y: Tensor) -> Tensor:
        # gamma and beta, which vary with w, give y a spread near 2 at the start; images shall have half of 1
        return rearrange(self.linear(y) / 4, "b (gh gw) (ph pw c) -> b c (gh ph) (gw pw)", **self.fold)


class SirenHead(nn.Module):
    """f(E_fou, y): a modulated SIREN from a pixel's Fourier features to its colour. (B, L, dim) -> (B, C, H, W)."""

    def __init__(self, config: GeneratorConfig, grid: int, channels: int) -> None:
        super().__init__()
        self.combine: nn.Module | None = None
        cell = config.patch_size
        if config.scope == "image":
            tokens = grid * grid * config.dim
            self.combine = nn.Sequential(nn.Flatten(), EqualLinear(tokens, config.dim), nn.LayerNorm(config.dim))
            grid, cell = 1, grid * cell
        self.fold = {"gh": grid, "gw": grid, "ph": cell, "pw": cell}
        features = config.siren_dim or config.dim
        self.fourier = FourierPositions(cell, features, frequency=config.fourier_frequency)
        self.siren = ModulatedSiren(
            in_features=features,
            hidden_features=features,
            out_features=channels,
            style_features=config.dim,
            hidden_layers=config.siren_hidden_layers,
            omega=config.omega,
            demodulate=config.demodulate,
            equalised=config.equalised_siren,
            linear=EqualLinear,
        )

    def forward(self, y: Tensor) -> Tensor:
        style = y.flatten(0, 1) if self.combine is None else self.combine(y)
        pixels = self.siren(self.fourier(), style)
        return rearrange(pixels, "(b gh gw) (ph pw) c -> b c (gh ph) (gw pw)", **self.fold)
