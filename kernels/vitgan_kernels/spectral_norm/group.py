"""Every matrix of a model under spectral normalisation, with one call of the operator a forward pass."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import normalize
from torch.nn.utils import parametrize

from vitgan_kernels.backends import check_backend
from vitgan_kernels.checks import without_autocast
from vitgan_kernels.spectral_norm.op import check_settings, spectral_norm
from vitgan_kernels.spectral_norm.reference import copies


class SpectralNormGroup:
    """Puts every matrix of a model under (improved) spectral normalisation, in place.

    The matrices are all parameters named `weight` with two or more dimensions, but those of embeddings; what a module
    keeps under another name (a free parameter, the weights of recurrent layers) is left as it is. While the
    model's own forward runs, each layer's `weight` is the scaled one, all of them from one call of `spectral_norm`;
    a layer called by itself scales its own. A forward in training mode moves the vectors u and v; in evaluation mode
    nothing changes. The trainable tensor of a layer becomes `layer.parametrizations.weight.original`, a leaf, and the
    state_dict has PyTorch's own layout (`torch.nn.utils.parametrizations.spectral_norm`), and if improved `sigma_init`
    beside it. A state_dict without `sigma_init` loads too: the norms that the matrices are scaled to stay as they are.

    Args:
        module: the model.
        improved: scale each matrix to the norm it has now (ViTGAN section 3.2) instead of to 1.
        n_iterations: power iterations a training forward.
        eps: smallest norm that is divided by.
        only: chooses layers by (name, layer): those with a matrix, and each nn.MultiheadAttention, which is an error
            where it is chosen; its `out_proj` is a layer of its own. None takes all.
        backend: see `use_backend`.

    Raises:
        TypeError: module is not an nn.Module, or only cannot be called.
        ValueError: no matrix was found; one is zero, not finite or without values; one is parametrised already; one is
            a transposed convolution, or in an nn.MultiheadAttention, which keeps three in one tensor of another name;
            n_iterations, eps or backend is not legal.
        RuntimeError: in a training forward under torch.nn.DataParallel, whose replicas cannot move a model's vectors.

    Under DistributedDataParallel every process moves its own vectors, by the same arithmetic: where they start equal
    (one seed, or its broadcast_buffers=True, the default) they stay equal, whatever the data and number of threads.

    Derivatives: those of `spectral_norm`. A block inside may be under activation checkpointing, if each backward pass
    comes before the next training forward: what it computes again, it computes with the vectors of that moment.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        improved: bool = True,
        n_iterations: int = 1,
        eps: float = 1e-12,
        only: Callable[[str, nn.Module], bool] | None = None,
        backend: str | None = None,
    ) -> None:
        check_settings("SpectralNormGroup", n_iterations, eps)
        check_backend(backend)
        self.n_iterations = n_iterations
        self.eps = eps
        self.backend = backend
        self.names: list[str] = []
        self.layers: list[nn.Module] = []
        if not isinstance(module, nn.Module):
            raise TypeError(f"SpectralNormGroup: a torch.nn.Module is needed, got {type(module).__name__}")
        if only is not None and not callable(only):
            raise TypeError(f"SpectralNormGroup: only must be a function of (name, layer) or None, got {only!r}")
        for name, layer in module.named_modules():
            if isinstance(layer, nn.MultiheadAttention) and (only is None or only(name, layer)):
                raise ValueError(
                    f"SpectralNormGroup: {name or 'the module'} is an nn.MultiheadAttention, whose queries, keys and "
                    f"values would not be normalised: use vitgan_kernels.L2SelfAttention, or leave it out with only=, "
                    "which is asked of it too"
                )
        found = [(name, layer) for name, layer in module.named_modules() if _is_matrix(layer)]
        states = {
            name: self._state_for(name, layer, improved) for name, layer in found if only is None or only(name, layer)
        }
        if not states:
            raise ValueError(
                f"SpectralNormGroup: {type(module).__name__} has no weight of two or more dimensions to normalise"
            )
        for name, layer in found:  # only now: what raises leaves the model as it was
            if name in states:
                parametrize.register_parametrization(layer, "weight", states[name], unsafe=True)
                self.names.append(name)
                self.layers.append(layer)
        module.register_forward_pre_hook(self._scale_all)
        module.register_forward_hook(self._forget, always_call=True)

    def sigma(self) -> dict[str, Tensor]:
        """The present estimate u^T W v of each matrix's largest singular value, by layer name."""
        return {name: state.sigma(_original(layer)) for name, layer, state in self._entries()}

    def _state_for(self, name: str, layer: nn.Module, improved: bool) -> "_Scale":
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise ValueError(
                f"SpectralNormGroup: {name} is a transposed convolution, not supported: leave it out with only="
            )
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"SpectralNormGroup: the weight of {name} is parametrised already: remove that first")
        weight = cast(Tensor, layer.weight)
        if nn.parameter.is_lazy(weight) or weight.is_meta:
            raise ValueError(f"SpectralNormGroup: the weight of {name} has no values yet: give it some first")
        return _Scale(weight.detach(), improved=improved, eps=self.eps, name=name or "the module")

    def _entries(self) -> list[tuple[str, nn.Module, "_Scale"]]:
        return [(name, layer, _state(layer)) for name, layer in zip(self.names, self.layers, strict=True)]

    def _scale_all(self, module: nn.Module, _args: Any) -> None:
        if getattr(module, "_is_replica", False):
            if module.training:
                raise RuntimeError(
                    "SpectralNormGroup: a DataParallel replica cannot move the vectors of the model it is a copy of: "
                    "train under torch.nn.parallel.DistributedDataParallel"
                )
            return  # each layer of a replica scales its own weight
        states = [_state(layer) for layer in self.layers]
        scaled, _ = spectral_norm(
            [_original(layer) for layer in self.layers],
            [state._u for state in states],
            [state._v for state in states],
            sigma_init=torch.stack([state.sigma_init for state in states]),
            n_iterations=self.n_iterations,
            eps=self.eps,
            update=module.training,
            backend=self.backend,
        )
        for state, weight in zip(states, scaled, strict=True):
            state.scaled = weight

    def _forget(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        for layer in self.layers:
            _state(layer).scaled = None


class _Scale(nn.Module):
    """The normalisation of one weight: its vectors, the norm it is scaled to, and the group's result while valid."""

    _u: Tensor
    _v: Tensor
    sigma_init: Tensor

    def __init__(self, weight: Tensor, *, improved: bool, eps: float, name: str) -> None:
        super().__init__()
        self.scaled: Tensor | None = None
        u, v, sigma = _converged(weight.flatten(1), eps)
        if not sigma.isfinite():
            raise ValueError(
                f"SpectralNormGroup: the weight of {name} is not finite: its spectral norm is {sigma.item()}"
            )
        if sigma == 0:
            raise ValueError(
                f"SpectralNormGroup: the weight of {name} is zero and has no spectral norm to scale by: leave it out "
                f"with only=, or give it other values first"
            )
        self.register_buffer("_u", u)
        self.register_buffer("_v", v)
        self.register_buffer("sigma_init", sigma if improved else torch.ones_like(sigma), persistent=improved)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if "sigma_init" not in self._non_persistent_buffers_set:
            state_dict.setdefault(prefix + "sigma_init", self.sigma_init)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def sigma(self, weight: Tensor) -> Tensor:
        with without_autocast(weight):
            (u,), (v,) = copies([self._u], [self._v])
            return torch.dot(u, weight.flatten(1) @ v)

    def forward(self, weight: Tensor) -> Tensor:
        if self.scaled is not None and _serves(self.scaled, weight):
            return self.scaled
        # Checkpointing counts the tensors that a block saves, and must find as many when the backward pass runs it
        # again, without the group's result. Hooks of our own keep those of the scaling out of the count.
        with saved_tensors_hooks(_itself, _itself) if _hooks_are_allowed() else nullcontext():
            return weight * (self.sigma_init / self.sigma(weight))


@torch.no_grad()
def _converged(matrix: Tensor, eps: float, tolerance: float = 1e-6, most: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Power iteration from a random start until sigma grows by less than the tolerance in ten steps."""
    u = normalize(torch.randn(matrix.shape[0], dtype=matrix.dtype, device=matrix.device), dim=0, eps=eps)
    v = torch.zeros(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    sigma = torch.zeros((), dtype=matrix.dtype, device=matrix.device)
    for step in range(most):
        v = normalize(matrix.t() @ u, dim=0, eps=eps)
        product = matrix @ v
        u = normalize(product, dim=0, eps=eps)
        if step % 10 == 9:
            before, sigma = sigma, torch.dot(u, product)
            if sigma - before <= tolerance * sigma:
                break
    return u, v, sigma


def _serves(scaled: Tensor, weight: Tensor) -> bool:
    """Not where gradients are wanted and it has none: a model called without gradients may enable them inside."""
    return scaled.requires_grad or not (weight.requires_grad and torch.is_grad_enabled())


def _hooks_are_allowed() -> bool:
    """torch.compile and torch.func know no such hooks, and no checkpointing that would need them."""
    if torch.compiler.is_compiling():
        return False
    enabled: bool = torch._C._autograd._saved_tensors_hooks_is_enabled()  # type: ignore[attr-defined]
    return enabled


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _is_matrix(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return False
    if parametrize.is_parametrized(layer, "weight"):
        return True
    weight = layer._parameters.get("weight")
    return weight is not None and (nn.parameter.is_lazy(weight) or weight.ndim >= 2)


def _original(layer: nn.Module) -> Tensor:
    return _parametrization(layer).original


def _state(layer: nn.Module) -> _Scale:
    return cast(_Scale, _parametrization(layer)[0])


def _parametrization(layer: nn.Module) -> parametrize.ParametrizationList:
    return cast(nn.ModuleDict, layer.parametrizations)["weight"]  # type: ignore[return-value]
