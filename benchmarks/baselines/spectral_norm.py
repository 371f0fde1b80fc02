"""Other ways to spectral normalisation: one power iteration for each matrix of a model, then W / sigma.

All take the matrices W (out, in), then all u (out,), then all v (in,), and move u and v in place.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm

EPS = 1e-12


def split(tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Matrices, u and v."""
    count = len(tensors) // 3
    return list(tensors[:count]), list(tensors[count : 2 * count]), list(tensors[2 * count :])


def by_layer(*tensors: Tensor) -> list[Tensor]:
    """A matrix at a time."""
    scaled = []
    for weight, u, v in zip(*split(tensors), strict=True):
        with torch.no_grad():
            v.copy_(normalize(weight.t() @ u, dim=0, eps=EPS))
            u.copy_(normalize(weight @ v, dim=0, eps=EPS))
        scaled.append(weight / torch.dot(u.clone(), weight @ v.clone()))
    return scaled


def foreach(*tensors: Tensor) -> list[Tensor]:
    """Norms and scalings of all matrices in one call each; products stay a matrix at a time."""
    weights, u, v = split(tensors)
    with torch.no_grad():
        for vectors, products in (
            (v, [weight.t() @ left for weight, left in zip(weights, u, strict=True)]),
            (u, None),
        ):
            moved = products or [weight @ right for weight, right in zip(weights, v, strict=True)]
            norms = torch._foreach_norm(moved)
            torch._foreach_clamp_min_(norms, EPS)
            torch._foreach_copy_(vectors, torch._foreach_div(moved, norms))
    lefts, rights = [x.clone() for x in u], [x.clone() for x in v]
    sigmas = [torch.dot(a, weight @ b) for weight, a, b in zip(weights, lefts, rights, strict=True)]
    return list(torch._foreach_div(weights, sigmas))


def padded(*tensors: Tensor) -> list[Tensor]:
    """Matrices padded to powers of two and stacked by size: products of a stack in one `bmm` each."""
    weights, u, v = split(tensors)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, weight in enumerate(weights):
        groups.setdefault(tuple(1 << (n - 1).bit_length() for n in weight.shape), []).append(index)
    scaled: dict[int, Tensor] = {}
    for (rows, columns), members in groups.items():
        stack = torch.stack([pad(weights[i], (0, columns - v[i].numel(), 0, rows - u[i].numel())) for i in members])
        with torch.no_grad():
            left = torch.stack([pad(u[i], (0, rows - u[i].numel())) for i in members]).unsqueeze(-1)
            right = normalize(torch.bmm(stack.mT, left), dim=1, eps=EPS)
            left = normalize(torch.bmm(stack, right), dim=1, eps=EPS)
            torch._foreach_copy_([v[i] for i in members], [right[n, : v[i].numel(), 0] for n, i in enumerate(members)])
            torch._foreach_copy_([u[i] for i in members], [left[n, : u[i].numel(), 0] for n, i in enumerate(members)])
        sigma = torch.bmm(left.mT, torch.bmm(stack, right))
        whole = stack / sigma
        scaled |= {i: whole[n, : u[i].numel(), : v[i].numel()] for n, i in enumerate(members)}
    return [scaled[index] for index in range(len(weights))]


class TorchModules:
    """`torch.nn.utils.parametrizations.spectral_norm`, a layer for each matrix, which is made when first called."""

    def __init__(self) -> None:
        self.layers: dict[int, list[nn.Module]] = {}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        weights, u, v = split(tensors)
        key = id(weights[0])
        if key not in self.layers:
            self.layers[key] = [self._layer(*each) for each in zip(weights, u, v, strict=True)]
        return [layer.weight for layer in self.layers[key]]

    def _layer(self, weight: Tensor, u: Tensor, v: Tensor) -> nn.Module:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weight.detach())
        torch_spectral_norm(layer)
        state = layer.parametrizations.weight[0]
        state._u, state._v = u, v
        # A parameter's own tensor: gradients are asked for in the case's inputs.
        layer.parametrizations.weight._parameters["original"] = weight
        return layer
