"""The two optimisation steps of a GAN, and everything that they change."""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vitgan.augment import DiffAugment
from vitgan.config import Config
from vitgan.losses import consistency, discriminator_loss, generator_loss, gradient_penalty
from vitgan.models import Discriminator, Generator

Tensors = tuple[Tensor, ...] | list[Tensor]


class Adversarial:
    """Generator, discriminator, their optimisers, the averaged generator, and the random numbers of training.

    Args:
        config: the run; its seed fixes the weights at the start and every random draw after it.
        device: where everything lives.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config = config
        self.device = device
        torch.manual_seed(config.seed)
        size = {"image_size": config.image_size, "channels": config.channels}
        self.generator = Generator(config.generator, **size).to(device)
        self.discriminator = Discriminator(config.discriminator, **size).to(device)
        self.average = AveragedModel(self.generator, multi_avg_fn=self._move_average)
        self.average.requires_grad_(False)
        self.augment = DiffAugment(config.augment)
        betas = (config.optimiser.beta1, config.optimiser.beta2)
        self.g_optimiser = torch.optim.Adam(
            self.generator.parameters(), lr=config.optimiser.g_lr, betas=betas, fused=True
        )
        self.d_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.optimiser.d_lr, betas=betas, fused=True
        )
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.steps = 0

    @property
    def images(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.steps * self.config.batch_size

    @property
    def averaged_generator(self) -> Generator:
        """The generator whose weights are a moving average (EMA): the one to sample from."""
        return cast(Generator, self.average.module)

    def step(self, real: Tensor) -> dict[str, Tensor]:
        """One step of the discriminator and one of the generator.

        real: (batch_size, C, H, W) in [-1, 1], on the device. Returns scalars to log, still on the device.
        """
        self._set_learning_rates()
        parts = real.chunk(self.config.accumulate)
        d_scalars = self._optimise(self.d_optimiser, (self._d_loss(part, first) for part, first in _first(parts)))
        # The generator sees a fixed discriminator: evaluation mode holds its power iteration still.
        self.discriminator.requires_grad_(False).eval()
        g_scalars = self._optimise(self.g_optimiser, (self._g_loss(part) for part in parts))
        self.discriminator.requires_grad_(True)
        self.steps += 1
        self.average.update_parameters(self.generator)
        return d_scalars | g_scalars

    def is_finite(self) -> bool:
        """Whether every weight of both networks is a finite number. Waits for the device."""
        parameters = [*self.generator.parameters(), *self.discriminator.parameters()]
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on, but the averaged generator: tensors by name, and plain values."""
        tensors = {"random": self.random.get_state()}
        values: dict[str, Any] = {"steps": self.steps, "averaged": int(self.average.n_averaged)}
        for name, network in self._networks().items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
        for name, optimiser in self._optimisers().items():
            for index, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{slot}": tensor for slot, tensor in slots.items()}
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave. Raises KeyError, ValueError or RuntimeError where it does not fit."""
        if tensors["random"].shape != self.random.get_state().shape:
            raise ValueError(
                f"its random state is of another kind of device than {self.device}: choose it with --device"
            )
        for name, network in self._networks().items():
            network.load_state_dict(_below(tensors, name))
        for name, optimiser in self._optimisers().items():
            slots: dict[int, dict[str, Tensor]] = {}
            for key, tensor in _below(tensors, name).items():
                index, slot = key.split(".")
                slots.setdefault(int(index), {})[slot] = tensor
            optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
        self.random.set_state(tensors["random"])
        self.average.n_averaged.fill_(values["averaged"])
        self.steps = values["steps"]

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"g_optimiser": self.g_optimiser, "d_optimiser": self.d_optimiser}

    def _optimise(
        self, optimiser: torch.optim.Optimizer, losses: Iterable[tuple[Tensor, dict[str, Tensor]]]
    ) -> dict[str, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        parts = []
        for loss, scalars in losses:
            (loss / self.config.accumulate).backward()
            parts.append(scalars)
        optimiser.step()
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _d_loss(self, real: Tensor, first: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The discriminator's loss, from one evaluation of D on all the images that it needs."""
        loss = self.config.loss
        penalise = (loss.r1 > 0 or loss.r2 > 0) and self.steps % loss.penalty_every == 0
        with torch.no_grad():
            fake = self.generator(self._latents(len(real)))
            views = [self.augment(real, self.random), self.augment(fake, self.random)]
        if loss.bcr_real > 0 or loss.bcr_fake > 0:
            views += [real, fake]
        images = torch.cat(views).requires_grad_(penalise)
        # One power iteration a step, also when the batch comes in parts.
        self.discriminator.train(first)
        real_logits, fake_logits, *clean = self.discriminator(images).chunk(len(views))
        total = discriminator_loss(real_logits, fake_logits, loss.kind)
        scalars = {"d_loss": total, "d_real": real_logits.mean(), "d_fake": fake_logits.mean()}
        if clean:
            bcr = loss.bcr_real * consistency(clean[0], real_logits) + loss.bcr_fake * consistency(
                clean[1], fake_logits
            )
            total, scalars["bcr"] = total + bcr, bcr
        if penalise:
            norms = gradient_penalty(torch.cat([real_logits, fake_logits]), images)
            r1, r2 = (part.mean() for part in norms[: 2 * len(real)].chunk(2))
            total = total + loss.penalty_every * (loss.r1 * r1 + loss.r2 * r2)
            scalars |= {"r1": r1, "r2": r2}
        return total, {name: value.detach() for name, value in scalars.items()}

    def _g_loss(self, real: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss: its images are augmented just as the discriminator saw them."""
        fake = self.augment(self.generator(self._latents(len(real))), self.random)
        real_logits = None
        if self.config.loss.kind == "relativistic":
            with torch.no_grad():
                real_logits = self.discriminator(self.augment(real, self.random))
        loss = generator_loss(self.discriminator(fake), real_logits, self.config.loss.kind)
        return loss, {"g_loss": loss.detach()}

    def _latents(self, count: int) -> Tensor:
        shape = (count, self.config.generator.latent_dim)
        return torch.randn(shape, generator=self.random, device=self.device)

    def _set_learning_rates(self) -> None:
        optimiser = self.config.optimiser
        left = 1 - self.images / self.config.images
        factor = min(1.0, max(0.0, left) / optimiser.lr_decay) if optimiser.lr_decay > 0 else 1.0
        for group in self.g_optimiser.param_groups:
            group["lr"] = optimiser.g_lr * factor
        for group in self.d_optimiser.param_groups:
            group["lr"] = optimiser.d_lr * factor

    def _move_average(self, average: Tensors, current: Tensors, _count: Tensor | int) -> None:
        optimiser = self.config.optimiser
        half_life = min(optimiser.ema_half_life, optimiser.ema_ramp_up * self.images)
        decay = 0.5 ** (self.config.batch_size / half_life)
        torch._foreach_lerp_(average, current, 1 - decay)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _first(parts: Iterable[Tensor]) -> Iterable[tuple[Tensor, bool]]:
    return ((part, index == 0) for index, part in enumerate(parts))
