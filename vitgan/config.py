"""The configuration of a training run: what can be set."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from vitgan.devices import check_seed, check_threads
from vitgan.errors import InputError, check
from vitgan.models import (
    CnnDiscriminatorConfig,
    CnnGeneratorConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    StyleGan2DiscriminatorConfig,
)
from vitgan.training.augment import AugmentConfig
from vitgan.training.losses import LossConfig


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
        for name in ("g_lr", "d_lr", "ema_half_life", "ema_ramp_up"):
            check(f"optimiser.{name}", getattr(self, name), getattr(self, name) > 0, "positive")
        for name in ("beta1", "beta2"):
            check(f"optimiser.{name}", getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        check("optimiser.lr_decay", self.lr_decay, 0 <= self.lr_decay <= 1, "from 0 to 1")


def is_name(data: str) -> bool:
    """Whether that names a data set, also where a folder has the same name."""
    return data in ("shapes", "cifar10") or data.startswith("hf:")


SIZES: dict[str, tuple[float, float]] = {
    "image_size": (1, 4096),
    "batch_size": (1, 2**20),
    "images": (1, 10**12),
    "penalty_every": (1, 10**9),
    "minibatch_group": (1, 1024),
    "patch_size": (1, 1024),
    "latent_dim": (1, 2**16),
    "dim": (1, 2**16),
    "depth": (0, 256),
    "heads": (1, 1024),
    "mlp_ratio": (1e-3, 64),
    "mapping_depth": (0, 64),
    "mapping_lr_multiplier": (1e-6, 1e3),
    "siren_dim": (1, 2**16),
    "siren_hidden_layers": (1, 64),
    "omega": (1e-3, 1e6),
    "position_frequency": (0, 1e6),
    "fourier_frequency": (0, 1e6),
    "attention_scale": (1e-6, 1e6),
    "width": (1, 2**16),
    "max_width": (1, 2**16),
}
"""Ranges, ends included, of settings of these names in any part: beyond them nothing can be computed with."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    preset: str = "tiny"
    """Where all other values start from: tiny, cifar10, cifar10-hybrid, celeba64, lsun128 or vitgan-pytorch-cifar10."""
    data: str = "shapes"
    """shapes, cifar10, hf:NAME, or the path of a folder or zip of images."""
    image_size: int = 32
    """Side of the images in pixels; the data is scaled and cropped to it."""
    channels: int = 3
    """1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    generator_kind: Literal["vit", "cnn"] = "vit"
    """Which generator; the settings of the others have no part."""
    discriminator_kind: Literal["vit", "cnn", "stylegan2"] = "vit"
    """Which discriminator; any goes with any generator."""
    conditional: bool = False
    """Generate and judge by class; the data must have classes (folders of one class each, or a dataset.json)."""
    class_names: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The classes of a conditional run, in the order of their numbers; taken from the data."""
    data_identity: Annotated[str, tyro.conf.Suppress] = ""
    """The number of images and a digest of their names; taken from the data."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    cnn_generator: CnnGeneratorConfig = field(default_factory=CnnGeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    cnn_discriminator: CnnDiscriminatorConfig = field(default_factory=CnnDiscriminatorConfig)
    stylegan2_discriminator: StyleGan2DiscriminatorConfig = field(default_factory=StyleGan2DiscriminatorConfig)
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
    bf16: bool | None = None
    """Compute in bfloat16 where autocast does, weights and optimisers in float32; None means on CUDA alone."""
    compile: bool = False
    """Compile the whole step of each network with torch.compile; the first steps then take minutes, of max_minutes
    too."""
    cuda_graphs: bool = False
    """With --compile, on CUDA: replay the compiled steps as CUDA graphs, which spares their launches."""
    profile: bool = False
    """Trace a few steps into RUN/profile.json (for chrome://tracing) and print where their time goes."""
    threads: int | None = None
    """CPU threads that PyTorch computes with; None leaves the choice to PyTorch."""
    workers: int | None = None
    """Processes that decode images ahead, where the data does not lie on the GPU; None chooses."""
    log_every: int = 12_800
    """Images between two lines of metrics."""
    sample_every: int = 200_000
    """Images between two grids of samples."""
    evaluate_every: int = 200_000
    """Images between two evaluations."""
    evaluate_samples: int = 2048
    """Samples, and as many real images, of an evaluation."""
    features: Literal["none", "efficientnet-lite0", "inception"] = "none"
    """Network whose features evaluations compare too: inception gives FID (see vitgan eval --help)."""
    inception_weights: Path | None = None
    """File of the FID Inception's weights; None downloads them once."""
    checkpoint_every: int = 200_000
    """Images between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    tensorboard: bool = True
    """Write TensorBoard event files into the run directory."""
    wandb: str | None = None
    """Weights & Biases project to log to as well; needs pip install 'vitgan[wandb]'."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        every = ("log_every", "sample_every", "evaluate_every", "checkpoint_every")
        for name in ("batch_size", "accumulate", "images", *every, "keep_checkpoints"):
            check(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        check("evaluate_samples", self.evaluate_samples, self.evaluate_samples >= 2, "at least 2")
        if self.cuda_graphs and not self.compile:
            raise InputError("cuda_graphs replays compiled steps: set compile too, or leave cuda_graphs away")
        check_threads(self.threads)
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers must not be negative, got {self.workers}")
        if self.max_minutes is not None and self.max_minutes <= 0:
            raise InputError(f"max_minutes must be positive, got {self.max_minutes}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size must be a multiple of accumulate, got {self.batch_size} and {self.accumulate}"
            )
        check_numbers(self)


def differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """What has changed from one configuration to another of its kind: "loss.kind: hinge -> logistic" and so on."""
    found = []
    for name, old in vars(before).items():
        new = getattr(now, name)
        if dataclasses.is_dataclass(old):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}: {old} -> {new}")
    return found


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain values that JSON can hold."""
    plain = dataclasses.asdict(config)
    return {key: str(value) if isinstance(value, Path) else value for key, value in plain.items()}


def from_dict(kind: type, values: dict[str, Any], *, default: Any = None) -> Any:
    """A configuration of `kind` from values as `to_dict` gives them; a missing one is taken from `default`.

    Raises:
        ValueError: a key is unknown (the message names the nearest known one) or a value is out of range.
    """
    if not isinstance(values, dict):
        raise InputError(f"{kind.__name__} needs a table of settings, got {values!r}")
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {key.replace("-", "_"): value for key, value in values.items()}
    for key in sorted(set(values) - set(names)):
        near = difflib.get_close_matches(key, names, n=1)
        table, _, inner = key.partition(".")
        if inner and dataclasses.is_dataclass(hints.get(table)):
            hint = f"write {inner!r} into a table of its own, {table!r}"
        else:
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names)}"
        raise InputError(f"unknown key {key!r} in {kind.__name__}: {hint}")
    ready = {}
    for name, value in values.items():
        _check_type(f"{kind.__name__}.{name}", value, hints[name])
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(hints[name], value, default=getattr(default, name, None))
        elif Path in get_args(hints[name]) and value is not None:
            value = Path(value)
        elif get_origin(hints[name]) is tuple:
            value = tuple(value)
        ready[name] = value
    return kind(**ready) if default is None else dataclasses.replace(default, **ready)


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError unless the value, as JSON or TOML has it, can stand for one of that type."""
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise InputError(f"{name} must be a table of settings, got {value!r}")
        return
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise InputError(f"{name} must be a list of strings, got {value!r}")
        return
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name} must be one of {', '.join(map(str, get_args(hint)))}, got {value!r}")
        return
    kinds = tuple(str if kind is Path else kind for kind in get_args(hint) or (hint,))
    fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        known = " or ".join("a string" if kind is str else kind.__name__ for kind in kinds if kind is not type(None))
        raise InputError(f"{name} must be {known}, got {value!r}")


def check_numbers(config: Any, prefix: str = "") -> None:
    """InputError that names a setting which is out of its range in SIZES, or not finite."""
    for name, value in vars(config).items():
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{prefix}{name}.")
        elif name in SIZES and value is not None:
            low, high = SIZES[name]
            check(f"{prefix}{name}", value, low <= value <= high, f"from {low:,} to {high:,}")
        elif isinstance(value, float):
            check(f"{prefix}{name}", value, math.isfinite(value), "a finite number")
