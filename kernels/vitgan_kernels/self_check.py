"""Every operator against float64, on each backend that serves a small call here: the check that `doctor` makes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vitgan_kernels.backends import OPERATORS
from vitgan_kernels.l2_attention import l2_attention
from vitgan_kernels.modulated_siren import modulated_linear, modulated_siren
from vitgan_kernels.spectral_norm import spectral_norm

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A small call of an operator. `arguments` makes the call's from the tensors that it is differentiated in."""

    operator: str
    function: Callable[..., Any]
    inputs: list[Tensor]
    arguments: Callable[..., Arguments]
    orders: int
    dtypes: tuple[torch.dtype, ...]

    def backends(self) -> list[str]:
        """Those that can serve the call, with Triton's interpreter where it is on."""
        args, options = self.arguments(*self.inputs)
        operator = OPERATORS[self.operator]
        args, options = operator.arguments(*args, **options)
        able = [i.backend for i in operator.implementations if i.can_handle(*args, **options)[0]]
        return list(dict.fromkeys(able))

    def derivatives(self, backend: str, dtype: torch.dtype, rounded: torch.dtype) -> list[list[Tensor]]:
        """The results of the call in a dtype, their gradient, and (orders = 2) the gradient of that.

        Inputs and the directions of the gradients are first rounded to `rounded`, so that float64 has the same ones.
        """
        inputs = [x.to(rounded).to(dtype).requires_grad_() for x in self.inputs]
        args, options = self.arguments(*inputs)
        result = self.function(*args, backend=backend, **options)
        values = [result] if isinstance(result, Tensor) else [*result[0], *result[1:]]
        results = [values]
        for order in range(1, self.orders + 1):
            # a value without a graph is a constant; that it should not be one shows in the numbers
            moving = [x for x in values if x.requires_grad]
            towards = [_direction(x, rounded) for x in moving]
            flags = {"create_graph": order < self.orders, "allow_unused": True, "materialize_grads": True}
            values = list(torch.autograd.grad(moving, inputs, towards, **flags))
            results.append(values)
        return [[x.detach() for x in values] for values in results]

    def off_by_a_rounding(self, dtype: torch.dtype) -> "Case":
        """The call with every number that it is differentiated in off by a half of the dtype's epsilon, up or down."""
        half = torch.finfo(dtype).eps / 2
        signs = [_direction(x, torch.float64).double().sign() for x in self.inputs]
        return replace(
            self, inputs=[x.to(dtype).double() * (1 + half * s) for x, s in zip(self.inputs, signs, strict=True)]
        )


@dataclass(frozen=True)
class Outcome:
    """How exact one order of derivative of one call was: errors are of the largest value; problem: why it failed."""

    operator: str
    backend: str
    dtype: str
    derivative: int
    error: float | None
    allowed: float | None
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.problem is None


def cases(device: str) -> list[Case]:
    """One call of each operator, of the presets' form and smaller."""
    generator = torch.Generator().manual_seed(0)
    # bfloat16 is what GPUs train in; of plain PyTorch on a CPU there is nothing to check in it
    floats = (torch.float32, torch.bfloat16) if device.startswith("cuda") else (torch.float32,)

    def randn(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    u, v = ([randn(size) for size in sizes] for sizes in ((48, 8), (40, 27)))

    def attention(q: Tensor, v: Tensor) -> Arguments:
        return (q, None, v), {}

    def linear(x: Tensor, weight: Tensor, style: Tensor, bias: Tensor) -> Arguments:
        return (x, weight, style, bias), {"activation": "sine", "omega": 3.0}

    def siren(x: Tensor, w0: Tensor, w1: Tensor, s0: Tensor, s1: Tensor) -> Arguments:
        return (x, [w0, w1], [s0, s1], [None, None]), {"omega": 3.0}

    def norms(*weights: Tensor) -> Arguments:
        # new ones for every call, which moves them
        vectors = [[x.to(weights[0].dtype, copy=True) for x in xs] for xs in (u, v)]
        return (list(weights), *vectors), {"n_iterations": 3}

    return [
        Case("l2_attention", l2_attention, [randn(2, 2, 17, 32), randn(2, 2, 17, 32)], attention, 2, floats),
        Case(
            "modulated_linear",
            modulated_linear,
            [randn(4, 16, 32), randn(32, 32, scale=0.1), randn(4, 32), randn(32, scale=0.1)],
            linear,
            2,
            floats,
        ),
        Case(
            "modulated_siren",
            modulated_siren,
            [randn(16, 32), randn(32, 32, scale=0.1), randn(3, 32, scale=0.1), randn(4, 32), randn(4, 32)],
            siren,
            2,
            floats,
        ),
        Case("spectral_norm", spectral_norm, [randn(48, 40), randn(8, 3, 3, 3)], norms, 1, (torch.float32,)),
    ]


def check(case: Case, backend: str, dtype: torch.dtype) -> Iterator[Outcome]:
    """The outcome for each order of derivative; that of order 0 is about the values themselves."""
    name = str(dtype).removeprefix("torch.")
    try:
        actual = case.derivatives(backend, dtype, dtype)
        plain, exact = (case.derivatives("reference", other, dtype) for other in (dtype, torch.float64))
        nearby = case.off_by_a_rounding(dtype).derivatives("reference", torch.float64, torch.float64)
    except Exception as raised:  # whatever a backend raises is what is looked for here
        yield Outcome(case.operator, backend, name, 0, None, None, f"{type(raised).__name__}: {raised}")
        return
    for order, (ours, theirs, truth, near) in enumerate(zip(actual, plain, exact, nearby, strict=True)):
        size = max(x.abs().max().item() for x in truth)
        error, plain_error, sensitivity = (_largest_difference(xs, truth) / size for xs in (ours, theirs, near))
        # What plain PyTorch loses in this dtype; what is lost where the factors of each product are rounded to it, as
        # kernels do between their steps and plain PyTorch does not; and four roundings of the largest value. The limit
        # is for plain PyTorch, which may be what is broken.
        eps = torch.finfo(dtype).eps
        allowed = min(plain_error + sensitivity + 2 * eps, eps**0.5)
        problem = None if error <= allowed else f"the largest error is {error:.1e}, and {allowed:.1e} may be"
        yield Outcome(case.operator, backend, name, order, error if math.isfinite(error) else None, allowed, problem)


def check_all(device: str) -> list[Outcome]:
    """Every case on every backend that serves it, in each dtype."""
    return [
        outcome
        for case in cases(device)
        for backend in case.backends()
        for dtype in case.dtypes
        for outcome in check(case, backend, dtype)
    ]


def _direction(x: Tensor, rounded: torch.dtype) -> Tensor:
    angles = torch.arange(x.numel(), dtype=torch.float64, device=x.device)
    return torch.cos(0.7 * angles).view(x.shape).to(rounded).to(x.dtype)


def _largest_difference(xs: list[Tensor], exact: list[Tensor]) -> float:
    """Over all tensors; not a number where one has it, which the built-in max would hide."""
    return torch.stack([(x.double() - e).abs().max() for x, e in zip(xs, exact, strict=True)]).max().item()
