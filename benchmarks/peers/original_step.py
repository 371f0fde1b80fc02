"""The training step as early ViTGAN implementations made it, to hold the trainer's step against.

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
from vitgan.training.state import Adversarial


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


class OriginalStep:
    """The networks of a training, with its weights at this moment, stepped by the recipe above."""

    def __init__(self, training: Adversarial) -> None:
        self.config = training.config
        self.augment = training.augment
        # Built anew and not copied: hooks of the trainer's own normalisation belong to its instance.
        twin = Adversarial(training.config, training.device)
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

    def d_loss(self, real: Tensor, fake: Tensor, seen_real: Tensor, seen_fake: Tensor) -> Tensor:
        """Six passes of the discriminator."""
        d, loss = self._logits, self.config.loss
        total = F.softplus(-d(seen_real)).mean() + F.softplus(d(seen_fake)).mean()
        total = total + loss.bcr_real * (d(real) - d(seen_real)).square().mean()
        return total + loss.bcr_fake * (d(fake) - d(seen_fake)).square().mean()

    def step(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """One step of both networks; the two losses."""
        losses = self.discriminator_step(real), self.generator_step(real)
        with torch.no_grad():
            for old, new in zip(self.average, self.generator.parameters(), strict=True):
                old.sub_((1 - 0.995) * (old - new))
        return losses

    def losses(self, real: Tensor, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Generated images, the discriminator's loss on them and the generator's, from given random numbers."""
        with self.autocast():
            images = self._images(draws["z"])
            fake, seen = images.detach(), self.augment(images, draws["fake"])
            d_loss = self.d_loss(real, fake, self.augment(real, draws["real"]), seen.detach())
            return fake, d_loss, F.softplus(-self._logits(seen)).mean()

    def double(self) -> Self:
        """Computes in float64 from now on."""
        self.generator.double()
        self.discriminator.double()
        self.autocast = nullcontext
        return self

    def discriminator_step(self, real: Tensor) -> Tensor:
        """Its loss."""
        with self.autocast():
            fake = self._images(self._latents(real)).detach()
            loss = self.d_loss(real, fake, self._augmented(real), self._augmented(fake))
        self.d_optimiser.zero_grad()
        loss.backward()
        self.d_optimiser.step()
        return loss.detach()

    def generator_step(self, real: Tensor) -> Tensor:
        """Its loss."""
        with self.autocast():
            loss = F.softplus(-self._logits(self._augmented(self._images(self._latents(real))))).mean()
        self.g_optimiser.zero_grad()
        loss.backward()
        self.g_optimiser.step()
        return loss.detach()

    def _images(self, z: Tensor) -> Tensor:
        """In the dtype of the weights, under autocast too."""
        dtype: torch.dtype = next(self.generator.parameters()).dtype
        return self.generator(z).to(dtype)

    def _logits(self, images: Tensor) -> Tensor:
        d = self.discriminator
        return d.head(d.norm(d.encode(images)[:, 0]))

    def _latents(self, real: Tensor) -> Tensor:
        return torch.randn(len(real), self.generator.latent_dim, generator=self.random, device=real.device)

    def _augmented(self, images: Tensor) -> Tensor:
        return self.augment(images, self.augment.draw(len(images), self.random))


def settings(preset: str, batch_size: int, device: str = "cpu", compiled: bool = False) -> Config:
    """A preset with the losses that the recipe can do: `torch.cdist` has no second derivative, so no R1."""
    return replace(
        PRESETS[preset],
        batch_size=batch_size,
        loss=LossConfig(kind="logistic", bcr_real=10, bcr_fake=10),
        augment=PRESETS["cifar10"].augment,
        device=device,
        compile=compiled,
    )


def settled(training: Adversarial) -> Adversarial:
    """With the vectors of its power iterations at the singular vectors, where iterating changes nothing."""
    for layer in training.discriminator.spectral_norm.layers:
        state, original = layer.parametrizations.weight[0], layer.parametrizations.weight.original
        left, _, right = torch.linalg.svd(original.detach().flatten(1).double(), full_matrices=False)
        state._u.copy_(left[:, 0])
        state._v.copy_(right[0])
    return training


def draws(training: Adversarial) -> dict[str, Tensor]:
    """Random numbers for one step."""
    return training._draws(["z", "real", "fake"])


def results(of: Adversarial | OriginalStep, real: Tensor, numbers: dict[str, Tensor]) -> list[Tensor]:
    """What a step computes from these numbers: generated images, both losses, and the gradients of each, as vectors.

    The discriminator iterates once in the one recipe and seven times in the other: compare them as `settled` leaves
    them.
    """
    if isinstance(of, OriginalStep):
        fake, d_loss, g_loss = of.losses(real, numbers)
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
