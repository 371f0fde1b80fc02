"""Whether a replacement computes what was there before, and how long each takes: trials on copies."""

import copy
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Trial = list[list[Tensor]]
"""What was computed at one place: the outputs, then groups of tensors of one kind each (gradients, buffers)."""

OWN_HOOKS = ("torch.nn.", "vitgan_kernels.")  # the old spectral_norm and weight_norm of PyTorch compute in a hook
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def copied(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in the dtype (None: as it is) that shares nothing with the module, without the hooks of its users."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in vars(part).values():
            # what the last forward left behind on the module; `copy` refuses a tensor with a history
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
        for hooks in (vars(part)[name] for name in HOOKS):
            kept = ((key, hook) for key, hook in hooks.items() if type(hook).__module__.startswith(OWN_HOOKS))
            memo[id(hooks)] = OrderedDict(kept)
    twin = copy.deepcopy(module, memo)
    return twin if dtype is None else twin.to(dtype)


def trial(module: nn.Module, shapes: Sequence[tuple[int, ...]], seed: int = 0) -> Trial:
    """Outputs, gradients, second derivatives (where there are any) and buffers, in both modes, of normal input.

    The second derivatives are the gradients of the squared gradients of the inputs, as a gradient penalty has them.
    """
    torch.manual_seed(seed)
    outputs, gradients, second = [], [], []
    for training in (True, False):
        module.train(training)
        inputs = normal_inputs(module, shapes)
        wanted = [*inputs, *(parameter for parameter in module.parameters() if parameter.requires_grad)]
        results = list(_tensors(module(*inputs)))
        outputs += [result.detach() for result in results]
        results = [result for result in results if result.requires_grad]
        towards = [torch.randn(result.shape, dtype=torch.float64).to(result) for result in results]
        gradients += _gradients(results, wanted, towards)
        second += _of_a_penalty(results, inputs, wanted, towards)
    buffers = [buffer.clone() for buffer in module.buffers() if buffer.is_floating_point()]
    return [outputs, gradients, second, buffers]


def _gradients(results: list[Tensor], wanted: list[Tensor], towards: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(results, wanted, towards, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]


def _of_a_penalty(
    results: list[Tensor], inputs: list[Tensor], wanted: list[Tensor], towards: list[Tensor]
) -> list[Tensor]:
    """The second derivatives; none where the module has none (`torch.cdist`), or is linear."""
    try:
        slopes = torch.autograd.grad(results, inputs, towards, create_graph=True, allow_unused=True)
        penalties = [slope.square().sum() for slope in slopes if slope is not None and slope.requires_grad]
        return _gradients(penalties, wanted, [torch.ones_like(p) for p in penalties]) if penalties else []
    except RuntimeError:
        return []


def _tensors(output: Any) -> Iterable[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple | list):
        return [tensor for part in output for tensor in _tensors(part)]
    raise TypeError(f"its output is a {type(output).__name__}; tensors, or tuples of them, can be compared")


FLOAT64_TOLERANCE = 1e-9
FLOOR = 0.01
"""A tensor is measured in units of its own largest value, or of this part of the largest value of its kind: the
gradient of a bias that has no effect is rounding, in which no two implementations agree."""


@dataclass(frozen=True)
class Comparison:
    """Whether a replacement agrees with what was there (no reason against it), and the measured differences."""

    reason: str = ""
    differences: dict[str, float] = field(default_factory=dict)


def compare(precise: Trial, precise_after: Trial, before: Trial, after: Trial) -> Comparison:
    """What was there and its replacement, each in float64 and in the module's own dtype."""
    precise_after, after = _of_kinds_in(precise, precise_after), _of_kinds_in(before, after)
    for old, new in ((precise, precise_after), (before, after)):
        misfit = _misfit(old, new)
        if misfit:
            return Comparison(f"the replacement {misfit}")
    dtype = before[0][0].dtype
    differences = {"float64": _difference(precise_after, precise)}
    agrees = differences["float64"] <= FLOAT64_TOLERANCE
    if dtype != torch.float64:
        differences[str(dtype).removeprefix("torch.")] = _difference(after, before)
        rounding = 16 * torch.finfo(dtype).eps
        agrees = agrees and _difference(after, precise) <= 2 * _difference(before, precise) + rounding
    return Comparison("" if agrees else "the replacement disagrees with what was there", differences)


def _of_kinds_in(before: Trial, after: Trial) -> Trial:
    """Without what the old module cannot compute, as the second derivative of `torch.cdist`."""
    return [new if old else [] for old, new in zip(before, after, strict=True)]


def _misfit(before: Trial, after: Trial) -> str:
    if [len(group) for group in before] != [len(group) for group in after]:
        return "has another number of outputs or derivatives"
    for old, new in zip(_flat(before), _flat(after), strict=True):
        if old.shape != new.shape or old.dtype != new.dtype:
            return f"gives {tuple(new.shape)} {new.dtype} where {tuple(old.shape)} {old.dtype} was"
    if any(old.is_contiguous() and not new.is_contiguous() for old, new in zip(before[0], after[0], strict=True)):
        return "gives a tensor that is not contiguous where a contiguous one was"
    return ""


def _difference(tensors: Trial, others: Trial) -> float:
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


def _flat(of: Trial) -> Sequence[Tensor]:
    return [tensor for group in of for tensor in group]


TURNS = 15
MARGIN = 1.1
clock = time.perf_counter


@dataclass(frozen=True)
class Times:
    """Seconds of one pass before and after, medians of turns; `slower` where that is no noise."""

    before: float
    after: float
    slower: bool


def time_in_turns(before: Callable[[], object], after: Callable[[], object]) -> Times:
    """Time two functions in turns. The second is slower if it is so by MARGIN in three turns of four."""
    repeats = max(1, int(1e-3 / max(*(_seconds(run, 1) for run in (before, after, before, after)), 1e-9)))
    pairs = []
    for turn in range(TURNS):
        order = (before, after) if turn % 2 == 0 else (after, before)
        seconds = {run: _seconds(run, repeats) for run in order}
        pairs.append((seconds[before], seconds[after]))
    ratios = sorted(new / old for old, new in pairs)
    old, new = (sorted(column)[TURNS // 2] for column in zip(*pairs, strict=True))
    return Times(old, new, ratios[TURNS // 4] > MARGIN)


def _seconds(run: Callable[[], object], repeats: int) -> float:
    start = clock()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def one_pass(module: nn.Module, inputs: Sequence[Any]) -> Callable[[], object]:
    """Forward and backward of a module in training mode; otherwise a forward without gradients."""
    wanted = [x for x in [*inputs, *module.parameters()] if isinstance(x, Tensor) and x.requires_grad]

    def run() -> None:
        with torch.set_grad_enabled(module.training):
            outputs = [out for out in _tensors(module(*inputs)) if out.requires_grad]
            if outputs:
                torch.autograd.grad([out.sum() for out in outputs], wanted, allow_unused=True)

    return run


def normal_inputs(module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Standard normal inputs of these shapes, in the module's dtype and on its device."""
    like = next(tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point())
    return [torch.randn(shape, dtype=torch.float64).to(like).requires_grad_() for shape in shapes]
