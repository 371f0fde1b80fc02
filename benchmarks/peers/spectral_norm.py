"""Other ways to spectral normalisation: one power iteration for each matrix of a model, then W / sigma.

All take the matrices W (out, in), then all u (out,), then all v (in,), and move u and v in place.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
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
