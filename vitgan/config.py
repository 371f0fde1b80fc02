"""The configuration of a training run: what can be set, and the presets."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vitgan.augment import AugmentConfig
from vitgan.losses import LossName
from vitgan.models import DiscriminatorConfig, GeneratorConfig


@dataclass(frozen=True)
class LossConfig:
    """What the networks are trained for."""

    kind: LossName = "logistic"
    """Non-saturating logistic, or relativistic (each real image against a generated one)."""
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

    def __post_init__(self) -> None:
        if min(self.bcr_real, self.bcr_fake, self.r1, self.r2) < 0 or self.penalty_every < 1:
            raise ValueError(f"loss: weights must not be negative and penalty_every at least 1, got {self}")


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam for both networks, and the averaged generator."""

    g_lr: float = 2e-3
    """Learning rate of the generator."""
    d_lr: float = 2e-3
    """Learning rate of the discriminator."""
    beta1: float = 0.0
    """Decay of Adam's first moment."""
    beta2: float = 0.99
    """Decay of Adam's second moment."""
    lr_decay: float = 0.0
    """Last part of the run, from 0 to 1, over which both learning rates fall linearly to zero."""
    ema_half_life: float = 10_000
    """Images after which a generator's weight in the average has halved."""
    ema_ramp_up: float = 0.05
    """The half-life is at most this share of the images seen, so that the average forgets the start."""

    def __post_init__(self) -> None:
        if min(self.g_lr, self.d_lr, self.ema_half_life, self.ema_ramp_up) <= 0:
            raise ValueError(f"optimiser: learning rates, ema_half_life and ema_ramp_up must be positive, got {self}")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and 0 <= self.lr_decay <= 1):
            raise ValueError(f"optimiser: beta1, beta2 and lr_decay must be from 0 to 1 (a beta below 1), got {self}")


@dataclass(frozen=True)
class Config:
    """A training run."""

    preset: str = "tiny"
    """Where all other values start from: tiny, cifar10, celeba64, lsun128 or seed-cifar10."""
    data: str = "shapes"
    """shapes, cifar10, hf:NAME, or the path of a folder or zip of images."""
    image_size: int = 32
    """Side of the images in pixels; the data is scaled and cropped to it."""
    channels: int = 3
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    batch_size: int = 128
    """Images of a step, real and as many generated."""
    accumulate: int = 1
    """Parts that a batch is split into, to save memory; gradients add up to those of the whole batch."""
    images: int = 25_000_000
    """Real images shown to the discriminator until the run ends."""
    max_minutes: float | None = None
    """End after this many minutes of training, if the images do not end first; None means never."""
    seed: int = 0
    """Of the weights, the latents, the augmentation and the order of the data."""
    out: Path | None = None
    """Run directory to make; None numbers one under runs/."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; None takes cuda where there is one."""
    threads: int | None = None
    """CPU threads that PyTorch computes with; None leaves the choice to PyTorch."""
    workers: int | None = None
    """Processes that decode images ahead; None chooses."""
    log_every: int = 12_800
    """Images between two lines of metrics."""
    sample_every: int = 200_000
    """Images between two grids of samples."""
    evaluate_every: int = 200_000
    """Images between two evaluations."""
    evaluate_samples: int = 2048
    """Samples, and as many real images, of an evaluation."""
    checkpoint_every: int = 200_000
    """Images between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""
    wandb: str | None = None
    """Weights & Biases project to log to as well; needs pip install 'vitgan[wandb]'."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "images", "log_every", "sample_every", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1 or self.evaluate_samples < 2:
            raise ValueError("checkpoint_every and keep_checkpoints must be at least 1, evaluate_samples at least 2")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(f"threads must be at least 1 and at most 1024, got {self.threads}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must not be negative, got {self.workers}")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise ValueError(f"max_minutes must be positive, got {self.max_minutes}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}"
            )


PRESETS: dict[str, Config] = {
    "tiny": Config(
        preset="tiny",
        generator=GeneratorConfig(
            patch_size=8,
            latent_dim=64,
            dim=64,
            depth=2,
            heads=2,
            mapping_depth=2,
            siren_dim=32,
            fourier_frequency=1.0,
        ),
        discriminator=DiscriminatorConfig(patch_size=8, dim=64, depth=2, heads=2, attention_scale=1 / 32),
        loss=LossConfig(kind="relativistic", bcr_real=0, bcr_fake=0, r1=0.5, r2=0.5, penalty_every=4),
        augment=AugmentConfig(translation=0, color=0, cutout=0, scaling=0),
        optimiser=OptimiserConfig(g_lr=8e-3, d_lr=8e-3, lr_decay=0.4),
        batch_size=16,
        images=80_000,
        max_minutes=4.6,
        threads=1,  # a second one gains little on tensors this small, and waits where another process has its core
        log_every=1600,
        sample_every=10_000,
        evaluate_every=20_000,
        checkpoint_every=20_000,
    ),
    "cifar10": Config(
        preset="cifar10",
        data="cifar10",
    ),
    "celeba64": Config(
        preset="celeba64",
        data="celeba64",
        image_size=64,
        generator=GeneratorConfig(patch_size=8, depth=6),
        discriminator=DiscriminatorConfig(patch_size=8, depth=6),
    ),
    "lsun128": Config(
        preset="lsun128",
        data="lsun128",
        image_size=128,
        generator=GeneratorConfig(patch_size=8, depth=6),
        discriminator=DiscriminatorConfig(patch_size=8, depth=6),
    ),
    "seed-cifar10": Config(
        preset="seed-cifar10",
        data="cifar10",
        generator=GeneratorConfig(latent_dim=32, heads=4),
        discriminator=DiscriminatorConfig(heads=4),
        optimiser=OptimiserConfig(g_lr=1e-3, d_lr=1e-3),
    ),
}


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that JSON can hold."""
    plain = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in plain.items()}


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A configuration of `kind` from what `to_dict` gave; unknown keys are errors, missing ones take their default."""
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - {f.name for f in dataclasses.fields(kind)})
    if unknown:
        raise ValueError(f"unknown keys in {kind.__name__}: {', '.join(unknown)}")
    ready = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value)
        elif Path in get_args(hints[name]) and value is not None:
            value = Path(value)
        ready[name] = value
    return kind(**ready)
