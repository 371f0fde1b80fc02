"""What a module computes on random input, tried on a copy."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vitgan_kernels.swap.recipe import Rehearsal

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


def rehearse(module: nn.Module, shapes: Sequence[tuple[int, ...]], seed: int = 0) -> Rehearsal:
    """Outputs, gradients, second derivatives (where there are any) and buffers, in both modes, of normal input.

    The second derivatives are the gradients of the squared gradients of the inputs, as a gradient penalty has them.
    """
    torch.manual_seed(seed)
    like = next(tensor for tensor in [*module.parameters(), *module.buffers()] if tensor.is_floating_point())
    outputs, gradients, second = [], [], []
    for training in (True, False):
        module.train(training)
        inputs = [torch.randn(shape, dtype=torch.float64).to(like).requires_grad_() for shape in shapes]
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
