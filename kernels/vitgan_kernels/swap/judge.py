"""Whether a replacement computes what was there before."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitgan_kernels.swap.recipe import Recipe, Rehearsal, Site

FLOAT64_TOLERANCE = 1e-9
FLOOR = 0.01
"""A tensor is measured in units of its own largest value, or of this part of the largest value of its kind: the
gradient of a bias that has no effect is rounding, in which no two implementations agree."""


@dataclass(frozen=True)
class Verdict:
    """Whether a replacement agrees with what was there (no reason against it), and the measured differences."""

    reason: str = ""
    differences: dict[str, float] = field(default_factory=dict)


def judge(recipe: Recipe, sites: list[Site], *, exact: bool) -> dict[str, Verdict]:
    """The verdict on each site, by its path, from rehearsals on copies. The random state stays as it is."""
    if not sites:
        return {}
    devices = {tensor.device for site in sites for tensor in site.module.parameters() if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=devices), torch.enable_grad():
            rehearsals = [
                recipe.rehearse(sites, dtype, replaced) for dtype in (torch.float64, None) for replaced in (False, True)
            ]
        each = zip(sites, *rehearsals, strict=True)
        return {site.path: _compared(*results, exact=exact) for site, *results in each}
    except Exception as error:  # someone else's model: whatever is wrong with the copies, the model itself goes on
        if len(sites) > 1:  # what is wrong with one is no reason against the others
            return {path: verdict for site in sites for path, verdict in judge(recipe, [site], exact=exact).items()}
        message = str(error).partition("\n")[0]
        return {sites[0].path: Verdict(f"the check could not run ({type(error).__name__}: {message})")}


def _compared(
    precise: Rehearsal, precise_after: Rehearsal, before: Rehearsal, after: Rehearsal, *, exact: bool
) -> Verdict:
    precise_after, after = _of_kinds_in(precise, precise_after), _of_kinds_in(before, after)
    for old, new in ((precise, precise_after), (before, after)):
        misfit = _misfit(old, new)
        if misfit:
            return Verdict(f"the replacement {misfit}")
    dtype = before[0][0].dtype
    differences = {"float64": _difference(precise_after, precise)}
    agrees = differences["float64"] <= FLOAT64_TOLERANCE
    if dtype != torch.float64:
        differences[str(dtype).removeprefix("torch.")] = _difference(after, before)
        rounding = 16 * torch.finfo(dtype).eps
        agrees = agrees and _difference(after, precise) <= 2 * _difference(before, precise) + rounding
    if not exact:
        agrees = all(torch.isfinite(tensor).all() for group in [*precise_after, *after] for tensor in group)
    return Verdict("" if agrees else "the replacement disagrees with what was there", differences)


def _of_kinds_in(before: Rehearsal, after: Rehearsal) -> Rehearsal:
    """Without what the old module cannot compute, as the second derivative of `torch.cdist`."""
    return [new if old else [] for old, new in zip(before, after, strict=True)]


def _misfit(before: Rehearsal, after: Rehearsal) -> str:
    if [len(group) for group in before] != [len(group) for group in after]:
        return "has another number of outputs or derivatives"
    for old, new in zip(_flat(before), _flat(after), strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"gives {tuple(new.shape)} {new.dtype} where {tuple(old.shape)} {old.dtype} was"
    if any(old.is_contiguous() and not new.is_contiguous() for old, new in zip(before[0], after[0], strict=True)):
        return "gives a tensor that is not contiguous where a contiguous one was"
    return ""


def _difference(tensors: Rehearsal, others: Rehearsal) -> float:
    """The largest over the pairs of tensors, in the units of the second (see FLOOR); NaN if any value is."""
    relative = [0.0]
    for group, other_group in zip(tensors, others, strict=True):
        sizes = [_largest(other) for other in other_group]
        floor = FLOOR * max(sizes, default=0.0)
        for one, other, size in zip(group, other_group, sizes, strict=True):
            error, unit = _largest(one.double() - other.double()), max(size, floor)
            relative.append(error / unit if unit else error and float("inf"))
    return float(torch.tensor(relative, dtype=torch.float64).max())


def _largest(tensor: Tensor) -> float:
    return tensor.double().abs().max().item() if tensor.numel() else 0.0


def _flat(rehearsal: Rehearsal) -> Sequence[Tensor]:
    return [tensor for group in rehearsal for tensor in group]
