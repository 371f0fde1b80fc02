"""Every matrix of a model under spectral normalisation, with one call of the operator a forward pass."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vitgan_kernels.backends import check_backend
from vitgan_kernels.spectral_norm.grouping import Group, Member, Operands, Settings, outside_checkpoints
from vitgan_kernels.spectral_norm.op import check_settings, spectral_norm


class SpectralNormGroup(Group):
    """Puts every matrix of a model under (improved) spectral normalisation, in place.

    The matrices are all parameters named `weight` with two or more dimensions, but those of embeddings; what a module
    keeps under another name (a free parameter, the weights of recurrent layers) is left as it is. While the
    model's own forward runs, each layer's `weight` is the scaled one, those that are used together from one call of
    `spectral_norm`. The first use in a forward moves u and v of a layer in training mode; a layer in evaluation mode,
    one that the forward does not use, and one called by itself keep theirs. The trainable tensor of a layer becomes
    `layer.parametrizations.weight.original`, a leaf, and the state_dict has PyTorch's own layout
    (`torch.nn.utils.parametrizations.spectral_norm`), and if improved `sigma_init` beside it. A state_dict without
    `sigma_init` loads too: the norms that the matrices are scaled to stay as they are.

    A model made on the meta device gets its u, v and norms with its values: from `load_state_dict`, or else from the
    weights at their first use.

    Args:
        module: the model.
        improved: scale each matrix to the norm it has now (ViTGAN section 3.2) instead of to 1.
        n_iterations: power iterations a training forward.
        eps: smallest norm that is divided by; it guards against zero alone.
        only: chooses layers by (name, layer): those with a matrix, and each nn.MultiheadAttention, which is an error
            where it is chosen; its `out_proj` is a layer of its own. None takes all.
        backend: see `use_backend`.

    Raises:
        TypeError: module is not an nn.Module, or only cannot be called.
        ValueError: no matrix was found; one is zero, not finite or of a lazy layer; one is parametrised already; one is
            a transposed convolution, or in an nn.MultiheadAttention, which keeps three in one tensor of another name;
            n_iterations, eps or backend is not legal.
        RuntimeError: in a training forward under torch.nn.DataParallel, whose replicas cannot move a model's vectors.

    Under DistributedDataParallel every process moves its own vectors, by the same arithmetic: where they start equal
    (one seed, or its broadcast_buffers=True, the default) they stay equal, whatever the data. The compiled
    implementations give equal bits on processors of one kind, whatever the number of threads; the reference needs equal
    numbers of threads too.

    Derivatives: those of `spectral_norm`. A block inside may be under activation checkpointing, if each backward pass
    comes before the next training forward: what it computes again, it computes with the vectors of that moment.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        improved: bool = True,
        n_iterations: int = 1,
        eps: float = 1e-35,
        only: Callable[[str, nn.Module], bool] | None = None,
        backend: str | None = None,
    ) -> None:
        check_settings("SpectralNormGroup", n_iterations, eps)
        check_backend(backend)
        self.n_iterations = n_iterations
        self.eps = eps
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
        super().__init__(module, [state.member for state in states.values()], once=False, backend=backend)
        for name, layer in found:  # only now: what raises leaves the model as it was
            if name in states:
                parametrize.register_parametrization(layer, "weight", states[name], unsafe=True)
                states[name].member.listed = cast(nn.ModuleDict, layer.parametrizations)["weight"]  # type: ignore[assignment]
                self.names.append(name)
                self.layers.append(layer)
        self._handles.append(module.register_forward_pre_hook(_refuse_training_replicas))

    def sigma(self) -> dict[str, Tensor]:
        """The present estimate u^T W v of each matrix's largest singular value, by layer name."""
        return {
            name: spectral_norm([w.weight], [w.u], [w.v], update=False, backend="auto")[1][0]
            for name, layer in zip(self.names, self.layers, strict=True)
            if (state := _state_of(layer)) is not None and (w := state.member.operands())
        }

    def remove(self) -> None:
        """Give each layer its weight back as a plain parameter, with the scaled values of this moment."""
        for layer in self.layers:
            if _state_of(layer) is not None:
                parametrize.remove_parametrizations(layer, "weight")
        super().remove()
        self.names, self.layers, self.members = [], [], []

    def _state_for(self, name: str, layer: nn.Module, improved: bool) -> "_Scale":
        if isinstance(layer, nn.modules.conv._ConvTransposeNd):
            raise ValueError(
                f"SpectralNormGroup: {name} is a transposed convolution, not supported: leave it out with only="
            )
        if parametrize.is_parametrized(layer, "weight"):
            raise ValueError(f"SpectralNormGroup: the weight of {name} is parametrised already: remove that first")
        weight = cast(Tensor, layer.weight)
        if nn.parameter.is_lazy(weight):
            raise ValueError(f"SpectralNormGroup: the weight of {name} has no shape yet: call the layer once before")
        return _Scale(weight.detach(), improved, self.eps, name or "the module")


class _Matrix(Member):
    """A weight under the group."""

    listed: parametrize.ParametrizationList

    def __init__(self, state: "_Scale") -> None:
        super().__init__()
        self.state = state

    def operands(self) -> Operands:
        state, weight = self.state, self.listed.original
        state.start_if_needed(weight)
        return Operands(weight, state._u, state._v, state.sigma_init)

    def settings(self, weight: Tensor) -> Settings:
        return Settings(self.state.training, self.group.n_iterations, self.group.eps, weight.dtype, weight.device)


class _Scale(nn.Module):
    """The normalisation of one weight: its vectors and the norm it is scaled to."""

    _u: Tensor
    _v: Tensor
    sigma_init: Tensor | None  # None: 1

    def __init__(self, weight: Tensor, improved: bool, eps: float, name: str) -> None:
        super().__init__()
        self.member = _Matrix(self)
        self.eps = eps
        self.name = name
        self.improved = improved
        self.register_buffer("_u", weight.new_zeros(weight.shape[0]))
        self.register_buffer("_v", weight.new_zeros(weight[0].numel()))
        self.register_buffer("sigma_init", weight.new_ones(()) if improved else None)
        self.started = False
        self.start_if_needed(weight)

    def start_if_needed(self, weight: Tensor) -> None:
        """Make the vectors and the norm, once there are values to make them from."""
        if not (self.started or weight.is_meta):
            self._start_from(weight)

    @torch._disable_dynamo  # as torch.compiler.disable, but imports torch._dynamo at the first call
    def _start_from(self, weight: Tensor) -> None:
        u, v, sigma = _converged(weight.detach(), self.eps)
        if not sigma.isfinite():
            raise ValueError(
                f"SpectralNormGroup: the weight of {self.name} is not finite: its spectral norm is {sigma.item()}"
            )
        if sigma == 0:
            raise ValueError(
                f"SpectralNormGroup: the weight of {self.name} is zero and has no spectral norm to scale by: leave it "
                f"out with only=, or give it other values first"
            )
        self._u, self._v, self.started = u, v, True
        if self.improved:
            self.sigma_init = sigma

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        has_norm = not self.improved or prefix + "sigma_init" in state_dict
        if not has_norm:
            state_dict.setdefault(prefix + "sigma_init", self.sigma_init)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if has_norm and {prefix + "_u", prefix + "_v"} <= state_dict.keys() and not self._u.is_meta:
            self.started = True

    def forward(self, weight: Tensor) -> Tensor:
        scaled = self.member.take()
        if scaled is not None:
            return scaled
        self.start_if_needed(weight)
        goal = None if self.sigma_init is None else self.sigma_init.reshape(1)
        with outside_checkpoints():
            return spectral_norm([weight], [self._u], [self._v], sigma_init=goal, update=False, backend="auto")[0][0]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What `layer.weight = tensor` makes the trainable tensor: the tensor itself, as with PyTorch's own."""
        return weight


@torch.no_grad()
def _converged(weight: Tensor, eps: float, tolerance: float = 1e-6, most: int = 1000) -> tuple[Tensor, Tensor, Tensor]:
    """Power iteration from a random start until sigma grows by less than the tolerance in ten steps.

    The operator iterates, not products of PyTorch's, whose bits depend on the number of threads.
    """
    u = torch.randn(weight.shape[0], dtype=weight.dtype, device=weight.device)
    v = torch.zeros(weight[0].numel(), dtype=weight.dtype, device=weight.device)
    sigma = torch.zeros(1, dtype=weight.dtype, device=weight.device)
    for _ in range(most // 10):
        before = sigma
        _, sigma = spectral_norm([weight], [u], [v], n_iterations=10, eps=eps, backend="auto")
        if not sigma - before > tolerance * sigma:
            break
    return u, v, sigma[0]


def _refuse_training_replicas(module: nn.Module, _args: Any) -> None:
    if module.training and getattr(module, "_is_replica", False):
        raise RuntimeError(
            "SpectralNormGroup: a DataParallel replica cannot move the vectors of the model it is a copy of: "
            "train under torch.nn.parallel.DistributedDataParallel"
        )


def _is_matrix(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
        return False
    if parametrize.is_parametrized(layer, "weight"):
        return True
    weight = layer._parameters.get("weight")
    return weight is not None and (nn.parameter.is_lazy(weight) or weight.ndim >= 2)


def _state_of(layer: nn.Module) -> _Scale | None:
    """None where the layer has been taken out of the group."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    states = cast(parametrize.ParametrizationList, cast(nn.ModuleDict, layer.parametrizations)["weight"])
    return next((state for state in states if isinstance(state, _Scale)), None)
