"""The discriminator's vision transformer as an image classifier: its training, its attention, its files."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from vitgan.config import from_dict
from vitgan.data import ImageDataset
from vitgan.errors import CheckpointError, InputError
from vitgan.files import atomic_write, from_uint8, read_json
from vitgan.models import Discriminator, DiscriminatorConfig
from vitgan.training.checkpoint import (
    CLASSIFIER,
    TRAINING,
    first_misfit,
    latest_checkpoint,
    load_config,
    read_tensors,
    run_of,
)

WEIGHTS = "classifier.safetensors"
PROGRESS_EVERY = 10


class Classifier(Discriminator):
    """The ViTGAN discriminator with a logit for each class, all of which it gives.

    Args:
        config, image_size, channels: as for `Discriminator`.
        class_names: at least two.
    """

    def __init__(
        self, config: DiscriminatorConfig, class_names: list[str], *, image_size: int, channels: int = 3
    ) -> None:
        if len(class_names) < 2:
            raise InputError(f"a classifier needs at least two classes, got {class_names}")
        super().__init__(config, image_size=image_size, channels=channels, classes=len(class_names))
        self.class_names = class_names

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of every class: (B, C, S, S) -> (B, classes). Labels are not looked at."""
        return self.head.all(self.norm(self.encode(images, tokens=1)[:, 0]))

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """What the class token attends to in the last block, mean of the heads: (B, rows, columns), sum at most 1."""
        seen: list[Tensor] = []
        last: Any = self.blocks[-1]
        hook = last.attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self(images)
        finally:
            hook.remove()
        q = last.attention.to_q(seen[0]).unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
        scale = self.config.attention_scale or q.shape[-1] ** -0.5
        scores = -scale * (q[:, :, :1] - q).square().sum(dim=-1)
        weights = scores.softmax(dim=-1).mean(dim=1)[:, 1:]
        side = math.isqrt(weights.shape[1])
        return weights.unflatten(1, (side, side))

    def save(self, folder: Path) -> None:
        """Write the weights and settings, which `load` takes."""
        folder.mkdir(parents=True, exist_ok=True)
        channels, image_size, _ = self.image_shape
        settings = {
            "config": dataclasses.asdict(self.config),
            "class_names": self.class_names,
            "image_size": image_size,
            "channels": channels,
        }
        with atomic_write(folder / CLASSIFIER) as file:
            file.write(json.dumps(settings, indent=2).encode())
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_write(folder / WEIGHTS) as file:
            file.write(save(tensors))

    @staticmethod
    def load(folder: Path) -> "Classifier":
        """The classifier in a folder, in evaluation mode. Raises CheckpointError where there is none."""
        if not (folder / CLASSIFIER).is_file():
            raise CheckpointError(f"{folder} holds no classifier: give the folder that vitgan classify train wrote")
        try:
            settings = read_json(folder / CLASSIFIER)
            config: DiscriminatorConfig = from_dict(DiscriminatorConfig, settings.pop("config"))
            classifier = Classifier(config, **settings)
            classifier.load_state_dict(read_tensors(folder / WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the classifier in {folder} cannot be loaded: {first_misfit(error)}") from error
        return classifier.eval()

    @staticmethod
    def from_discriminator(run: Path, class_names: list[str]) -> "Classifier":
        """A classifier with the encoder of a run's trained discriminator and a head of its own.

        Raises:
            CheckpointError: there is none at `run`, or its discriminator is no vision transformer.
        """
        checkpoint = latest_checkpoint(run.resolve())
        config = load_config(run_of(checkpoint))
        if config.discriminator_kind != "vit":
            raise CheckpointError(f"{run} has a discriminator of kind {config.discriminator_kind}, and vit is needed")
        classifier = Classifier(
            config.discriminator, class_names, image_size=config.image_size, channels=config.channels
        )
        prefix = "discriminator."
        tensors = {n: x for n, x in read_tensors(checkpoint / TRAINING).items() if n.startswith(prefix)}
        encoder = {n.removeprefix(prefix): x for n, x in tensors.items() if not n.startswith(f"{prefix}head.")}
        try:
            classifier.load_state_dict(classifier.state_dict() | encoder)
        except RuntimeError as error:
            raise CheckpointError(f"{checkpoint} is not of the run's configuration: {first_misfit(error)}") from error
        return classifier


def split(dataset: ImageDataset, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a random share of each class, at least one image, held out to test on."""
    labels = cast(Tensor, dataset.labels)
    random = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        count = max(1, round(share * len(members)))
        held_out[members[torch.randperm(len(members), generator=random)[:count]]] = True
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def learning_rate(step: int, steps: int, peak: float, warm_up: float) -> float:
    """Linear warm-up over a share of the steps, then half a cosine down to zero at the last one."""
    ramp = max(1, round(warm_up * steps))
    if step < ramp:
        return peak * (step + 1) / ramp
    return peak * 0.5 * (1 + math.cos(math.pi * (step - ramp) / max(1, steps - ramp)))


def fit(
    classifier: Classifier,
    dataset: ImageDataset,
    train: Tensor,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    warm_up: float,
    seed: int,
    progress: Callable[[int, float], None],
) -> None:
    """Train with Adam on cross entropy, images mirrored at random.

    `progress` is told the steps done and the last one's loss, every PROGRESS_EVERY steps: to read it waits for the
    device.
    """
    device = next(classifier.parameters()).device
    labels = cast(Tensor, dataset.labels)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=lr, betas=(0.9, 0.99), fused=True)
    random = torch.Generator().manual_seed(seed)
    classifier.train()
    for step in range(steps):
        chosen = train[torch.randint(len(train), (batch_size,), generator=random)]
        images = from_uint8(dataset.fetch(chosen).to(device))
        mirrored = (torch.rand(len(images), 1, 1, 1, generator=random) < 0.5).to(device)
        images = torch.where(mirrored, images.flip(3), images)
        loss = F.cross_entropy(classifier(images), labels[chosen].to(device))
        optimiser.param_groups[0]["lr"] = learning_rate(step, steps, lr, warm_up)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if (step + 1) % PROGRESS_EVERY == 0 or step + 1 == steps:
            progress(step + 1, float(loss.detach()))
    classifier.eval()


@torch.no_grad()
def confusion(classifier: Classifier, dataset: ImageDataset, indices: Tensor) -> Tensor:
    """How often (true class, predicted class) occurs: int64 (classes, classes)."""
    device, classes = next(classifier.parameters()).device, len(classifier.class_names)
    labels = cast(Tensor, dataset.labels)
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for part in indices.split(256):
        predicted = classifier(from_uint8(dataset.fetch(part).to(device))).argmax(dim=1).cpu()
        pairs = torch.bincount(labels[part] * classes + predicted, minlength=classes**2)
        matrix += pairs.view(classes, classes)
    return matrix
