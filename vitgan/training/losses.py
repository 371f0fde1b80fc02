"""The losses of the two networks, from logits (B,) that are positive for images taken as real."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

from vitgan.devices import check_compiler
from vitgan.errors import InputError, check
from vitgan.training.augment import DiffAugment

LossName = Literal["logistic", "hinge", "relativistic"]


@dataclass(frozen=True)
class LossConfig:
    """What the networks are trained for."""

    kind: LossName = "logistic"
    """Non-saturating logistic, hinge, or relativistic (each real image against a generated one, as R3GAN)."""
    bcr_real: float = 10.0
    """Weight of the consistency of D under augmentation on real images; 0 turns it off."""
    bcr_fake: float = 10.0
    """Likewise on generated images."""
    r1: float = 0.0
    """Weight (gamma / 2) of the squared gradient of D on real images, as augmented for it; 0 turns it off."""
    r2: float = 0.0
    """Likewise on generated images."""
    penalty_every: int = 16
    """Steps between two gradient penalties; their weight is multiplied by it."""
    history: float = 0.0
    """Weight of D's loss on generated images of earlier steps, against going round in circles; 0 turns it off."""
    noise: float = 0.0
    """Weight of D's loss on images of pure noise; 0 turns it off."""
    diversity: float = 0.0
    """Weight of G's loss on pairs of images that differ less than their latents do; 0 turns it off."""

    def __post_init__(self) -> None:
        for name in ("bcr_real", "bcr_fake", "r1", "r2", "history", "noise", "diversity"):
            check(f"loss.{name}", getattr(self, name), getattr(self, name) >= 0, "at least 0")
        check("loss.penalty_every", self.penalty_every, self.penalty_every >= 1, "at least 1")


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
            raise InputError("the relativistic loss compares with the logits of real images: pass real=")
        _check_logits(real, fake)
        return softplus(real - fake).mean()
    return -fake.mean() if kind == "hinge" else softplus(-fake).mean()


def consistency(logits: Tensor, augmented: Tensor) -> Tensor:
    """Balanced consistency regularisation (bCR, Zhao et al., 2021): mean squared change of a logit by augmentation."""
    _check_logits(logits, augmented)
    return (logits - augmented).square().mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm (B,) of the gradient of each image's logit: R1 on real, R2 on generated ones (Mescheder, 2018).

    images (B, C, H, W) must require a gradient and be what the logits were computed from. Where a logit depends on
    other images too, by StyleGAN2's minibatch statistics, the gradient is that of the sum of the group's logits, as in
    StyleGAN2's own code. Differentiable once more, in the weights.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def diversity_loss(images: Tensor, z: Tensor) -> Tensor:
    """How much closer than their latents two images are: mean of max(0, 1 - |x - x'| / |z - z'|) over pairs.

    The diversity-sensitive term of Yang et al. (2019), with root-mean-square distances and its bound at 1. A pair is
    two neighbours in the batch; images (B, C, H, W) and z (B, latent_dim) must have an even B.
    """
    if len(images) % 2 or len(images) != len(z):
        raise InputError(f"images come in pairs, each with its latent: got {len(images)} images, {len(z)} latents")
    pixels, latents = images.flatten(1), z.flatten(1)
    moved = (pixels[::2] - pixels[1::2]).square().mean(dim=1)
    ratio = (moved + 1e-8).sqrt() / (latents[::2] - latents[1::2]).square().mean(dim=1).sqrt()
    return relu(1 - ratio).mean()


def _check_logits(a: Tensor, b: Tensor) -> None:
    # (B,) against (B, 1) would broadcast to (B, B) and train towards nothing.
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"logits must be two tensors of one shape (B,), got {tuple(a.shape)} and {tuple(b.shape)}")


Loss = tuple[Tensor, dict[str, Tensor]]
"""A loss to differentiate, and numbers to log."""

COMPILE_BACKEND = "inductor"


class Objectives:
    """The losses of one training.

    Args:
        generator, discriminator: the networks.
        augment: what D sees images through.
        loss: which terms, and their weights.
        autocast: makes the context that the networks compute in.
        compiled: compile each of the three functions as one full graph.
        cuda_graphs: replay what was compiled as CUDA graphs. What these return lies in memory that they write again
            after the next `begin_step`: to be kept longer, it is copied before.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        augment: DiffAugment,
        loss: LossConfig,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.augment = augment
        self.loss = loss
        self.autocast = autocast
        self.cuda_graphs = cuda_graphs
        self.views: Callable[..., tuple[Tensor, Tensor]] = self._views
        self.of_discriminator: Callable[..., Loss] = self._of_discriminator
        self.of_generator: Callable[..., Loss] = self._of_generator
        if compiled:
            if COMPILE_BACKEND == "inductor" and next(generator.parameters()).device.type == "cpu":
                check_compiler()
            # Without it, the gradient of R1 inside the graph is a graph break.
            torch._dynamo.config.trace_autograd_ops = True
            self.views = _whole_graph(self._views, cuda_graphs)
            self.of_discriminator = _whole_graph(self._of_discriminator, cuda_graphs)
            self.of_generator = _whole_graph(self._of_generator, cuda_graphs)

    def begin_step(self) -> None:
        """Call before each network's step. From here on, CUDA graphs write over what they returned earlier."""
        if self.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    @torch.no_grad()
    def _views(
        self, real: Tensor, labels: Tensor | None, draws: dict[str, Tensor], history: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """All that D is shown in its step, end to end: augmented real and generated images, the same clean where bCR
        needs them, and the optional images to reject. And the generated ones by themselves.

        real (B, C, H, W) -> (views * B, C, H, W), (B, C, H, W).
        """
        with self.autocast():
            fake = self.generator(draws["z"], labels).float()
        views = [self.augment(real, draws["real"]), self.augment(fake, draws["fake"])]
        if self.loss.bcr_real > 0 or self.loss.bcr_fake > 0:
            views += [real, fake]
        if self.loss.history > 0:
            views.append(self.augment(fake if history is None else history, draws["history"]))
        if self.loss.noise > 0:
            views.append(self.augment(draws["pixels"], draws["noise"]))
        return torch.cat(views), fake

    def _of_discriminator(self, images: Tensor, labels: Tensor | None, count: int, penalise: bool) -> Loss:
        """D's loss, from one evaluation of D on the images of `views`, of which `count` are one kind.

        To penalise, the images must be a leaf that requires a gradient.
        """
        loss = self.loss
        labels = None if labels is None else labels.repeat(len(images) // count)
        with self.autocast():
            logits = self.discriminator(images, labels).float()
        views = list(logits.split(count))
        real, fake = views.pop(0), views.pop(0)
        total = discriminator_loss(real, fake, loss.kind)
        scalars = {"d_loss": total, "d_real": real.mean(), "d_fake": fake.mean()}
        if loss.bcr_real > 0 or loss.bcr_fake > 0:
            clean_real, clean_fake = views.pop(0), views.pop(0)
            bcr = loss.bcr_real * consistency(clean_real, real) + loss.bcr_fake * consistency(clean_fake, fake)
            total, scalars["bcr"] = total + bcr, bcr
        for name, weight in (("history", loss.history), ("noise", loss.noise)):
            if weight > 0:
                rejection = rejection_loss(views.pop(0), real, loss.kind)
                total, scalars[name] = total + weight * rejection, rejection
        if penalise:
            norms = gradient_penalty(torch.cat([real, fake]), images)
            r1, r2 = norms[:count].mean(), norms[count : 2 * count].mean()
            total = total + loss.penalty_every * (loss.r1 * r1 + loss.r2 * r2)
            scalars |= {"r1": r1, "r2": r2}
        return total, {name: value.detach() for name, value in scalars.items()}

    def _of_generator(self, real: Tensor, labels: Tensor | None, draws: dict[str, Tensor]) -> Loss:
        """G's loss: its images are augmented just as the discriminator saw them."""
        loss = self.loss
        real_logits = None
        with self.autocast():
            images = self.generator(draws["z"], labels).float()
        if loss.kind == "relativistic":
            seen_real = self.augment(real, draws["real"])
            with self.autocast(), torch.no_grad():
                real_logits = self.discriminator(seen_real, labels).float()
        seen = self.augment(images, draws["fake"])
        with self.autocast():
            logits = self.discriminator(seen, labels).float()
        total = generator_loss(logits, real_logits, loss.kind)
        scalars = {"g_loss": total}
        if loss.diversity > 0:
            scalars["diversity_loss"] = diversity_loss(images, draws["z"])
            total = total + loss.diversity * scalars["diversity_loss"]
        return total, {name: value.detach() for name, value in scalars.items()}


def _whole_graph(function: Callable[..., Any], cuda_graphs: bool) -> Callable[..., Any]:
    mode = "reduce-overhead" if cuda_graphs else None
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=COMPILE_BACKEND, mode=mode)
    return compiled
