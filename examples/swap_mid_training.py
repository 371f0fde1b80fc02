"""`swap` in the middle of a training run: the loss goes on as if nothing had happened.

python examples/swap_mid_training.py [swap.png]
"""

import copy
import sys

import matplotlib
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm
from trainer import dots

from vitgan_kernels import swap

matplotlib.use("Agg")
from matplotlib import pyplot


def critic() -> nn.Module:
    """A critic as many trainers have it: PyTorch's own spectral normalisation on every layer."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 16, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(16, 32, 4, stride=2, padding=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        spectral_norm(nn.Linear(512, 64)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Linear(64, 1)),
    )


def train(model: nn.Module, optimiser: torch.optim.Optimizer, steps: range, batch: int = 32) -> list[float]:
    """Teach the critic to tell dots from dots with noise, with R1. The data of a step depends on its number alone."""
    losses = []
    for step in steps:
        torch.manual_seed(step)
        real = dots(batch)
        fake = real + 0.3 * torch.randn_like(real)
        real.requires_grad_()
        on_real, on_fake = model(torch.cat([real, fake])).chunk(2)
        (slope,) = torch.autograd.grad(on_real.sum(), real, create_graph=True)
        loss: Tensor = softplus(-on_real).mean() + softplus(on_fake).mean() + slope.square().sum((1, 2, 3)).mean() / 20
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def main(picture: str = "swap.png", before: int = 60, after: int = 90) -> None:
    """Train, swap, train on; beside it a twin that is never swapped. Draws both losses and compares them."""
    torch.manual_seed(0)
    model = critic()
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, betas=(0.0, 0.99))
    losses = train(model, optimiser, range(before))

    twin = copy.deepcopy(model)
    twin_optimiser = torch.optim.Adam(twin.parameters(), 1e-3, betas=(0.0, 0.99))
    twin_optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    saved = copy.deepcopy(model.state_dict())

    print(
        swap(model, keep_slower=True)
    )  # the optimiser holds the same parameters, and a checkpoint from before still fits
    model.load_state_dict(saved)
    swapped = train(model, optimiser, range(before, before + after))
    unswapped = train(twin, twin_optimiser, range(before, before + after))
    twin.load_state_dict(model.state_dict())  # and back: a checkpoint of the swapped model fits the other

    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(range(before + after), losses + unswapped, color="0.75", linewidth=5, label="never swapped")
    axes.plot(range(before + after), losses + swapped, color="C3", linewidth=1.2, label=f"swapped at step {before}")
    axes.axvline(before, color="0.5", linestyle=":")
    axes.set(xlabel="step", ylabel="loss of the critic (logistic + R1)")
    axes.legend()
    figure.savefig(picture, dpi=120)

    apart = max(abs(one - other) for one, other in zip(swapped, unswapped, strict=True))
    fall = losses[0] - swapped[-1]
    print(f"the loss fell by {fall:.3f}; the curves are at most {apart:.1e} apart; drawn in {picture}")
    assert fall > 0.5, "nothing was learnt"
    assert apart < 1e-9, "the swap changed the training"


if __name__ == "__main__":
    torch.set_num_threads(1)  # the tensors are too small to share out
    torch.set_default_dtype(torch.float64)  # in float32 a spike of the loss makes 1e-2 of a rounding
    main(*sys.argv[1:])
