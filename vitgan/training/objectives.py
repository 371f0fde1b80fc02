"""What the two networks minimise, as functions of images and numbers drawn beforehand.

Nothing here draws, steps or stores: so each function can be compiled as one graph, R1 included.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from vitgan.config import LossConfig
from vitgan.devices import check_compiler
from vitgan.training.augment import DiffAugment
from vitgan.training.losses import (
    consistency,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
    rejection_loss,
    sameness,
)

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
            scalars["sameness"] = sameness(images, draws["z"])
            total = total + loss.diversity * scalars["sameness"]
        return total, {name: value.detach() for name, value in scalars.items()}


def _whole_graph(function: Callable[..., Any], cuda_graphs: bool) -> Callable[..., Any]:
    mode = "reduce-overhead" if cuda_graphs else None
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=COMPILE_BACKEND, mode=mode)
    return compiled
