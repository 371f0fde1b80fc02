"""The losses of the two networks, from logits (B,) that are positive for images taken as real."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

LossName = Literal["logistic", "relativistic"]


def discriminator_loss(real: Tensor, fake: Tensor, kind: LossName = "logistic") -> Tensor:
    """Non-saturating logistic loss (Goodfellow et al., 2014), or its relativistic form (R3GAN, Huang et al., 2024)."""
    _check_logits(real, fake)
    if kind == "relativistic":
        return softplus(fake - real).mean()
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor, real: Tensor | None = None, kind: LossName = "logistic") -> Tensor:
    """The generator's side; the relativistic form needs the logits of real images too."""
    if kind == "relativistic":
        if real is None:
            raise ValueError("the relativistic loss compares with the logits of real images: pass real=")
        _check_logits(real, fake)
        return softplus(real - fake).mean()
    return softplus(-fake).mean()


def consistency(logits: Tensor, augmented: Tensor) -> Tensor:
    """Balanced consistency regularisation (bCR, Zhao et al., 2021): mean squared change of a logit by augmentation."""
    _check_logits(logits, augmented)
    return (logits - augmented).square().mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm (B,) of the gradient of each image's logit: R1 on real, R2 on generated ones (Mescheder, 2018).

    images (B, C, H, W) must require a gradient and be what the logits were computed from, each logit from its own image
    alone. Differentiable once more, in the weights.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def _check_logits(a: Tensor, b: Tensor) -> None:
    # (B,) against (B, 1) would broadcast to (B, B) and train towards nothing.
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"logits must be two tensors of one shape (B,), got {tuple(a.shape)} and {tuple(b.shape)}")
