"""A GAN of `vitgan_kernels` and plain PyTorch, with R1, on pictures of one soft dot: python examples/trainer.py"""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from vitgan_kernels import L2SelfAttention, ModulatedSiren, SpectralNormGroup

PIXELS = torch.cartesian_prod(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16))


def dots(count: int) -> Tensor:
    """Pictures (count, 1, 16, 16) of a dot somewhere near the middle."""
    centres = torch.rand(count, 1, 2) - 0.5
    return (2 * (-8 * (PIXELS - centres).square().sum(-1)).exp() - 1).view(count, 1, 16, 16)


class Discriminator(nn.Module):
    """Patches, L2 attention, one logit; every matrix under improved spectral normalisation."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, kernel_size=4, stride=4)
        self.positions = nn.Parameter(torch.randn(16, dim))
        self.attention = L2SelfAttention(dim, heads=2)
        self.mlp = nn.Linear(dim, dim)
        self.logit = nn.Linear(dim, 1)
        SpectralNormGroup(self)

    def forward(self, images: Tensor) -> Tensor:
        h = self.patches(images).flatten(2).mT + self.positions
        h = h + self.attention(h)
        return self.logit(gelu(self.mlp(h)).mean(1))


class Generator(nn.Module):
    """A modulated SIREN from Fourier features of the pixels to their values."""

    def __init__(self) -> None:
        super().__init__()
        self.siren = ModulatedSiren(16, 32, 1, style_features=8, hidden_layers=2, omega=3)
        self.register_buffer("features", (PIXELS @ torch.randn(2, 16) * 2).sin())

    def forward(self, z: Tensor) -> Tensor:
        return self.siren(self.features, z).mT.reshape(-1, 1, 16, 16)


def d_loss(discriminator: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss with R1. `real` requires a gradient."""
    on_real, on_fake = discriminator(torch.cat([real, fake])).chunk(2)
    (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
    return softplus(-on_real).mean() + softplus(on_fake).mean() + slope.square().sum((1, 2, 3)).mean() / 20


def distance(generator: nn.Module, count: int = 512) -> float:
    """Sliced Wasserstein distance between dots and generated pictures; two sets of dots are about 0.02 apart."""
    with torch.no_grad():
        directions = torch.nn.functional.normalize(torch.randn(256, 64), dim=0)
        real, fake = (x.flatten(1) @ directions for x in (dots(count), generator(torch.randn(count, 8))))
        return (real.sort(0).values - fake.sort(0).values).abs().mean().item()


def main(steps: int = 400, batch: int = 32) -> None:
    """Train, and print how far the pictures are from the data."""
    torch.manual_seed(0)
    generator, discriminator = Generator(), Discriminator()
    g_optimiser = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.0, 0.99))
    d_optimiser = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.99))
    start = distance(generator)
    for step in range(steps):
        d_optimiser.zero_grad()
        fake = generator(torch.randn(batch, 8))
        loss = d_loss(discriminator, dots(batch).requires_grad_(), fake.detach())
        loss.backward()
        d_optimiser.step()
        g_optimiser.zero_grad()
        softplus(-discriminator(fake)).mean().backward()
        g_optimiser.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}: loss of D {loss.item():.3f}, distance {distance(generator):.3f} (start {start:.3f})"
            )
    assert distance(generator) < start / 3, "the generator has not learnt the dots"


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are too small to share out
    main()
