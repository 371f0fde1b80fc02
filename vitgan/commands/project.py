"""vitgan project: from an image back to the latent that makes it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from vitgan.data import DataError
from vitgan.data.decode import decode_image
from vitgan.devices import check_seed, pick_device
from vitgan.errors import InputError
from vitgan.files import check_picture, from_uint8, grid, save_image
from vitgan.models import ImageGenerator
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
        raise InputError(f"--steps must be at least 1, got {options.steps}")
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


NOISE_UNTIL = 0.75
"""Share of the steps in which w is disturbed, ever less, so that it does not settle in the first hollow."""


def project(
    generator: ImageGenerator,
    target: Tensor,
    *,
    steps: int = 500,
    lr: float = 0.1,
    seed: int = 0,
    progress: Callable[[float], None] = lambda loss: None,
) -> Tensor:
    """The w (1, latent_dim) whose image is most like the target (C, H, W) in [-1, 1].

    Adam from the mean w, on squared differences of pixels at all sizes from the image's own to 1, with a learning
    rate that falls to zero (after Karras et al., 2020, whose perceptual distance needs a download and is left out).
    """
    device = next(generator.parameters()).device
    target = target.to(device).unsqueeze(0)
    spread = generator.map_latents(4096, seed=0).std(dim=0)
    w = generator.mean_w().unsqueeze(0).clone().requires_grad_()
    optimiser = torch.optim.Adam([w], lr=lr)
    random = torch.Generator().manual_seed(seed)
    best, best_loss = w.detach().clone(), float("inf")
    for step in range(steps + 1):  # the last time, at a learning rate of 0, to see where the last step led
        part = step / steps
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (1 - part) / 0.5)
        noise = torch.randn(w.shape, generator=random).to(device) * spread
        disturbed = w + 0.05 * noise * max(0.0, 1 - part / NOISE_UNTIL) ** 2
        loss = difference(generator.synthesise(disturbed), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        value = float(loss.detach())
        if step < steps:
            progress(value)
        if part >= NOISE_UNTIL and value < best_loss:
            best, best_loss = disturbed.detach().clone(), value
    return best


def difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of images (N, C, S, S), averaged over their sizes S, S / 2, ... down to 1."""
    losses = [F.mse_loss(a, b)]
    while a.shape[-1] > 1:
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        losses.append(F.mse_loss(a, b))
    return torch.stack(losses).mean()
