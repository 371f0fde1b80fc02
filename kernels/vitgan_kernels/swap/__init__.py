"""Put the operators into somebody else's model, in place, and say what was replaced and what was not.

`report` says what was done, `judge` holds a replacement against what it replaces, `recipes` has one file for each kind
of module that is recognised, and `registry` takes recipes of your own: `ModuleRecipe` is what to derive them from.
"""

from collections.abc import Callable

from torch import nn

from vitgan_kernels.swap.judge import Verdict, judge
from vitgan_kernels.swap.module_recipe import ModuleRecipe
from vitgan_kernels.swap.recipe import Recipe, Site
from vitgan_kernels.swap.registry import register, registered, unregister
from vitgan_kernels.swap.report import SwapReport, SwapRow

__all__ = ["ModuleRecipe", "Recipe", "Site", "SwapReport", "SwapRow", "register", "swap", "unregister", "unswap"]


def swap(module: nn.Module, *, only: Callable[[str, nn.Module], bool] | None = None, exact: bool = True) -> SwapReport:
    """Replace, in place, what the operators of this package can run in a model, and report it.

    Modules are recognised by their structure (class name, attributes, shapes); nothing of another project is imported.
    A replaced module is the same object with another `forward`: parameters, buffers, state_dict keys, hooks and
    `isinstance` stay as they were, so an optimiser and checkpoints from before go on working, and a copy or a pickle of
    it is a swapped module too. Recognised:

    - ViTGAN-pytorch, the original implementation of ViTGAN: the attention of its discriminator, its modulated SIREN,
      its spectral normalisation;
    - layers under `torch.nn.utils.parametrizations.spectral_norm` or `torch.nn.utils.spectral_norm`: one call of
      `spectral_norm` for all, each time the forward of `module` runs. Give the module whose forward is called (a
      discriminator, not a container of networks): it makes the one call. `AdoptedSpectralNorm` has the details;
    - self-attention by L2 distance on feature maps, tied queries and keys, and a null key (GigaGAN's in PyTorch);
    - modulated linear layers and 1x1 convolutions (StyleGAN2, CIPS);
    - SIRENs: sin(omega * linear(x)), one after the other;
    - what `vitgan_kernels.swap.register` was given.

    Before the model is touched, each replacement is held against what it replaces, on copies, with random input, in
    float64 and in the model's dtype, in training and in evaluation mode: outputs, gradients, the gradient of a gradient
    penalty where the old module has one, and buffers. They must agree to 1e-9 in float64, and in the model's dtype with
    an error against float64 of at most twice that of what was there plus 16 roundings. What does not agree is left
    alone, and the report says by how much it differs.

    Args:
        module: any model, in training or evaluation mode, in the middle of training or not.
        only: chooses by (path of the module, module); None takes all. What is not chosen is not in the report.
        exact: keep the mathematics of the other model, also where it is unusual. False keeps a replacement that
            disagrees as well, if its results are finite: for recipes of your own that change the mathematics on
            purpose. The report then says by how much. No recipe of this package needs it.

    Returns:
        A `SwapReport`: one row for each recognised place. It is empty, and says so, where nothing is recognised.

    Raises:
        TypeError: `module` is not an nn.Module.
    """
    _check_module("swap", module)
    name = type(module).__name__
    rows: dict[str, SwapRow] = {}
    for recipe in registered():
        sites = [site for site in recipe.find(module) if only is None or only(site.module_path, site.module)]
        verdicts = judge(recipe, [site for site in sites if not site.reason], exact=exact)
        reasons = {site.path: site.reason or verdicts[site.path].reason for site in sites}
        agreeing = [site for site in sites if not reasons[site.path]]
        now = recipe.replace(module, agreeing) if agreeing else ""
        for site in sites:
            reason, differences = reasons[site.path], verdicts.get(site.path, Verdict()).differences
            row = SwapRow(site.path, site.was, reason or now, not reason, differences)
            if row.swapped or site.path not in rows:  # another recipe may replace what one has to leave alone
                rows[site.path] = row
    return SwapReport(name, list(rows.values()), tuple(recipe.looks_for for recipe in registered()))


def unswap(module: nn.Module) -> None:
    """Take out of a model what `swap` put in, wherever in it that was. Parameters and buffers keep their values."""
    _check_module("unswap", module)
    for recipe in registered():
        recipe.restore(module)


def _check_module(function: str, module: object) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: a torch.nn.Module is needed, got {type(module).__name__}")
