"""Put the operators into somebody else's model, in place, and say what was replaced and what was not."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm

from vitgan_kernels.spectral_norm.adopt import AdoptedSpectralNorm, GroupedSpectralNorm, parametrizations

FLOAT64_TOLERANCE = 1e-9


@dataclass(frozen=True)
class SwapRow:
    """One place that a recipe recognised.

    `now` is what runs there now, or why it was left alone. `differences` has, by dtype, the largest measured
    difference between what was there and what replaces it, relative to the largest value of the tensor it is in.
    """

    path: str
    was: str
    now: str
    swapped: bool
    differences: dict[str, float]


@dataclass(frozen=True)
class SwapReport:
    """What `swap` found in a model and did about it. Prints as a table."""

    model: str
    rows: list[SwapRow]

    def __str__(self) -> str:
        if not self.rows:
            known = "; ".join(recipe.looks_for for recipe in RECIPES)
            return f"swap of {self.model}: nothing recognised, nothing changed. Looked for: {known}."
        swapped = sum(row.swapped for row in self.rows)
        cells = [("path", "was", "now", "difference"), *(_cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([f"swap of {self.model}: {swapped} of {len(self.rows)} swapped", *map(str.rstrip, lines)])


def _cells(row: SwapRow) -> tuple[str, str, str, str]:
    differences = ", ".join(f"{value:.1e} ({dtype})" for dtype, value in row.differences.items())
    return row.path, row.was, row.now if row.swapped else f"left alone: {row.now}", differences


@dataclass(frozen=True)
class Site:
    """A place that a recipe recognised: a module, or one tensor of it. `reason` says why it cannot be replaced."""

    module_path: str
    module: nn.Module
    was: str
    tensor: str = ""
    reason: str = ""

    @property
    def path(self) -> str:
        return ".".join(part for part in (self.module_path, self.tensor) if part)


class Recipe(Protocol):
    """One thing that `swap` recognises, and how it is replaced. RECIPES lists those there are."""

    looks_for: str

    def find(self, module: nn.Module) -> Iterator[Site]:
        """Every place that it recognises, those it cannot replace with the reason."""

    def rehearse(self, sites: list[Site], dtype: torch.dtype | None, replaced: bool) -> list[list[Tensor]]:
        """For each site, outputs and gradients of a copy in the dtype (None: its own), on the same random input."""

    def replace(self, module: nn.Module, sites: list[Site]) -> str:
        """Put the operator in, and say what runs now."""

    def restore(self, module: nn.Module) -> None:
        """Take out of the module, and all in it, what `replace` put in."""


class TorchSpectralNorm:
    """Layers under PyTorch's parametrization of spectral normalisation: one call of `spectral_norm` for all."""

    looks_for = "layers under torch.nn.utils.parametrizations.spectral_norm"

    def find(self, module: nn.Module) -> Iterator[Site]:
        for path, layer in module.named_modules():
            if not parametrize.is_parametrized(layer):
                continue
            was = f"torch spectral_norm of {parametrize.type_before_parametrizations(layer).__name__}"
            for tensor in cast(nn.ModuleDict, layer.parametrizations):
                listed = parametrizations(layer, tensor)
                if any(isinstance(state, _SpectralNorm) for state in listed):
                    yield Site(path, layer, was, tensor, self._why_not(listed))

    def _why_not(self, listed: parametrize.ParametrizationList) -> str:
        if len(listed) > 1:
            return "there are several parametrizations on this tensor"
        state, weight = listed[0], listed.original
        if isinstance(state, GroupedSpectralNorm):
            return "it is swapped already"
        if type(state) is not _SpectralNorm:
            return f"{type(state).__name__} is a class of its own, derived from PyTorch's"
        if weight.ndim < 2 or weight.numel() == 1:
            return "a vector or single number is divided by its norm, which takes no power iteration"
        if state.dim != 0:
            return f"dim={state.dim}, as transposed convolutions have it; the operator takes dim=0"
        return "" if weight.is_floating_point() else f"{weight.dtype} is not a real floating-point dtype"

    def rehearse(self, sites: list[Site], dtype: torch.dtype | None, replaced: bool) -> list[list[Tensor]]:
        """The normalised weight as a function of the original: of a layer, nothing else changes."""
        model = _Weights([_copied(site, dtype) for site in sites])
        originals = [parametrizations(layer, "weight").original for layer in model.layers]
        if replaced:
            AdoptedSpectralNorm(model, [(layer, "weight") for layer in model.layers])
        random = torch.Generator().manual_seed(0)
        results: list[list[Tensor]] = [[] for _ in sites]
        for training in (True, True, False):
            with torch.enable_grad():
                weights = model.train(training)()
            towards = [torch.randn(w.shape, generator=random, dtype=torch.float64).to(w) for w in weights]
            gradients = torch.autograd.grad(weights, originals, towards)
            for result, layer, weight, gradient in zip(results, model.layers, weights, gradients, strict=True):
                vectors = [buffer.clone() for buffer in parametrizations(layer, "weight").buffers()]
                result += [weight.detach(), gradient, *vectors]
            with torch.no_grad():
                for original, step in zip(originals, towards, strict=True):
                    original += 0.1 * original.square().mean().sqrt() * step
        return results

    def replace(self, module: nn.Module, sites: list[Site]) -> str:
        return str(AdoptedSpectralNorm(module, [(site.module, site.tensor) for site in sites]))

    def restore(self, module: nn.Module) -> None:
        for part in module.modules():
            for group in AdoptedSpectralNorm.of(part):
                group.release()


class _Weights(nn.Module):
    """A model that computes nothing but the weights of its layers."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self) -> list[Tensor]:
        return [cast(Tensor, layer.weight) for layer in self.layers]


def _copied(site: Site, dtype: torch.dtype | None) -> nn.Module:
    listed = parametrizations(site.module, site.tensor)
    dtype = listed.original.dtype if dtype is None else dtype
    layer = nn.Module()
    layer.weight = nn.Parameter(listed.original.detach().to(dtype, copy=True))
    parametrize.register_parametrization(layer, "weight", copy.deepcopy(listed[0]).to(dtype), unsafe=True)
    return layer


RECIPES: list[Recipe] = [TorchSpectralNorm()]


def swap(module: nn.Module, *, only: Callable[[str, nn.Module], bool] | None = None) -> SwapReport:
    """Replace, in place, what the operators of this package can run in a model, and report it.

    Recognised now: layers under `torch.nn.utils.parametrizations.spectral_norm`, whose power iterations and scalings
    become one call of `spectral_norm` each time the forward of `module` runs. Parameters and buffers stay the same
    objects under the same state_dict keys, so an optimiser and checkpoints from before go on working. Give the
    module whose forward is called (a discriminator, not a container of networks): it makes the one call. A layer used
    twice in a forward, or outside it, is served as before; `AdoptedSpectralNorm` says what differs.

    Before the model is touched, each replacement is held against what it replaces, on copies, with random input, in
    float64 and in the model's dtype, in training and in evaluation mode. Outputs, gradients and buffers must agree: to
    1e-9 in float64, and in the model's dtype with an error against float64 of at most twice that of what was there
    plus 16 roundings. What does not agree is left alone, and the report says by how much it differs.

    Args:
        module: any model, in training or evaluation mode, in the middle of training or not.
        only: chooses by (path of the layer, layer); None takes all. What is not chosen is not in the report.

    Returns:
        A `SwapReport`: one row for each recognised place. It is empty, and says so, where nothing is recognised.

    Raises:
        TypeError: `module` is not an nn.Module.
    """
    _check_module("swap", module)
    rows = []
    for recipe in RECIPES:
        sites = [site for site in recipe.find(module) if only is None or only(site.module_path, site.module)]
        verdicts = _judge(recipe, [site for site in sites if not site.reason])
        reasons = {site.path: site.reason or verdicts[site.path].reason for site in sites}
        agreeing = [site for site in sites if not reasons[site.path]]
        now = recipe.replace(module, agreeing) if agreeing else ""
        for site in sites:
            reason, differences = reasons[site.path], verdicts.get(site.path, _Verdict()).differences
            rows.append(SwapRow(site.path, site.was, reason or now, not reason, differences))
    return SwapReport(type(module).__name__, rows)


def unswap(module: nn.Module) -> None:
    """Take out of a model what `swap` put in, wherever in it that was. Parameters and buffers keep their values."""
    _check_module("unswap", module)
    for recipe in RECIPES:
        recipe.restore(module)


def _check_module(function: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: a torch.nn.Module is needed, got {type(module).__name__}")


@dataclass(frozen=True)
class _Verdict:
    """Whether a replacement agrees with what was there (no reason against it), and the measured differences."""

    reason: str = ""
    differences: dict[str, float] = field(default_factory=dict)


def _judge(recipe: Recipe, sites: list[Site]) -> dict[str, _Verdict]:
    if not sites:
        return {}
    try:
        exact, exact_after = (recipe.rehearse(sites, torch.float64, replaced) for replaced in (False, True))
        before, after = (recipe.rehearse(sites, None, replaced) for replaced in (False, True))
        each = zip(sites, exact, exact_after, before, after, strict=True)
        return {site.path: _compared(*results) for site, *results in each}
    except Exception as error:  # someone else's model: whatever is wrong with the copies, the model itself goes on
        reason = f"the check could not run ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        return {site.path: _Verdict(reason) for site in sites}


def _compared(exact: list[Tensor], exact_after: list[Tensor], before: list[Tensor], after: list[Tensor]) -> _Verdict:
    dtype = before[0].dtype
    differences = {"float64": _difference(exact_after, exact)}
    agrees = differences["float64"] <= FLOAT64_TOLERANCE
    if dtype != torch.float64:
        differences[str(dtype).removeprefix("torch.")] = _difference(after, before)
        rounding = 16 * torch.finfo(dtype).eps
        agrees = agrees and _difference(after, exact) <= 2 * _difference(before, exact) + rounding
    return _Verdict("" if agrees else "the replacement disagrees with what was there", differences)


def _difference(tensors: list[Tensor], others: list[Tensor]) -> float:
    """The largest over the pairs of tensors, relative to the largest value of the second; NaN if any value is."""
    pairs = [(one.double(), other.double()) for one, other in zip(tensors, others, strict=True)]
    relative = [(one - other).abs().max() / other.abs().max() for one, other in pairs]
    return torch.stack(relative).max().item()
