"""A run so small that a step takes milliseconds."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vitgan.config import Config, LossConfig
from vitgan.data import TensorDataset
from vitgan.models import DiscriminatorConfig, GeneratorConfig
from vitgan.training.loop import Trainer
from vitgan.training.state import GANState

NANO = Config(
    data="nano",
    image_size=8,
    generator=GeneratorConfig(patch_size=4, latent_dim=8, dim=8, depth=1, heads=2, mapping_depth=1),
    discriminator=DiscriminatorConfig(patch_size=4, dim=8, depth=1, heads=2),
    loss=LossConfig(kind="relativistic", r1=0.1, r2=0.1, penalty_every=2),
    batch_size=4,
    images=40,
    log_every=8,
    sample_every=16,
    evaluate_every=16,
    evaluate_samples=8,
    checkpoint_every=12,
    tensorboard=False,
    device="cpu",
)


def nano(**changes: Any) -> Config:
    return replace(NANO, **changes)


def dataset() -> TensorDataset:
    images = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    return TensorDataset(images, name="nano")


def batch(number: int) -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(number)) * 2 - 1


def training(**changes: Any) -> GANState:
    return GANState(nano(**changes), torch.device("cpu"))


def trainer(run: Path, **changes: Any) -> tuple[Trainer, StringIO]:
    out = StringIO()
    config = nano(**changes)
    job = Trainer(config, run, dataset=dataset(), training=training(**changes), console=Console(file=out, width=200))
    return job, out


def everything(state: GANState) -> dict[str, torch.Tensor]:
    """Every tensor that training holds."""
    tensors, _ = state.state()
    average = {f"average.{name}": tensor for name, tensor in state.averaged_generator.state_dict().items()}
    return {name: tensor.clone() for name, tensor in (tensors | average).items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
