"""The parts that the generator and the discriminator share."""

import math
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.errors import InputError


class EqualLinear(nn.Linear):
    """A linear layer with an equalised learning rate (Karras et al., 2018).

    Weights are held at unit variance and scaled by 1 / sqrt(in_features) as they are used, so that Adam moves every
    layer by the same relative step. `lr_multiplier` slows the layer down further, without changing its start.

    Shape: (..., in_features) -> (..., out_features).
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias_init: float = 0.0, lr_multiplier: float = 1.0
    ) -> None:
        super().__init__(in_features, out_features)
        nn.init.normal_(self.weight, std=1 / lr_multiplier)
        nn.init.constant_(self.bias, bias_init / lr_multiplier)
        self.weight_scale = lr_multiplier / math.sqrt(in_features)
        self.bias_scale = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias if self.bias_scale == 1 else self.bias * self.bias_scale
        return F.linear(x, self.weight * self.weight_scale, bias)


class EqualConv2d(nn.Conv2d):
    """A convolution with an equalised learning rate: unit-variance weights, scaled as they are used.

    Shape: (B, in_channels, H, W) -> (B, out_channels, H', W'), with zeros around the image that keep its size
    (before the stride).
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, padding: int | None = None
    ) -> None:
        padding = kernel // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel, stride=stride, padding=padding)
        nn.init.normal_(self.weight)
        nn.init.zeros_(cast(Tensor, self.bias))
        self.weight_scale = 1 / math.sqrt(in_channels * kernel**2)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.weight_scale, self.bias)


class ClassLogits(EqualLinear):
    """The discriminator's last layer: one logit, or one for each class, of which an image's own is taken.

    With classes this is the conditional discriminator of Mescheder et al. (2018); the layer's rows are a common
    direction and the class embeddings of a projection discriminator (Miyato and Koyama, 2018) in one.

    Shape: x (B, in_features), labels int64 (B,) or None -> (B,). No activation: the logit is unbounded. Autocast leaves
    this layer in the dtype of its weights: losses are differences of logits.
    """

    def __init__(self, in_features: int, classes: int = 0) -> None:
        super().__init__(in_features, max(classes, 1))
        self.classes = classes

    def all(self, x: Tensor) -> Tensor:
        """The logits of every class: (B, classes)."""
        device = "cpu" if x.is_meta else x.device.type  # there is no autocast for the meta device
        with torch.autocast(device, enabled=False):
            return super().forward(x.to(self.bias.dtype))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        logits = self.all(x)
        if not self.classes:
            return logits.squeeze(1)
        if labels is None:
            raise InputError(f"this discriminator is conditional: give labels (B,), numbers below {self.classes}")
        return logits.gather(1, labels.unsqueeze(1)).squeeze(1)


class OverlappingPatches(nn.Module):
    """Patches that overlap their neighbours by half, each through one linear layer with an equalised learning rate.

    This is a convolution of kernel 2 P, stride P and padding P / 2 (ViTGAN section 3.2), written as a matrix product,
    whose derivatives a CPU computes faster.

    Shape: (B, channels, S, S) -> (B, (S / P)^2, dim), rows of patches one after the other.
    """

    def __init__(self, channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Parameter(torch.randn(dim, channels, 2 * patch_size, 2 * patch_size))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.weight_scale = 1 / math.sqrt(channels * (2 * patch_size) ** 2)

    def forward(self, images: Tensor) -> Tensor:
        side = self.patch_size
        padded = F.pad(images, [side // 2] * 4)
        cells = rearrange(padded, "b c (rows h) (columns w) -> b rows columns c h w", h=side, w=side)
        # A patch is 2 x 2 cells. On a CPU, concatenations have a faster derivative than unfold.
        pairs = torch.cat([cells[:, :, :-1], cells[:, :, 1:]], dim=5)
        patches = torch.cat([pairs[:, :-1], pairs[:, 1:]], dim=4)
        pixels = rearrange(patches, "b rows columns c h w -> b (rows columns) (c h w)")
        return F.linear(pixels, (self.weight * self.weight_scale).flatten(1), self.bias)


class FourierPositions(nn.Module):
    """A learned Fourier embedding sin(W p + b) of the cell centres p in [-1, 1]^2 of a grid (ViTGAN, E_pos and E_fou).

    Args:
        grid_size: cells along a side.
        dim: features, each a sine of its own learned direction and frequency.
        frequency: standard deviation of the starting frequencies, in radians per unit of p.

    Shape: () -> (grid_size * grid_size, dim), rows of the grid one after the other.
    """

    positions: Tensor

    def __init__(self, grid_size: int, dim: int, *, frequency: float) -> None:
        super().__init__()
        centres = (torch.arange(grid_size) * 2 + 1) / grid_size - 1
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(-1, 2)
        self.register_buffer("positions", grid, persistent=False)
        self.linear = EqualLinear(2, dim)
        nn.init.uniform_(self.linear.bias, -math.pi, math.pi)
        self.linear.weight_scale = frequency

    def forward(self) -> Tensor:
        # No matrix product, which autocast would round: a phase of several radians has no digits to spare.
        rows, columns = self.positions.unsqueeze(2).unbind(1)
        by_row, by_column = (self.linear.weight * self.linear.weight_scale).unbind(1)
        return torch.sin(rows * by_row + columns * by_column + self.linear.bias)


class MLP(nn.Sequential):
    """Linear, GELU, linear. Shape: (..., dim) -> (..., dim)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__(EqualLinear(dim, hidden), nn.GELU(), EqualLinear(hidden, dim))


def check_images(images: Tensor, shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless images are (B, *shape)."""
    if images.shape[1:] != shape:
        raise InputError(f"this discriminator takes images of {shape}, got {tuple(images.shape[1:])}")


def octaves(image_size: int) -> int:
    """How often 4 is doubled to make the image's side. Raises ValueError where it is not 4, 8, 16, ..."""
    if image_size < 4 or image_size & (image_size - 1):
        raise InputError(f"a convolutional network needs an image size of 4, 8, 16, 32, ..., got {image_size}")
    return image_size.bit_length() - 3


def check_sizes(network: str, image_size: int, patch_size: int, channels: int, dim: int, heads: int) -> None:
    """Raise ValueError unless the sizes of a generator or discriminator fit together."""
    if image_size < 1 or patch_size < 1 or image_size % patch_size:
        raise InputError(
            f"{network}: the image size must be a multiple of the patch size, got {image_size} and {patch_size}"
        )
    if not 1 <= channels <= 4:
        raise InputError(f"channels must be 1 to 4 (grey, grey + alpha, RGB, RGBA), got {channels}")
    if heads < 1 or dim < 1 or dim % heads:
        raise InputError(f"{network}: dim must be a positive multiple of heads, got dim={dim} and heads={heads}")
