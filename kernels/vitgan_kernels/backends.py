"""Which implementation of an operator runs, and why.

An operator is a list of implementations in order of preference. Each one says of a call whether it can serve it
and, if not, why not. "auto" takes the first that can; a backend asked for by name either runs or is an error,
never a silent detour.
"""

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

BackendName = Literal["auto", "reference", "triton", "cuda", "cpp"]
BACKENDS: tuple[str, ...] = get_args(BackendName)
ENVIRONMENT_VARIABLE = "VITGAN_KERNELS_BACKEND"


class BackendError(RuntimeError):
    """A backend asked for by name cannot serve the call."""


@dataclass(frozen=True)
class Implementation:
    """One way to run an operator. `can_handle(*args, **kwargs)` returns (True, why it fits) or (False, why not)."""

    backend: str
    run: Callable[..., Any]
    can_handle: Callable[..., tuple[bool, str]]


class Operator:
    """An operator's implementations, in order of preference; the last one must serve every legal call.

    `arguments` takes those of the operator's own function, but `backend`, raises what that raises where they are not
    legal, and returns the (args, kwargs) that implementations take.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]],
        implementations: list[Implementation],
    ) -> None:
        self.name = name
        self.arguments = arguments
        self.implementations = implementations
        OPERATORS[name] = self

    def select(self, backend: str | None, *args: Any, **kwargs: Any) -> Implementation:
        """The implementation that serves these checked arguments. Raises BackendError where a forced backend cannot."""
        wanted = _default() if backend is None else checked_backend(backend)
        if wanted == "auto":
            return next(i for i in self.implementations if i.can_handle(*args, **kwargs)[0])
        reason = f"{self.name} has no {wanted} implementation"
        for implementation in self.implementations:
            if implementation.backend == wanted:
                able, reason = implementation.can_handle(*args, **kwargs)
                if able:
                    return implementation
        raise BackendError(
            f"backend {wanted!r} was asked for, but cannot run this call of {self.name}: {reason}. "
            f"Use backend='auto' to let another implementation serve it{_where_it_was_asked_for(backend)}."
        )

    def explain(self, backend: str | None, *args: Any, **kwargs: Any) -> str:
        signature = inspect.signature(self.arguments)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            takes = ", ".join(signature.parameters)
            raise TypeError(f"explain: a call of {self.name} takes {takes} and backend: {error}") from None
        args, kwargs = self.arguments(*args, **kwargs)
        try:
            chosen = self.select(backend, *args, **kwargs).backend
        except BackendError as error:
            return str(error)
        lines = [f"{self.name}: {chosen} runs"]
        known = {implementation.backend for implementation in self.implementations}
        for implementation in self.implementations:
            able, reason = implementation.can_handle(*args, **kwargs)
            lines.append(f"  {implementation.backend:<9} {'can' if able else 'cannot'}: {reason}")
        lines += [
            f"  {name:<9} cannot: no such implementation of {self.name}" for name in BACKENDS[1:] if name not in known
        ]
        return "\n".join(lines)


OPERATORS: dict[str, Operator] = {}


def checked_backend(name: str) -> str:
    """The name, if it is one of BACKENDS; otherwise ValueError."""
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    return name


def check_backend(name: str | None) -> None:
    """Raise ValueError unless it is None, for the default, or one of BACKENDS."""
    if name is not None:
        checked_backend(name)


# Checked when it is used, not here: an import that raises leaves nobody to say what to do about it.
_from_environment = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
_default_backend = _from_environment


def _default() -> str:
    if _default_backend not in BACKENDS:
        raise BackendError(
            f"unknown backend {_default_backend!r} in the environment variable {ENVIRONMENT_VARIABLE}: unset it, or "
            f"set it to one of {', '.join(BACKENDS)}"
        )
    return _default_backend


def _where_it_was_asked_for(backend: str | None) -> str:
    """What else there is to change, where no argument and no `use_backend` has asked for a backend."""
    by_environment = backend is None and _default_backend == _from_environment
    return f", or unset {ENVIRONMENT_VARIABLE}" if by_environment else ""


def use_backend(name: BackendName) -> AbstractContextManager[None]:
    """`with use_backend(name):` runs every operator called in the block on that backend, or raises where it cannot.

    It holds for the whole process, other threads too.

    The environment variable VITGAN_KERNELS_BACKEND sets the same for a whole process; it is read at import and
    checked at the first call.

    Raises:
        ValueError: there is no such backend.
    """
    return _using(checked_backend(name))


@contextmanager
def _using(name: str) -> Iterator[None]:
    global _default_backend
    before, _default_backend = _default_backend, name
    try:
        yield
    finally:
        _default_backend = before


def explain(op_name: str, *tensors: Any, backend: str | None = None, **kwargs: Any) -> str:
    """Say which backend would run this call of an operator, and why not the others.

    Args:
        op_name: "l2_attention", "modulated_linear", "modulated_siren" or "spectral_norm".
        *tensors, **kwargs: the arguments of the call.
        backend: as in the call itself.

    Raises:
        ValueError: there is no such operator, or no such backend.
        TypeError: the call has an argument too many or too few.
        What the call itself would raise for its arguments.
    """
    if op_name not in OPERATORS:
        raise ValueError(f"unknown operator {op_name!r}: choose one of {', '.join(sorted(OPERATORS))}")
    return OPERATORS[op_name].explain(backend, *tensors, **kwargs)


def always(*_args: Any, **_kwargs: Any) -> tuple[bool, str]:
    """The `can_handle` of a reference: it serves every legal call."""
    return True, "plain PyTorch, any device, floating dtype and order of derivative"
