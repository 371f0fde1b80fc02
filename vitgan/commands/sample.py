"""vitgan sample."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor

from vitgan.devices import pick_device
from vitgan.files import atomic_write
from vitgan.images import PICTURES, check_picture, grid, save_image, to_uint8
from vitgan.models import ImageGenerator
from vitgan.training.checkpoint import latest_checkpoint, load_config, load_generator, run_of
from vitgan.video import MOVING, check_fps, save_video

WRITE_BATCH = 256
"""Images held at a time when a folder of them is written."""


@dataclass(frozen=True)
class Sample:
    """Make images with a trained generator (the averaged one)."""

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    out: Path = Path("samples.png")
    """A .png, .jpg or .webp for a grid or strip; .npz for an array of bytes (N, H, W, C); .gif or .mp4 for a walk; a
    path without an ending is a folder for one file an image."""
    count: int = 64
    """Number of images; of a walk, of steps."""
    seed: int = 0
    """Chooses the latents."""
    truncation: float = 1.0
    """1 shows everything the generator can do; towards 0, images come closer to the mean one (StyleGAN's psi). Beyond
    1 or below 0 they leave what was trained."""
    label: str | None = None
    """Class of all images, by name, or by number where no name is a number, if the run was conditional; None draws one
    for each."""
    interpolate: bool = False
    """Walk from one random image to the next in w and back, as a strip or, for .gif and .mp4, as a video."""
    fps: int = 20
    """Images a second of a video."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""


def main(arguments: list[str]) -> int:
    """A grid, a folder, an array of images, or an interpolation."""
    options = tyro.cli(Sample, args=arguments, prog="vitgan sample")
    if options.count < 1:
        raise ValueError(f"--count must be at least 1, got {options.count}")
    suffix = options.out.suffix.lower()
    _check_ending(options.out, suffix)
    if suffix in MOVING:
        check_fps(options.fps, suffix)
    generator = load_generator(options.model, device=pick_device(options.device))
    if suffix in PICTURES:
        check_picture(options.out, generator.channels)
    labels = None if options.label is None else class_number(options.model, options.label)
    mean = generator.mean_w(labels=labels) if options.truncation != 1 else None
    choose = generator.walk if options.interpolate or suffix in MOVING else generator.map_latents
    w = choose(options.count, seed=options.seed, labels=labels)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if suffix not in (*PICTURES, *MOVING, ".npz"):
        _prepare_folder(options.out, options.count)
    batches = _render(generator, w, options.truncation, mean)
    if suffix in PICTURES:
        save_image(grid(torch.cat(list(batches)), columns=options.count if options.interpolate else None), options.out)
    elif suffix in MOVING:
        save_video(torch.cat(list(batches)), options.out, fps=options.fps)
    elif suffix == ".npz":
        pixels = torch.cat([to_uint8(images) for images in batches]).permute(0, 2, 3, 1)
        with atomic_write(options.out) as file:
            np.savez_compressed(file, images=pixels.numpy())
    else:
        for number, image in enumerate(image for images in batches for image in images):
            save_image(image, options.out / _file_name(number))
    print(f"{options.count} images -> {options.out}")
    return 0


def _check_ending(out: Path, suffix: str) -> None:
    known = (*PICTURES, ".npz", *MOVING)
    if suffix in known:
        if out.is_dir():
            raise ValueError(f"--out {out} is a folder, and a file is written under that name: choose another")
    elif suffix[1:2].isalpha() and not out.is_dir():  # v1.5 has no ending
        raise ValueError(
            f"--out {out} ends in {suffix}, which is not written here: give one of {', '.join(known)}, "
            f"or a path without an ending for a folder of images"
        )


def _file_name(number: int) -> str:
    return f"{number:06d}.png"


def _prepare_folder(out: Path, count: int) -> None:
    """Make the folder. ValueError where files would stay beside those that are to come."""
    out.mkdir(parents=True, exist_ok=True)
    visible = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    others = visible - {_file_name(number) for number in range(count)}
    if others:
        raise ValueError(
            f"--out {out} holds other files ({min(others)} and so on), which would lie among the new images: choose "
            "another folder, or empty it"
        )


def class_number(model: Path, label: str) -> Tensor:
    """The class of that name, or number where no name is one, (1,). ValueError names those there are."""
    names = load_config(run_of(latest_checkpoint(model.resolve()))).class_names
    if not names:
        raise ValueError(f"{model} is not conditional: leave out --label")
    if label in names:
        return torch.tensor([names.index(label)])
    named_by_numbers = any(name.isdecimal() for name in names)
    if not named_by_numbers and label.isdecimal() and int(label) < len(names):
        return torch.tensor([int(label)])
    if named_by_numbers:
        raise ValueError(f"no class is called {label!r}; there are {', '.join(names)}")
    raise ValueError(f"no class {label!r}; there are {', '.join(f'{i} {name}' for i, name in enumerate(names))}")


def _render(generator: ImageGenerator, w: Tensor, truncation: float, mean: Tensor | None) -> Iterator[Tensor]:
    return (generator.render(part, truncation=truncation, mean=mean) for part in w.split(WRITE_BATCH))
