"""Put the operators into somebody else's model, in place, and say what was replaced and what was not.

`recipe` says what a recipe is (`ModuleRecipe` is what to derive yours from), `recipes` has one file for each kind of
module that is recognised and `register` for yours, and `compare` holds a replacement against what it replaces.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitgan_kernels.swap import compare
from vitgan_kernels.swap.compare import Comparison, Times, copied
from vitgan_kernels.swap.recipe import Match, ModuleRecipe, Recipe
from vitgan_kernels.swap.recipes import register, registered, unregister

__all__ = ["Match", "ModuleRecipe", "Recipe", "SwapReport", "SwapRow", "register", "swap", "unregister", "unswap"]


@dataclass(frozen=True)
class SwapRow:
    """One place that a recipe recognised.

    `now` is what runs there now, or why it was left alone. `differences` has, by dtype, the largest measured
    difference between what was there and what replaces it, relative to the largest value of the tensor it is in.
    `times` has the seconds of a pass with the one and with the other.
    """

    path: str
    was: str
    now: str
    swapped: bool
    differences: dict[str, float]
    times: Times | None = None


@dataclass(frozen=True)
class SwapReport:
    """What `swap` found in a model and did about it. Prints as a table."""

    model: str
    rows: list[SwapRow]
    looked_for: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            known = "; ".join(self.looked_for)
            return f"swap of {self.model}: nothing recognised, nothing changed. Looked for: {known}."
        swapped = sum(row.swapped for row in self.rows)
        cells = [("path", "was", "now", "time", "difference"), *(_cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([f"swap of {self.model}: {swapped} of {len(self.rows)} swapped", *map(str.rstrip, lines)])


def _cells(row: SwapRow) -> tuple[str, str, str, str, str]:
    differences = ", ".join(f"{value:.1e} ({dtype})" for dtype, value in row.differences.items())
    times = "" if row.times is None else f"{1e3 * row.times.before:.3g} -> {1e3 * row.times.after:.3g} ms"
    return row.path or "(the model)", row.was, row.now if row.swapped else f"left alone: {row.now}", times, differences


def swap(
    module: nn.Module,
    *,
    only: Callable[[str, nn.Module], bool] | None = None,
    inputs: Tensor | Sequence[Any] | None = None,
    keep_slower: bool = False,
) -> SwapReport:
    """Replace, in place, what the operators of this package can run in a model, and report it.

    Modules are recognised by their structure (class name, attributes, shapes); nothing of another project is imported.
    A replaced module is the same object with another `forward`: parameters, buffers, state_dict keys, hooks and
    `isinstance` stay as they were, so an optimiser and checkpoints from before go on working, and a copy or a pickle of
    it is a swapped module too. Recognised:

    - ViTGAN-pytorch: the attention of its discriminator, its modulated SIREN,
      its spectral normalisation;
    - layers under `torch.nn.utils.parametrizations.spectral_norm` or `torch.nn.utils.spectral_norm`: one call of
      `spectral_norm` for all, each time the forward of `module` runs. Give the module whose forward is called (a
      discriminator, not a container of networks): it makes the calls. `TorchSpectralNormGroup` has the details;
    - self-attention by L2 distance on feature maps, tied queries and keys, and a null key (GigaGAN's in PyTorch);
    - modulated linear layers and 1x1 convolutions (StyleGAN2, CIPS);
    - SIRENs: sin(omega * linear(x)), one after the other;
    - what `vitgan_kernels.swap.register` was given.

    Before the model is touched, each replacement is held against what it replaces, on copies, with random input, in
    float64 and in the model's dtype, in training and in evaluation mode: outputs, gradients, the gradient of a gradient
    penalty where the old module has one, and buffers. They must agree to 1e-9 in float64, and in the model's dtype with
    an error against float64 of at most twice that of what was there plus 16 roundings. (A SIREN is compared at
    frequencies at which it is smooth.) What does not agree is left alone, and the report says by how much it differs.

    Then both are timed on this device, in turns, on copies: forward and backward of a module in training mode,
    otherwise a forward without gradients. A replacement that is slower by more than noise is left alone.

    Args:
        module: any model, in training or evaluation mode, in the middle of training or not.
        only: chooses by (path of the module, module); None takes all. What is not chosen is not in the report.
        inputs: an example input of `module`, or a sequence of its positional arguments: each module inside is then
            timed with what reaches it, otherwise with the small input of the comparison.
        keep_slower: take a replacement that is slower on this device too.

    Returns:
        A `SwapReport`: one row for each recognised place. It is empty, and says so, where nothing is recognised.

    Raises:
        TypeError: `module` is not an nn.Module.
        What the forward of `module` raises for the example inputs.
    """
    _check_module("swap", module)
    name = type(module).__name__
    given = {} if inputs is None else _inputs_of_parts(module, [inputs] if isinstance(inputs, Tensor) else inputs)
    rows: dict[str, SwapRow] = {}
    for recipe in registered():
        matches = [match for match in recipe.find(module) if only is None or only(match.module_path, match.module)]
        comparisons = _compared(recipe, [match for match in matches if not match.reason])
        reasons = {match.path: match.reason or comparisons[match.path].reason for match in matches}
        agreeing = [match for match in matches if not reasons[match.path]]
        times = _timed(recipe, agreeing, given)
        for path, took in times.items():
            if took.slower and not keep_slower:
                reasons[path] = "it is slower on this device; keep_slower=True takes it"
        chosen = [match for match in agreeing if not reasons[match.path]]
        now = recipe.replace(module, chosen) if chosen else ""
        for match in matches:
            path, reason = match.path, reasons[match.path]
            differences = comparisons.get(path, Comparison()).differences
            row = SwapRow(path, match.was, reason or now, not reason, differences, times.get(path))
            if row.swapped or path not in rows:  # another recipe may replace what one has to leave alone
                rows[path] = row
    return SwapReport(name, list(rows.values()), tuple(recipe.looks_for for recipe in registered()))


def unswap(module: nn.Module) -> None:
    """Take out of a model what `swap` put in, wherever in it that was. Parameters and buffers keep their values."""
    _check_module("unswap", module)
    for recipe in registered():
        recipe.restore(module)


def _compared(recipe: Recipe, matches: list[Match]) -> dict[str, Comparison]:
    """The comparison of each match, by its path, from trials on copies. The random state stays as it is."""
    if not matches:
        return {}
    try:
        with _own_random_state(matches), torch.enable_grad():
            trials = [
                recipe.trial(matches, dtype, replaced) for dtype in (torch.float64, None) for replaced in (False, True)
            ]
        return {match.path: compare.compare(*results) for match, *results in zip(matches, *trials, strict=True)}
    except Exception as error:  # someone else's model: whatever is wrong with the copies, the model itself goes on
        if len(matches) > 1:  # what is wrong with one is no reason against the others
            return {path: each for match in matches for path, each in _compared(recipe, [match]).items()}
        message = str(error).partition("\n")[0]
        return {matches[0].path: Comparison(f"the check could not run ({type(error).__name__}: {message})")}


def _timed(recipe: Recipe, matches: list[Match], given: dict[str, Sequence[Any]]) -> dict[str, Times]:
    if not matches:
        return {}
    with _own_random_state(matches), torch.enable_grad():
        return recipe.time(matches, given)


def _own_random_state(matches: list[Match]) -> Any:
    devices = {tensor.device for match in matches for tensor in match.module.parameters() if tensor.is_cuda}
    return torch.random.fork_rng(devices=devices)


def _inputs_of_parts(module: nn.Module, inputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """The positional arguments of the first call of each part, by its path, from a forward of a copy."""
    twin = copied(module, None)
    given: dict[str, Sequence[Any]] = {}

    def keeping(path: str) -> Callable[..., None]:
        def keep(_part: nn.Module, args: tuple[Any, ...]) -> None:
            given.setdefault(path, [x.detach().clone() if isinstance(x, Tensor) else x for x in args])

        return keep

    for path, part in twin.named_modules():
        part.register_forward_pre_hook(keeping(path))
    with torch.random.fork_rng(), torch.no_grad():
        twin(*inputs)
    for args in given.values():
        for x in args:
            if isinstance(x, Tensor) and x.is_floating_point():
                x.requires_grad_()
    return given


def _check_module(function: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: a torch.nn.Module is needed, got {type(module).__name__}")
