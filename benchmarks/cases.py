"""What is compared: a case, those who compute it, and the pass through each that is timed.

A pass returns what its forward computes, too: a compiler would leave out what nobody reads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Inputs = tuple[Sequence[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Args:
        who: its name.
        function: takes the case's inputs; returns a tensor or several.
        ours: it is this project's.
        compiled: a mode of torch.compile, for the whole pass as one graph, derivatives included.
        exact: its own definition, where it computes something else on purpose (a lower bound).
        unable: by what is measured, why it cannot take part. "*" stands for everything.
    """

    who: str
    function: Function
    ours: bool = False
    compiled: str | None = None
    exact: Function | None = None
    unable: dict[str, str] = field(default_factory=dict)

    def why_not(self, measures: str) -> str | None:
        """Why it cannot take part, or None."""
        return self.unable.get("*") or self.unable.get(measures)


@dataclass(frozen=True)
class Case:
    """What the contenders compute, in one size.

    Args:
        suite, name, shape, dtype: as in a `Row`.
        inputs: makes, from a seed, the inputs, and the cotangents of the results that a backward starts from.
        exact: the definition, called with the inputs in float64.
        plain: plain PyTorch in the case's dtype, whose error is the measure.
        wanted: positions of the inputs that derivatives are taken in.
        bytes, flops: by what is measured, the least that has to be moved and done.
    """

    suite: str
    name: str
    shape: dict[str, int]
    dtype: torch.dtype
    inputs: Callable[[int], Inputs]
    exact: Function
    plain: Function
    wanted: tuple[int, ...]
    bytes: dict[str, float]
    flops: dict[str, float]


def one_pass(function: Function, measures: str, wanted: tuple[int, ...]) -> Function:
    """(inputs, cotangents) -> the results of the forward and of what follows it: nothing, a backward, or the backward
    of a penalty on the gradients."""

    def forward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _tuple(function(*inputs))

    def forward_backward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = _tuple(function(*inputs))
        return *_values(out), *torch.autograd.grad(out, [inputs[i] for i in wanted], cotangents)

    def second_order(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out, variables = _tuple(function(*inputs)), [inputs[i] for i in wanted]
        gradients = torch.autograd.grad(out, variables, cotangents, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        second = torch.autograd.grad(penalty, variables, allow_unused=True)
        # None where the gradients do not depend on a variable: on the bias of a last linear layer
        zeros = (torch.zeros_like(x) if each is None else each for each, x in zip(second, variables, strict=True))
        return *_values(out), *zeros

    passes: dict[str, Function] = {
        "forward": forward,
        "forward_backward": forward_backward,
        "second_order": second_order,
    }
    return passes[measures]


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)


def _values(results: tuple[Tensor, ...]) -> list[Tensor]:
    """Without their graph, which is used up: torch.compile would not let it out."""
    return [result.detach() for result in results]


def runner(contender: Contender, measures: str, wanted: tuple[int, ...]) -> Function:
    """The contender's pass, compiled where it is to be."""
    run = one_pass(contender.function, measures, wanted)
    if contender.compiled is None:
        return run
    torch._dynamo.reset()  # a limit on versions of one function must not end in an eager run
    torch._dynamo.config.trace_autograd_ops = True
    compiled: Function = torch.compile(run, fullgraph=True, dynamic=False, mode=contender.compiled)
    return compiled


def prepared(case: Case, measures: str, seed: int, dtype: torch.dtype | None = None) -> Inputs:
    """Inputs of their own, of which the wanted ones are leaves that require gradients, and cotangents."""
    inputs, cotangents = case.inputs(seed)
    wanted = case.wanted if measures != "forward" else ()
    return (
        [x.detach().to(dtype or x.dtype, copy=True).requires_grad_(i in wanted) for i, x in enumerate(inputs)],
        [x.to(dtype or x.dtype) for x in cotangents],
    )


def computed(function: Function, case: Case, measures: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """What a pass makes of the inputs of seed 0, cast to dtype."""
    return detached(one_pass(function, measures, case.wanted)(*prepared(case, measures, 0, dtype)))


def detached(results: Sequence[Tensor]) -> list[Tensor]:
    """Copies: compiled code may write its next results to the same memory."""
    return [result.detach().clone() for result in results]
