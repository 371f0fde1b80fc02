"""vitgan project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import Progress

from vitgan.data import DataError
from vitgan.data.decode import decode_image
from vitgan.devices import pick_device
from vitgan.images import check_picture, from_uint8, grid, save_image
from vitgan.projection import project
from vitgan.seeds import check_seed
from vitgan.training.checkpoint import load_generator


@dataclass(frozen=True)
class Project:
    """Find the latent w whose image is most like a given one."""

    model: tyro.conf.Positional[Path]
    """Run directory, or one of its checkpoints."""
    image: tyro.conf.Positional[Path]
    """The image; its largest centred square is scaled to the generator's size."""
    out: Path = Path("projection.png")
    """The image and its likeness side by side; w and both images go into an .npz of the same name."""
    steps: int = 500
    """Steps of optimisation."""
    seed: int = 0
    """Of the disturbances on the way."""
    device: str = "cpu"
    """cpu, cuda, cuda:1, ..."""


def main(arguments: list[str]) -> int:
    """Writes a picture and an .npz, and prints how alike the two are."""
    options = tyro.cli(Project, args=arguments, prog="vitgan project")
    check_seed(options.seed)
    if options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}")
    generator = load_generator(options.model, device=pick_device(options.device))
    check_picture(options.out, generator.channels)
    content = options.image.read_bytes()
    try:
        pixels = decode_image(content, generator.image_size, generator.channels)
    except Exception as error:  # decoders raise anything on broken bytes
        raise DataError(f"{options.image} cannot be read: {error}") from error
    target = from_uint8(torch.from_numpy(pixels.copy()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as bar:
        task = bar.add_task("projecting", total=options.steps)
        w = project(generator, target, steps=options.steps, seed=options.seed, progress=lambda loss: bar.advance(task))
    image = generator.render(w)[0].cpu()
    np.savez(options.out.with_suffix(".npz"), w=w.cpu().numpy(), target=target.numpy(), image=image.numpy())
    save_image(grid(torch.stack([target, image]), columns=2), options.out)
    psnr = float(10 * torch.log10(4 / (image - target).square().mean()))
    print(f"peak signal-to-noise ratio {psnr:.1f} dB -> {options.out}, {options.out.with_suffix('.npz')}")
    return 0
