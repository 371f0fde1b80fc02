"""The losses of the two networks, from logits (B,) that are positive for images taken as real."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

LossName = Literal["logistic", "hinge", "relativistic"]


def discriminator_loss(real: Tensor, fake: Tensor, kind: LossName = "logistic") -> Tensor:
    """What D minimises: each kind the sum of what real and generated images contribute, as the mean of the batch.

    logistic: the non-saturating logistic loss (Goodfellow et al., 2014); hinge: Lim and Ye, 2017; relativistic: each
    real image against the generated one in its place (R3GAN, Huang et al., 2024).
    """
    _check_logits(real, fake)
    if kind == "relativistic":
        return softplus(fake - real).mean()
    if kind == "hinge":
        return relu(1 - real).mean() + relu(1 + fake).mean()
    return softplus(-real).mean() + softplus(fake).mean()


def rejection_loss(fake: Tensor, real: Tensor, kind: LossName = "logistic") -> Tensor:
    """The part of `discriminator_loss` that `fake` has: for images that are not the generator's present ones."""
    _check_logits(real, fake)
    if kind == "relativistic":
        return softplus(fake - real).mean()
    return relu(1 + fake).mean() if kind == "hinge" else softplus(fake).mean()


def generator_loss(fake: Tensor, real: Tensor | None = None, kind: LossName = "logistic") -> Tensor:
    """The generator's side; the relativistic form needs the logits of real images too."""
    if kind == "relativistic":
        if real is None:
            raise ValueError("the relativistic loss compares with the logits of real images: pass real=")
        _check_logits(real, fake)
        return softplus(real - fake).mean()
    return -fake.mean() if kind == "hinge" else softplus(-fake).mean()


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


def sameness(images: Tensor, z: Tensor) -> Tensor:
    """How much closer than their latents two images are: mean of max(0, 1 - |x - x'| / |z - z'|) over pairs.

    The diversity-sensitive term of Yang et al. (2019), with root-mean-square distances and its bound at 1. A pair is
    two neighbours in the batch; images (B, C, H, W) and z (B, latent_dim) must have an even B.
    """
    if len(images) % 2 or len(images) != len(z):
        raise ValueError(f"images come in pairs, each with its latent: got {len(images)} images, {len(z)} latents")
    pixels, latents = images.flatten(1), z.flatten(1)
    moved = (pixels[::2] - pixels[1::2]).square().mean(dim=1)
    ratio = (moved + 1e-8).sqrt() / (latents[::2] - latents[1::2]).square().mean(dim=1).sqrt()
    return relu(1 - ratio).mean()


def _check_logits(a: Tensor, b: Tensor) -> None:
    # (B,) against (B, 1) would broadcast to (B, B) and train towards nothing.
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"logits must be two tensors of one shape (B,), got {tuple(a.shape)} and {tuple(b.shape)}")
