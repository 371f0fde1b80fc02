"""The command line: `vitgan train` and `vitgan sample`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import tyro
from rich.console import Console

from vitgan.adversarial import Adversarial
from vitgan.checkpoint import load_generator
from vitgan.data import open_dataset
from vitgan.distributed import torchrun_ranks
from vitgan.errors import VitganError
from vitgan.images import grid, save_image
from vitgan.loggers import import_wandb
from vitgan.runs import new_run_directory
from vitgan.settings import read_settings, with_classes
from vitgan.trainer import Trainer, pick_device

USAGE = """\
usage: vitgan COMMAND ...

Image generation with vision transformers (ViTGAN, arXiv 2107.04589).

  vitgan train     train on shapes, CIFAR-10, or a folder or zip of images
  vitgan sample    make images with a trained generator

Each command explains itself with --help.
"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
WRITE_BATCH = 256
"""Images held at a time when a folder of them is written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. Expected failures are one line on standard error."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {"train": train, "sample": sample}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(version("vitgan"))
        return 0
    if arguments[0] not in commands:
        print(f"vitgan: no command {arguments[0]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return 130
    except (VitganError, ValueError, OSError) as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"vitgan {arguments[0]}: {error}", markup=False)
        return 1


def train(arguments: list[str]) -> int:
    """vitgan train: values come from the preset, a file and the flags, or from the run that is resumed."""
    settings = read_settings(arguments)
    config = settings.config
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with torchrun_ranks(config.device) as ranks:
        with ranks.first_goes_ahead():  # the others find what it decoded in the cache
            dataset = open_dataset(config.data, image_size=config.image_size, channels=config.channels)
        if len(dataset) < 2:
            raise ValueError(f"{config.data} has one image: training needs at least two")
        config = with_classes(config, dataset)
        if config.wandb:
            import_wandb()
        training = Adversarial(config, pick_device(config.device), ranks)
        # Made last, so that nothing is left behind where a run cannot even start.
        run = settings.resume or ranks.same(new_run_directory(config) if ranks.is_first else None)
        finished = Trainer(config, run, dataset=dataset, training=training).train()
    return 0 if finished else 130


@dataclass(frozen=True)
class Sample:
    """Make images with a trained generator (the averaged one)."""

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    out: Path = Path("samples.png")
    """A .png, .jpg or .webp for a grid or strip; any other path is a folder for one file an image."""
    count: int = 64
    """Number of images; with --interpolate, of steps."""
    seed: int = 0
    """Chooses the latents."""
    truncation: float = 1.0
    """1 shows everything the generator can do; towards 0, images come closer to the mean one."""
    interpolate: bool = False
    """Walk from one random image to the next in w and back, as a strip."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""


def sample(arguments: list[str]) -> int:
    """vitgan sample: a grid, a folder of images, or an interpolation."""
    options = tyro.cli(Sample, args=arguments, prog="vitgan sample")
    if options.count < 1:
        raise ValueError(f"--count must be at least 1, got {options.count}")
    generator = load_generator(options.model, device=pick_device(options.device))
    choose = generator.walk if options.interpolate else generator.map_latents
    w = choose(options.count, seed=options.seed)
    if options.out.suffix.lower() in PICTURES:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        images = generator.render(w, truncation=options.truncation)
        save_image(grid(images, columns=options.count if options.interpolate else None), options.out)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        for start in range(0, options.count, WRITE_BATCH):
            images = generator.render(w[start : start + WRITE_BATCH], truncation=options.truncation)
            for number, image in enumerate(images, start):
                save_image(image, options.out / f"{number:06d}.png")
    print(f"{options.count} images -> {options.out}")
    return 0
