"""The two optimisation steps of a GAN, and everything that they change."""

import math
import os
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import record_function

from vitgan.config import Config
from vitgan.errors import InputError, TrainingError
from vitgan.models.build import build_discriminator, build_generator, images_compared
from vitgan.training.augment import DiffAugment
from vitgan.training.distributed import Ranks
from vitgan.training.losses import Loss, Objectives

HISTORY_TURNOVER = 0.01
"""Chance of an image of the history to give its place to a new one at a step: they are 100 steps old on average."""


class GANState:
    """Generator, discriminator, their optimisers, the averaged generator, and the random numbers of training.

    Attributes:
        averaged_generator: the generator whose weights are a moving average (EMA): the one to sample from.

    Args:
        config: the run; its seed fixes the weights at the start and every random draw after it.
        device: where everything lives.
        ranks: the processes that the batch is shared out among.

    Raises:
        ValueError: sizes do not fit, the batch cannot be shared out as asked for, or the device has no CUDA graphs.
    """

    def __init__(self, config: Config, device: torch.device, ranks: Ranks | None = None) -> None:
        self.config = config
        self.device = device
        self.ranks = ranks or Ranks()
        self._check_batch()
        if config.cuda_graphs and device.type != "cuda":
            raise InputError(f"--cuda-graphs needs a CUDA device, and this run is on {device}: leave it away")
        _check_memory(config, device)
        torch.manual_seed(config.seed)
        self.generator = build_generator(config).to(device)
        self.discriminator = build_discriminator(config).to(device)
        # Not PyTorch's AveragedModel: it reads its counter on the device, and so waits for it at every step.
        self.averaged_generator = deepcopy(self.generator).requires_grad_(False)
        self.augment = DiffAugment(config.augment)
        bf16 = device.type == "cuda" if config.bf16 is None else config.bf16
        self.objectives = Objectives(
            self.generator,
            self.discriminator,
            self.augment,
            config.loss,
            autocast=lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16),
            compiled=config.compile,
            cuda_graphs=config.cuda_graphs,
        )
        betas = (config.optimiser.beta1, config.optimiser.beta2)
        self.g_optimiser = torch.optim.Adam(
            self.generator.parameters(), lr=config.optimiser.g_lr, betas=betas, fused=True
        )
        self.d_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.optimiser.d_lr, betas=betas, fused=True
        )
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.history: Tensor | None = None
        self.steps = 0

    @property
    def images(self) -> int:
        """Real images shown to the discriminator so far."""
        return self.steps * self.config.batch_size

    def step(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """One step of the discriminator and one of the generator.

        real: this process's part of the batch, (batch_size / processes, C, H, W) in [-1, 1], on the device.
        labels: int64, one an image, if conditional; generated images take them over.
        Returns scalars to log, still on the device; nothing here waits for it.
        """
        self._set_learning_rates()
        scalars = self.discriminator_step(real, labels) | self.generator_step(real, labels)
        self.steps += 1
        with record_function("vitgan: average"):
            self._move_average()
        return scalars

    def discriminator_step(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The discriminator's half of a step, with arguments and result like those of `step`."""
        self.objectives.begin_step()
        with record_function("vitgan: discriminator"):
            return self._optimise(self.d_optimiser, self._d_losses(real, labels))

    def generator_step(self, real: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """The generator's half of a step, but for the average."""
        self.objectives.begin_step()
        # The generator sees a fixed discriminator: evaluation mode holds its power iteration still.
        self.discriminator.requires_grad_(False).eval()
        with record_function("vitgan: generator"):
            scalars = self._optimise(self.g_optimiser, self._g_losses(real, labels))
        self.discriminator.requires_grad_(True)
        return scalars

    def is_finite(self) -> bool:
        """Whether every weight of both networks is a finite number. Waits for the device."""
        parameters = [*self.generator.parameters(), *self.discriminator.parameters()]
        return bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the next step depends on, but the averaged generator: tensors by name, and plain values.

        Every process must call it, because each has its part of the history.
        """
        tensors = {"random": self.random.get_state()}
        if self.history is not None:
            tensors["history"] = self.ranks.gather(self.history)
        values: dict[str, Any] = {"steps": self.steps}
        for name, network in self._networks().items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
        for name, optimiser in self._optimisers().items():
            for index, slots in optimiser.state_dict()["state"].items():
                tensors |= {f"{name}.{index}.{slot}": tensor for slot, tensor in slots.items()}
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` gave. Raises KeyError, ValueError or RuntimeError where it does not fit."""
        if tensors["random"].shape != self.random.get_state().shape:
            raise InputError(
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
        self.history = self.ranks.shard(tensors["history"]).to(self.device) if "history" in tensors else None
        self.steps = values["steps"]

    def _networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "discriminator": self.discriminator}

    def _optimisers(self) -> dict[str, torch.optim.Optimizer]:
        return {"g_optimiser": self.g_optimiser, "d_optimiser": self.d_optimiser}

    def _optimise(self, optimiser: torch.optim.Optimizer, losses: Iterator[Loss]) -> dict[str, Tensor]:
        optimiser.zero_grad(set_to_none=True)
        parts = []
        for loss, scalars in losses:
            with record_function("vitgan: backward"):
                (loss / self.config.accumulate).backward()
            parts.append(scalars)
        with record_function("vitgan: optimiser"):
            self.ranks.average_gradients(optimiser.param_groups[0]["params"])
            optimiser.step()
        # New tensors, also of one part: what CUDA graphs returned is gone at the next step.
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _d_losses(self, real: Tensor, labels: Tensor | None) -> Iterator[Loss]:
        """The discriminator's loss on each part of the batch."""
        loss = self.config.loss
        penalise = (loss.r1 > 0 or loss.r2 > 0) and self.steps % loss.penalty_every == 0
        draws = self._draws(
            ["z", "real", "fake"] + ["history"] * (loss.history > 0) + ["pixels", "noise"] * (loss.noise > 0)
        )
        history: list[Tensor] = []
        for index, (part, part_labels, part_draws, part_history) in enumerate(self._parts(real, labels, draws)):
            images, fake = self.objectives.views(part, part_labels, part_draws, part_history)
            # One power iteration a step, also when the batch comes in parts.
            self.discriminator.train(index == 0)
            # A tensor of its own: CUDA graphs give out the same one again, which must not keep a gradient.
            leaf = images.detach().requires_grad_(penalise)
            yield self.objectives.of_discriminator(leaf, part_labels, len(part), penalise)
            history.append(fake)
        if loss.history > 0:
            self._remember(torch.cat(history))

    def _g_losses(self, real: Tensor, labels: Tensor | None) -> Iterator[Loss]:
        """The generator's loss on each part of the batch."""
        draws = self._draws(["z", "fake"] + ["real"] * (self.config.loss.kind == "relativistic"))
        for part, part_labels, part_draws, _ in self._parts(real, labels, draws):
            yield self.objectives.of_generator(part, part_labels, part_draws)

    def _draws(self, names: list[str]) -> dict[str, Tensor]:
        """Random numbers for this process's images: z, pixels, or what the augmentation of a view needs.

        They are drawn for the whole batch, in every process alike.
        """
        config, count = self.config, self.config.batch_size
        drawn = {}
        for name in names:
            if name == "z":
                shape: tuple[int, ...] = (count, self.generator.latent_dim)
                numbers = torch.randn(shape, generator=self.random, device=self.device)
            elif name == "pixels":
                shape = (count, config.channels, config.image_size, config.image_size)
                numbers = torch.rand(shape, generator=self.random, device=self.device) * 2 - 1
            else:
                numbers = self.augment.draw(count, self.random)
            drawn[name] = self.ranks.shard(numbers)
        return drawn

    def _parts(
        self, real: Tensor, labels: Tensor | None, draws: dict[str, Tensor]
    ) -> Iterable[tuple[Tensor, Tensor | None, dict[str, Tensor], Tensor | None]]:
        size = len(real) // self.config.accumulate
        for start in range(0, len(real), size):
            rows = slice(start, start + size)
            yield (
                real[rows],
                None if labels is None else labels[rows],
                {name: numbers[rows] for name, numbers in draws.items()},
                None if self.history is None else self.history[rows],
            )

    def _remember(self, fake: Tensor) -> None:
        """Give some places of the history to new images; the first batch takes all."""
        chance = torch.rand(self.config.batch_size, 1, 1, 1, generator=self.random, device=self.device)
        new = self.ranks.shard(chance) < HISTORY_TURNOVER
        self.history = fake.clone() if self.history is None else torch.where(new, fake, self.history)

    def _check_batch(self) -> None:
        config = self.config
        parts = config.accumulate * self.ranks.world_size
        if config.batch_size % parts:
            raise InputError(
                f"a batch of {config.batch_size} cannot be shared out among {self.ranks.world_size} processes in "
                f"{config.accumulate} parts each: make --batch-size a multiple of {parts}, or --accumulate smaller"
            )
        together = math.lcm(images_compared(config), 2 if config.loss.diversity > 0 else 1)
        if config.batch_size // parts % together:
            raise InputError(
                f"images are compared in groups of {together}, but a part of the batch has "
                f"{config.batch_size // parts}: make --batch-size a multiple of {parts * together}, or --accumulate "
                f"smaller"
            )

    def _set_learning_rates(self) -> None:
        optimiser = self.config.optimiser
        left = 1 - self.images / self.config.images
        factor = min(1.0, max(0.0, left) / optimiser.lr_decay) if optimiser.lr_decay > 0 else 1.0
        for group in self.g_optimiser.param_groups:
            group["lr"] = optimiser.g_lr * factor
        for group in self.d_optimiser.param_groups:
            group["lr"] = optimiser.d_lr * factor

    @torch.no_grad()
    def _move_average(self) -> None:
        optimiser = self.config.optimiser
        half_life = min(optimiser.ema_half_life, optimiser.ema_ramp_up * self.images)
        decay = 0.5 ** (self.config.batch_size / half_life) if self.steps > 1 else 0.0
        average: list[Tensor] = list(self.averaged_generator.parameters())
        current: list[Tensor] = list(self.generator.parameters())
        torch._foreach_lerp_(average, current, 1 - decay)


def _check_memory(config: Config, device: torch.device) -> None:
    """TrainingError where weights, gradients and optimisers alone need more memory than the device has."""
    with torch.device("meta"):
        generator, discriminator = build_generator(config), build_discriminator(config)
    sizes = [sum(parameter.nbytes for parameter in network.parameters()) for network in (generator, discriminator)]
    needed = 5 * sizes[0] + 4 * sizes[1]  # weight, gradient, two moments; and the average
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[1]
    else:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise TrainingError(
            f"the networks need at least {needed / 2**30:,.1f} GiB to be trained, and {device} has "
            f"{there / 2**30:,.1f}: choose smaller sizes (--generator.dim, --discriminator.dim, depths)"
        )


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }
