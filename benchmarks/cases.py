"""A case of an operator: its inputs, its definition, and the pass through an implementation that is timed.

A pass returns what its forward computes, too: a compiler would leave out what nobody reads.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import CACHE_BYTES
from benchmarks.measure import Call, Implementation, Role, largest_error, seconds_of
from vitgan_kernels import explain, use_backend
from vitgan_kernels.backends import BACKENDS, BackendError

Function = Callable[..., Any]
Inputs = tuple[Sequence[Tensor], Sequence[Tensor]]
MEASURES = ("forward", "forward_backward", "second_order")
LONG = 0.2  # seconds
SUMS = 4 * torch.finfo(torch.float32).eps  # by which float32 sums in another order may differ
INPUT_SETS = (2, 16)  # the fewest and the most: together larger than the cache, where they are not very small


@dataclass(frozen=True)
class Case:
    """What implementations compute, in one size.

    Args:
        suite, name, dtype, measures: "second_order" is forward, backward and the backward of a gradient penalty.
        inputs: makes, from a seed, the inputs, and the cotangents of the results that a backward starts from.
        exact: the definition, called with the inputs in float64.
        plain: plain PyTorch in the case's dtype: twice its error is allowed, plus SUMS or a rounding.
        wanted: positions of the inputs that derivatives are taken in.
        bytes, flops: the least that has to be moved and done.
    """

    suite: str
    name: str
    dtype: torch.dtype
    measures: str
    inputs: Callable[[int], Inputs]
    exact: Function
    plain: Function
    wanted: tuple[int, ...]
    bytes: float | None = None
    flops: float | None = None

    def exact_results(self) -> list[Tensor]:
        """What the definition computes in float64."""
        return self._computed(self.exact, torch.float64)

    def of(self, function: Function) -> "Case":
        """The same with another definition."""
        return replace(self, exact=function)

    def allowed(self, exact: Sequence[Tensor]) -> float:
        """The largest error that counts as a match."""
        return 2 * largest_error(self._computed(self.plain), exact) + max(torch.finfo(self.dtype).eps, SUMS)

    def implementation(
        self, name: str, function: Function, role: Role = "baseline", *, compiled: str | None = None, **more: Any
    ) -> Implementation:
        """One of this case; compiled: a mode of torch.compile, for the whole pass as one graph."""

        def prepare() -> tuple[Sequence[Tensor], Call]:
            run = one_pass(function, self.measures, self.wanted)
            if compiled:
                torch._dynamo.config.trace_autograd_ops = True
                run = torch.compile(run, fullgraph=True, dynamic=False, mode=compiled)
            return detached(run(*self._prepared(0))), self._rotating(run)

        return Implementation(name, prepare, role, **more)

    def ours(
        self, operator: str, function: Function, arguments: Sequence[Any], compiled: bool, **options: Any
    ) -> list[Implementation]:
        """This project's: what runs by itself, and compiled, or on every other backend that can serve the call."""
        chosen = re.findall(r": (\w+) runs", explain(operator, *arguments, **options))
        info = {"backend": chosen[0]} if chosen else {}
        found = [self.implementation("vitgan_kernels", function, "ours", info=info)]
        if compiled:
            return [*found, self.implementation("vitgan_kernels, compiled", function, "ours", compiled="default")]
        for backend in (name for name in BACKENDS if name != "auto" and name not in chosen):
            forced = _on_backend(function, backend)
            try:
                with torch.no_grad():
                    forced(*self._prepared(0)[0])
            except BackendError:
                continue
            found.append(self.implementation(f"vitgan_kernels, {backend}", forced, "other"))
        return found

    def _rotating(self, run: Function) -> Call:
        """A call that takes the next of several sets of inputs each time."""
        first = self._prepared(0)
        device = first[0][0].device
        size = sum(x.numel() * x.element_size() for part in first for x in part)
        count = min(max(CACHE_BYTES[device.type] // size + 1, INPUT_SETS[0]), INPUT_SETS[1])
        if seconds_of(lambda: run(*first), 1, device) > LONG:  # the cache decides nothing there
            count = INPUT_SETS[0]
        sets = [first, *(self._prepared(seed) for seed in range(1, count))]
        for each in sets[1:]:  # what is only done at the first sight of an input
            run(*each)
        turning = cycle(sets)
        return lambda: run(*next(turning))

    def _prepared(self, seed: int, dtype: torch.dtype | None = None) -> Inputs:
        """Inputs of which the wanted ones are leaves that require gradients, and cotangents."""
        inputs, cotangents = self.inputs(seed)
        wanted = self.wanted if self.measures != "forward" else ()
        return (
            [x.detach().to(dtype or x.dtype, copy=True).requires_grad_(i in wanted) for i, x in enumerate(inputs)],
            [x.to(dtype or x.dtype) for x in cotangents],
        )

    def _computed(self, function: Function, dtype: torch.dtype | None = None) -> list[Tensor]:
        return detached(one_pass(function, self.measures, self.wanted)(*self._prepared(0, dtype)))


def one_pass(function: Function, measures: str, wanted: tuple[int, ...]) -> Function:
    """(inputs, cotangents) -> the results of the forward and of what follows it."""

    def forward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return _tuple(function(*inputs))

    def forward_backward(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out = _tuple(function(*inputs))
        # without their graph, which is used up: torch.compile would not let it out
        return *(x.detach() for x in out), *torch.autograd.grad(out, [inputs[i] for i in wanted], cotangents)

    def second_order(inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> tuple[Tensor, ...]:
        out, variables = _tuple(function(*inputs)), [inputs[i] for i in wanted]
        gradients = torch.autograd.grad(out, variables, cotangents, create_graph=True)
        penalty = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        second = torch.autograd.grad(penalty, variables, allow_unused=True)
        # None where the gradients do not depend on a variable: on the bias of a last linear layer
        zeros = (torch.zeros_like(x) if each is None else each for each, x in zip(second, variables, strict=True))
        return *(x.detach() for x in out), *zeros

    return {"forward": forward, "forward_backward": forward_backward, "second_order": second_order}[measures]


def detached(results: Sequence[Tensor]) -> list[Tensor]:
    """Copies: compiled code may write its next results to the same memory."""
    return [result.detach().clone() for result in results]


def _on_backend(function: Function, backend: Any) -> Function:
    def forced(*tensors: Tensor) -> Any:
        with use_backend(backend):
            return function(*tensors)

    return forced


def _tuple(out: Any) -> tuple[Tensor, ...]:
    return (out,) if isinstance(out, Tensor) else tuple(out)
