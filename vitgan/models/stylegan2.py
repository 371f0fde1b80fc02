"""The StyleGAN2 discriminator (Karras et al., 2020), the partner of ViTGAN's generator in the paper's best result."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitgan.errors import InputError
from vitgan.models.layers import ClassLogits, EqualConv2d, EqualLinear, check_images, octaves

SPREAD_EPSILON = 1e-8
"""Under the root of the minibatch deviation, whose slope at 0 would be infinite."""


@dataclass(frozen=True)
class StyleGan2DiscriminatorConfig:
    """The shape of the StyleGAN2 discriminator."""

    width: int = 512
    """Features at 32 x 32 and below; above, they halve with every doubling of the side."""
    minibatch_group: int = 4
    """Images that follow each other, whose deviation from each other becomes a feature map; 1 leaves it out."""


class StyleGan2Discriminator(nn.Module):
    """Images in, one unbounded logit each out: residual blocks that blur and halve, down to 4 x 4.

        x     = lrelu(conv1x1(image))
        x     = (lrelu(conv3x3(blur(lrelu(conv3x3(x))))) + conv1x1(blur(x))) / sqrt 2       for each halving
        x     = lrelu(conv3x3([x, deviation in the group]))
        logit = linear(lrelu(linear(x)))

    Equalised learning rates throughout, no normalisation; made to go with R1. With `minibatch_group` above 1 a logit
    depends on the group's other images: group members are neighbours in the batch, so that a batch of several kinds
    of images, laid end to end, mixes no two kinds as long as each kind is a multiple of the group.

    Args:
        config: the sizes of the network.
        image_size: side of the images in pixels: 4, 8, 16, ...
        channels: 1 to 4.
        classes: number of classes to judge by; 0 for none.
    """

    def __init__(
        self, config: StyleGan2DiscriminatorConfig, *, image_size: int = 32, channels: int = 3, classes: int = 0
    ) -> None:
        super().__init__()
        if config.width < 1 or config.minibatch_group < 1:
            raise InputError(f"width and minibatch_group must be at least 1, got {config}")
        self.config = config
        self.image_shape = (channels, image_size, image_size)
        sides = [image_size >> level for level in range(octaves(image_size) + 1)]
        features = [max(1, min(config.width, config.width * 32 // side)) for side in sides]
        self.from_pixels = EqualConv2d(channels, features[0], 1)
        self.blocks = nn.ModuleList(ResidualBlock(before, after) for before, after in pairwise(features))
        self.last = EqualConv2d(features[-1] + (config.minibatch_group > 1), features[-1], 3)
        self.hidden = EqualLinear(16 * features[-1], features[-1])
        self.head = ClassLogits(features[-1], classes)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits, positive for images taken as real. images (B, C, S, S), labels (B,) if conditional -> (B,).

        Raises:
            ValueError: B is not a multiple of minibatch_group, or the images are of another size.
        """
        check_images(images, self.image_shape)
        x = lrelu(self.from_pixels(images))
        for block in self.blocks:
            x = block(x)
        if self.config.minibatch_group > 1:
            x = torch.cat([x, group_deviation(x, self.config.minibatch_group)], dim=1)
        x = lrelu(self.last(x)).flatten(1)
        return self.head(lrelu(self.hidden(x)), labels)


class ResidualBlock(nn.Module):
    """Halves the side. (B, before, S, S) -> (B, after, S / 2, S / 2)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.first = EqualConv2d(before, before, 3)
        self.second = EqualConv2d(before, after, 3, stride=2, padding=0)
        self.skip = EqualConv2d(before, after, 1)
        self.skip.bias = None

    def forward(self, x: Tensor) -> Tensor:
        main = lrelu(self.second(blur(lrelu(self.first(x)), padding=2)))
        return (main + self.skip(blur(x, padding=1, stride=2))) * 0.5**0.5


def lrelu(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the second moment of a normal input."""
    return F.leaky_relu(x, 0.2) * 2**0.5


def blur(x: Tensor, *, padding: int, stride: int = 1) -> Tensor:
    """Each map (B, C, H, W) filtered with [1, 3, 3, 1] / 8 in both directions, every `stride`-th pixel kept."""
    channels = x.shape[1]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    x = F.conv2d(x, taps.view(1, 1, 4, 1).expand(channels, 1, 4, 1), None, (stride, 1), (padding, 0), 1, channels)
    return F.conv2d(x, taps.view(1, 1, 1, 4).expand(channels, 1, 1, 4), None, (1, stride), (0, padding), 1, channels)


def group_deviation(x: Tensor, group: int) -> Tensor:
    """The mean standard deviation in each group of neighbours, as a map for each image of it: (B, 1, H, W)."""
    if len(x) % group:
        raise InputError(
            f"this discriminator compares images in groups of {group}: give a multiple of {group} images, not {len(x)}"
        )
    groups = x.unflatten(0, (-1, group))
    spread = (groups.var(dim=1, unbiased=False) + SPREAD_EPSILON).sqrt().mean(dim=(1, 2, 3))
    return spread.repeat_interleave(group).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
