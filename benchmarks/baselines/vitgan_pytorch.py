"""The training step as vitgan-pytorch, the first public implementation, makes it; written anew for this comparison.

The same networks with the same weights, the same losses and the same images, computed by another recipe:
- the discriminator runs seven times a step: two for the loss, two for each side of bCR, one for the generator;
- its last block computes every token, of which the class token alone is read;
- L2 attention by `torch.cdist`;
- the SIREN's weights are modulated for each token and applied by a grouped convolution;
- each layer runs its own power iteration in every forward pass of training;
- the optimisers and the average go from parameter to parameter.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Self

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from vitgan.config import Config, LossConfig
from vitgan.presets import PRESETS
from vitgan.training.state import GANState


class LayerSpectralNorm(nn.Module):
    """Improved spectral normalisation of one layer, which iterates whenever the weight is used in training."""

    def __init__(self, u: Tensor, v: Tensor, sigma_init: Tensor) -> None:
        super().__init__()
        self.register_buffer("u", u.clone())
        self.register_buffer("v", v.clone())
        self.register_buffer("sigma_init", sigma_init.clone())

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        if self.training:
            with torch.no_grad():
                self.v = F.normalize(matrix.t() @ self.u, dim=0)
                self.u = F.normalize(matrix @ self.v, dim=0)
        sigma = torch.dot(self.u, matrix @ self.v)
        return weight * (self.sigma_init / sigma)


class CdistAttention(nn.Module):
    """Multi-head L2 attention with tied queries and keys, from distances."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.heads, self.scale = source.heads, source.scale
        self.to_q, self.to_v, self.to_out = source.to_q, source.to_v, source.to_out

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        assert queries is None, "it computes every token"
        q, v = (rearrange(layer(x), "b n (h d) -> b h n d", h=self.heads) for layer in (self.to_q, self.to_v))
        scale = q.shape[-1] ** -0.5 if self.scale is None else self.scale
        weights = torch.softmax(-scale * torch.cdist(q, q, p=2) ** 2, dim=-1)
        return self.to_out(rearrange(weights @ v, "b h n d -> b n (h d)"))


class GroupedSiren(nn.Module):
    """The modulated SIREN with weights of its own for each token, all applied by one grouped convolution a layer."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.source = source

    def forward(self, points: Tensor, style: Tensor) -> Tensor:
        source, count = self.source, len(style)
        x = points.t().expand(count, -1, -1)
        for index, (weight, bias, to_style) in enumerate(
            zip(source.weights, source.biases, source.to_styles, strict=True)
        ):
            modulated = weight * source.weight_scales[index] * to_style(style)[:, None, :]
            grouped = modulated.flatten(0, 1).unsqueeze(-1)
            x = F.conv1d(x.reshape(1, -1, x.shape[-1]), grouped, groups=count).view(count, -1, x.shape[-1])
            x = x + (bias * source.bias_scales[index])[:, None]
            if index < len(source.weights) - 1:
                x = torch.sin(source.omega * x)
        return x.transpose(1, 2)


class Recipe:
    """The networks of a training, with its weights at this moment, stepped by the recipe above."""

    def __init__(self, training: GANState) -> None:
        self.config, self.augment = training.config, training.augment
        # Built anew and not copied: hooks of the trainer's own normalisation belong to its instance.
        twin = GANState(training.config, training.device)
        twin.load_state(*training.state())
        self.generator: Any = twin.generator
        self.discriminator: Any = twin.discriminator
        self.generator.head.siren = GroupedSiren(self.generator.head.siren)
        for block in self.discriminator.blocks:
            block.attention = CdistAttention(block.attention)
        self.discriminator._forward_pre_hooks.clear()
        self.discriminator._forward_hooks.clear()
        for layer in self.discriminator.spectral_norm.layers:
            state = layer.parametrizations.weight[0]
            weight = layer.parametrizations.weight.original
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight = nn.Parameter(weight.detach().clone())
            own = LayerSpectralNorm(state._u, state._v, state.sigma_init)
            parametrize.register_parametrization(layer, "weight", own, unsafe=True)
        rates = self.config.optimiser
        betas = (rates.beta1, rates.beta2)
        self.d_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=rates.d_lr, betas=betas)
        self.g_optimiser = torch.optim.Adam(self.generator.parameters(), lr=rates.g_lr, betas=betas)
        self.average = [p.detach().clone() for p in self.generator.parameters()]
        self.random = torch.Generator(training.device).manual_seed(self.config.seed)
        self.autocast: Callable[[], AbstractContextManager[Any]] = training.objectives.autocast

    def double(self) -> Self:
        """Computes in float64 from now on."""
        self.generator.double()
        self.discriminator.double()
        self.autocast = nullcontext
        return self

    def step(self, real: Tensor) -> None:
        """One step of both networks."""
        self.discriminator_step(real)
        self.generator_step(real)
        with torch.no_grad():
            for old, new in zip(self.average, self.generator.parameters(), strict=True):
                old.sub_((1 - 0.995) * (old - new))

    def discriminator_step(self, real: Tensor) -> None:
        draws = self._draws(real)
        with self.autocast():
            fake = self.images(draws["z"]).detach()
            loss = self.d_loss(real, fake, draws)
        self._optimise(self.d_optimiser, loss)

    def generator_step(self, real: Tensor) -> None:
        draws = self._draws(real)
        with self.autocast():
            loss = self.g_loss(self.images(draws["z"]), draws)
        self._optimise(self.g_optimiser, loss)

    def d_loss(self, real: Tensor, fake: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """Six passes of the discriminator."""
        d, loss = self._logits, self.config.loss
        seen_real, seen_fake = self.augment(real, draws["real"]), self.augment(fake, draws["fake"])
        total = F.softplus(-d(seen_real)).mean() + F.softplus(d(seen_fake)).mean()
        total = total + loss.bcr_real * (d(real) - d(seen_real)).square().mean()
        return total + loss.bcr_fake * (d(fake) - d(seen_fake)).square().mean()

    def g_loss(self, images: Tensor, draws: dict[str, Tensor]) -> Tensor:
        """The seventh."""
        return F.softplus(-self._logits(self.augment(images, draws["fake"]))).mean()

    def images(self, z: Tensor) -> Tensor:
        """In the dtype of the weights, under autocast too."""
        return self.generator(z).to(next(self.generator.parameters()).dtype)

    def _optimise(self, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def _logits(self, images: Tensor) -> Tensor:
        d = self.discriminator
        return d.head(d.norm(d.encode(images)[:, 0]))

    def _draws(self, real: Tensor) -> dict[str, Tensor]:
        z = torch.randn(len(real), self.generator.latent_dim, generator=self.random, device=real.device)
        return {"z": z} | {name: self.augment.draw(len(real), self.random) for name in ("real", "fake")}


def settings(preset: str, batch_size: int, device: str = "cpu", **changes: Any) -> Config:
    """A preset with the losses that the recipe can do: `torch.cdist` has no second derivative, so no R1."""
    loss, augment = LossConfig(kind="logistic", bcr_real=10, bcr_fake=10), PRESETS["cifar10"].augment
    return replace(PRESETS[preset], batch_size=batch_size, loss=loss, augment=augment, device=device, **changes)


def settled(training: GANState) -> GANState:
    """With the vectors of its power iterations at the singular vectors, where iterating changes nothing."""
    for layer in training.discriminator.spectral_norm.layers:
        state, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        left, _, right = torch.linalg.svd(original.detach().flatten(1).double(), full_matrices=False)
        state._u.copy_(left[:, 0])
        state._v.copy_(right[0])
    return training


def draws(training: GANState) -> dict[str, Tensor]:
    """Random numbers for one step."""
    return training._draws(["z", "real", "fake"])


def results(of: GANState | Recipe, real: Tensor, numbers: dict[str, Tensor]) -> list[Tensor]:
    """What a step computes from these numbers: generated images, both losses, and the gradients of each, as vectors.

    The discriminator iterates once in the one recipe and seven times in the other: compare them as `settled` leaves
    them.
    """
    if isinstance(of, Recipe):
        with of.autocast():
            images = of.images(numbers["z"])
            fake = images.detach()
            d_loss, g_loss = of.d_loss(real, fake, numbers), of.g_loss(images, numbers)
    else:
        of.objectives.begin_step()
        views, fake = of.objectives.views(real, None, numbers, None)
        d_loss, _ = of.objectives.of_discriminator(views, None, len(real), False)
        g_loss, _ = of.objectives.of_generator(real, None, numbers)
    gradients = [_gradient(d_loss, of.discriminator), _gradient(g_loss, of.generator)]
    return [fake.detach(), d_loss.detach(), g_loss.detach(), *gradients]


def _gradient(loss: Tensor, network: nn.Module) -> Tensor:
    """In the order of the parameters' names, which both recipes share."""
    named = {name.replace(".source.", "."): parameter for name, parameter in network.named_parameters()}
    ordered = [named[name] for name in sorted(named)]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, ordered, retain_graph=True)])
