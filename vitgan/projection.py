"""Back from an image to the latent that makes it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vitgan.models import ImageGenerator

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
    for step in range(steps):
        part = step / steps
        optimiser.param_groups[0]["lr"] = lr * min(1.0, (1 - part) / 0.5)
        noise = torch.randn(w.shape, generator=random).to(device) * spread
        disturbed = w + 0.05 * noise * max(0.0, 1 - part / NOISE_UNTIL) ** 2
        loss = difference(generator.synthesise(disturbed), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        value = float(loss.detach())
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
