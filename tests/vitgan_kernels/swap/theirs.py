"""Modules of other projects, written anew from their descriptions: names, shapes and mathematics are theirs."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SpectralNorm(nn.Module):
    """ViTGAN-pytorch's wrapper: starts from the same u in every forward, and scales to the sigma of the first."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.module, self.name, self.power_iterations = layer, "weight", 1
        self.w_init_sigma: Any = None
        self.w_initalized = False
        weight = layer._parameters.pop("weight")
        for part in ("u", "v"):  # both as long as the outputs; v is never read
            start = torch.randn(len(weight))
            layer.register_parameter(f"weight_{part}", nn.Parameter(start / start.norm(), requires_grad=False))
        layer.register_parameter("weight_bar", nn.Parameter(weight.data))

    def forward(self, *args: Any) -> Any:
        w = self.module.weight_bar
        matrix, u = w.view(len(w), -1), self.module.weight_u
        for _ in range(self.power_iterations):
            v = unit(matrix.t() @ u)
            u = unit(matrix @ v)
        sigma = u @ matrix @ v
        if not self.w_initalized:
            self.w_init_sigma, self.w_initalized = sigma.expand_as(w).detach().numpy().copy(), True
        self.module.weight = torch.tensor(self.w_init_sigma) * w / sigma
        return self.module(*args)


def unit(x: Tensor) -> Tensor:
    return x / (x.norm() + 1e-4)


class MultiHeadAttention(nn.Module):
    """ViTGAN-pytorch's attention of both networks."""

    def __init__(self, emb_size: int, num_heads: int = 4, dropout: float = 0, discriminator: bool = True) -> None:
        super().__init__()
        self.emb_size, self.num_heads, self.discriminator = emb_size, num_heads, discriminator
        wrap = SpectralNorm if discriminator else nn.Identity
        self.qkv: Any = nn.Linear(emb_size, 3 * emb_size)
        self.projection: Any = nn.Linear(emb_size, emb_size)
        self.att_drop = nn.Dropout(dropout)
        if wrap is SpectralNorm:
            self.qkv, self.projection = SpectralNorm(self.qkv), SpectralNorm(self.projection)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.cdist(q, k) if self.discriminator else q @ k.mT

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.num_heads, -1, 3)
        q, k, v = (part.transpose(1, 2).contiguous() for part in qkv.unbind(-1))
        weights = self.att_drop(self.scores(q, k).softmax(-1) / math.sqrt(self.emb_size))
        return self.projection((weights @ v).transpose(1, 2).reshape(batch, tokens, -1))


class AttentionOfSquares(MultiHeadAttention):
    """Looks the same, but takes the squared distance."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)


class ModulatedLinear(nn.Module):
    """ViTGAN-pytorch's, with one grouped convolution for all samples, and pixels and channels in each other's place."""

    def __init__(self, in_channels: int, out_channels: int, style_size: int, demodulation: bool = False) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.style_size = in_channels, out_channels, style_size
        self.scale = 1 / np.sqrt(in_channels)
        self.weight = nn.Parameter(torch.randn(1, out_channels, in_channels, 1))
        self.modulation = nn.Linear(style_size, in_channels) if style_size != in_channels else None
        self.demodulation = demodulation

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        batch, pixels, _ = input.shape
        style = style if self.modulation is None else self.modulation(style)
        weight = self.scale * self.weight * style[:, None, :, None]
        if self.demodulation:
            weight = weight / (weight.square().sum(2, keepdim=True) + 1e-8).sqrt()
        grouped = input.reshape(1, batch * self.in_channels, pixels)
        out = F.conv1d(grouped, weight.flatten(0, 1), groups=batch)
        return out.view(batch, pixels, self.out_channels)


class StraightModulatedLinear(ModulatedLinear):
    """Looks the same, but leaves pixels and channels in their places."""

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        style = style if self.modulation is None else self.modulation(style)
        return (input * style.unsqueeze(1)) @ (self.scale * self.weight[0, :, :, 0]).t()


class ModulatedSineLayer(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, style: int, omega_0: float = 30.0, demodulation: bool = False
    ) -> None:
        super().__init__()
        self.omega_0, self.linear = omega_0, ModulatedLinear(inputs, outputs, style, demodulation)

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(input, style))


class Siren(nn.Module):
    """ViTGAN-pytorch's; no gradient reaches the coordinates."""

    def __init__(self, *omegas: float, width: int = 6, demodulation: bool = False, style: int = 6) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            ModulatedSineLayer(width, width, style, omega_0=w, demodulation=demodulation) for w in omegas
        ]
        self.net = nn.Sequential(*layers, ModulatedLinear(width, 3, style, demodulation))

    def forward(self, coords: Tensor, style: Tensor) -> Tensor:
        output = coords.clone().detach().requires_grad_(True)
        for layer in self.net:
            output = layer(output, style)
        return output


class ChannelRMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(dim, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * x.shape[1] ** 0.5 * self.gamma


class SelfAttention(nn.Module):
    """GigaGAN's in PyTorch: tied queries and keys, 1x1 convolutions, a null key and value in each head."""

    def __init__(self, dim: int, dim_head: int = 5, heads: int = 2, dot_product: bool = False) -> None:
        super().__init__()
        self.heads, self.scale, self.dot_product = heads, dim_head**-0.5, dot_product
        self.norm = ChannelRMSNorm(dim)
        self.to_q = nn.Conv2d(dim, heads * dim_head, 1, bias=False)
        self.to_k = nn.Conv2d(dim, heads * dim_head, 1, bias=False) if dot_product else None
        self.to_v = nn.Conv2d(dim, heads * dim_head, 1, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, heads, dim_head))
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1, bias=False)

    def forward(self, fmap: Tensor) -> Tensor:
        fmap = self.norm(fmap)
        q, v = (layer(fmap).unflatten(1, (self.heads, -1)).flatten(3).mT for layer in (self.to_q, self.to_v))
        nulls = self.null_kv[:, None, :, None].expand(-1, len(fmap), -1, -1, -1)
        k, v = torch.cat([nulls[0], q], 2), torch.cat([nulls[1], v], 2)
        distance = q.square().sum(-1, keepdim=True) + k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
        out = (-self.scale * distance).softmax(-1) @ v
        return self.to_out(out.mT.reshape(len(fmap), -1, *fmap.shape[2:]))


class ResidualSelfAttention(SelfAttention):
    """Looks the same, but adds its input."""

    def forward(self, fmap: Tensor) -> Tensor:
        return super().forward(fmap) + fmap


class ModulatedConv2d(nn.Module):
    """StyleGAN2's, as CIPS has it too."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        style: int = 4,
        demodulate: bool = True,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.eps, self.kernel_size, self.scale = 1e-8, kernel, 1 / math.sqrt(inputs * kernel**2)
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.modulation = nn.Linear(style, inputs)
        self.demodulate, self.upsample, self.downsample = demodulate, upsample, False

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        batch, _, height, width = input.shape
        weight = self.scale * self.weight * self.modulation(style)[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + self.eps)
        out = F.conv2d(input.reshape(1, -1, height, width), weight.flatten(0, 1), padding="same", groups=batch)
        return out.view(batch, -1, height, width)


class ShiftedModulatedConv2d(ModulatedConv2d):
    """Looks the same, but adds a constant."""

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        return super().forward(input, style) + self.scale


class Conv2DMod(nn.Module):
    """stylegan2-pytorch's."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, demod: bool = True) -> None:
        super().__init__()
        self.filters, self.kernel, self.stride, self.demod = outputs, kernel, 1, demod
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.weight * (y[:, None, :, None, None] + 1)
        if self.demod:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        out = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), padding="same", groups=len(x))
        return out.view(len(x), -1, *x.shape[2:])


class CipsLinear(nn.Module):
    """A modulated linear layer on a list of points."""

    def __init__(self, inputs: int, outputs: int, style: int = 4, demodulation: bool = True) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(1, outputs, inputs)), nn.Parameter(torch.randn(outputs))
        self.modulation, self.demodulation, self.scale = nn.Linear(style, inputs), demodulation, inputs**-0.5

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.scale * self.weight * self.modulation(style).unsqueeze(1)
        if self.demodulation:
            weight = weight / (weight.square().sum(-1, keepdim=True) + 1e-8).sqrt()
        return torch.bmm(x, weight.mT) + self.bias


class SineLayer(nn.Module):
    """The SIREN paper's."""

    def __init__(self, inputs: int, outputs: int, omega_0: float = 30.0) -> None:
        super().__init__()
        self.omega_0, self.linear = omega_0, nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


class LastSineLayer(SineLayer):
    """Looks the same, but takes no sine, as the last layer of some."""

    def forward(self, x: Tensor) -> Tensor:
        return self.omega_0 * self.linear(x)


class Sine(nn.Module):
    def __init__(self, w0: float) -> None:
        super().__init__()
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * x)


class LucidrainsSiren(nn.Module):
    """siren-pytorch's layer."""

    def __init__(self, inputs: int, outputs: int, w0: float = 1.0) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(outputs, inputs)), nn.Parameter(torch.randn(outputs))
        self.activation = Sine(w0)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(F.linear(x, self.weight, self.bias))
