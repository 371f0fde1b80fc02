"""Which implementation runs: by itself, by argument, by context and by environment variable."""

import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import (
    explain,
    l2_attention,
    modulated_linear,
    modulated_siren,
    spectral_norm,
    use_backend,
)
from vitgan_kernels.backends import BACKENDS, OPERATORS, BackendError, Implementation, Operator, always

X = torch.randn(5, 3)


def call_l2_attention(**kwargs: Any) -> Tensor:
    return l2_attention(X, None, X, **kwargs)


def call_modulated_linear(**kwargs: Any) -> Tensor:
    return modulated_linear(X, torch.ones(2, 3), torch.ones(4, 3), **kwargs)


def call_modulated_siren(**kwargs: Any) -> Tensor:
    return modulated_siren(X, [torch.ones(2, 3)], [torch.ones(4, 3)], **kwargs)


def call_spectral_norm(**kwargs: Any) -> Tensor:
    return spectral_norm([X], [torch.ones(5)], [torch.ones(3)], **kwargs)[1]


CALLS = {
    "l2_attention": call_l2_attention,
    "modulated_linear": call_modulated_linear,
    "modulated_siren": call_modulated_siren,
    "spectral_norm": call_spectral_norm,
}


@pytest.mark.parametrize("function", [l2_attention, modulated_linear, modulated_siren, spectral_norm])
def test_explain_takes_what_the_operator_takes(function: Callable[..., Any]) -> None:
    taken = list(inspect.signature(function).parameters.values())
    assert taken.pop().name == "backend"
    assert taken == list(inspect.signature(OPERATORS[function.__name__].arguments).parameters.values())


@pytest.fixture
def toy() -> Iterator[Operator]:
    """An operator with an implementation that serves even numbers only, in front of the reference."""
    operator = Operator(
        "toy",
        lambda n: ((n,), {}),
        [
            Implementation("cpp", lambda n: f"cpp {n}", lambda n: (n % 2 == 0, "even" if n % 2 == 0 else "odd number")),
            Implementation("reference", lambda n: f"reference {n}", always),
        ],
    )
    yield operator
    del OPERATORS["toy"]


def test_every_operator_is_known() -> None:
    assert set(OPERATORS) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_the_reference_serves_every_operator(name: str) -> None:
    expected = CALLS[name]()
    torch.testing.assert_close(CALLS[name](backend="reference"), expected)
    with use_backend("reference"):
        torch.testing.assert_close(CALLS[name](), expected)


@pytest.mark.parametrize("name", CALLS)
def test_a_backend_that_cannot_run_is_an_error(name: str) -> None:
    missing = next(b for b in BACKENDS[1:] if b not in {i.backend for i in OPERATORS[name].implementations})
    message = f"backend '{missing}' was asked for, but cannot run this call of {name}: {name} has no {missing} "
    with pytest.raises(BackendError, match=message):
        CALLS[name](backend=missing)
    with use_backend(missing), pytest.raises(BackendError, match=message):  # type: ignore[arg-type]
        CALLS[name]()


@pytest.mark.parametrize("name", CALLS)
def test_unknown_backend(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backend 'gpu': choose one of auto, reference, triton, cuda, cpp"):
        CALLS[name](backend="gpu")


def test_use_backend_refuses_a_name_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="unknown backend 'gpu'"), use_backend("gpu"):  # type: ignore[arg-type]
        pass
    assert call_l2_attention().shape == (5, 3)


def test_the_first_that_can_runs(toy: Operator) -> None:
    assert toy.select(None, 2).run(2) == "cpp 2"
    assert toy.select(None, 3).run(3) == "reference 3"
    assert toy.select("auto", 3).run(3) == "reference 3"


def test_a_forced_backend_never_gives_way(toy: Operator) -> None:
    assert toy.select("cpp", 2).run(2) == "cpp 2"
    assert toy.select("reference", 2).run(2) == "reference 2"
    with pytest.raises(BackendError, match=r"'cpp' was asked for, .* of toy: odd number. Use backend='auto'"):
        toy.select("cpp", 3)


def test_use_backend_nests_and_ends(toy: Operator) -> None:
    with use_backend("reference"):
        assert toy.select(None, 2).backend == "reference"
        with use_backend("auto"):
            assert toy.select(None, 2).backend == "cpp"
        assert toy.select(None, 2).backend == "reference"
        assert toy.select("cpp", 2).backend == "cpp", "an argument goes before the context"
    assert toy.select(None, 2).backend == "cpp"


def test_use_backend_ends_with_an_exception(toy: Operator) -> None:
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert toy.select(None, 2).backend == "cpp"


def test_explain_names_what_runs_and_why_not_the_others(toy: Operator) -> None:
    assert explain("toy", 3).splitlines() == [
        "toy: reference runs",
        "  cpp       cannot: odd number",
        "  reference can: plain PyTorch, any device, floating dtype and order of derivative",
        "  triton    cannot: no such implementation of toy",
        "  cuda      cannot: no such implementation of toy",
    ]
    assert explain("toy", 2).startswith("toy: cpp runs\n  cpp       can: even")
    assert explain("toy", 2, backend="reference").startswith("toy: reference runs")
    assert explain("toy", 3, backend="cpp").startswith("backend 'cpp' was asked for, but cannot run")
    with use_backend("reference"):
        assert explain("toy", 2).startswith("toy: reference runs")


def test_explain_takes_the_arguments_of_a_call() -> None:
    assert explain("l2_attention", X, None, X, scale=0.5).startswith("l2_attention: ")
    assert explain("modulated_linear", X, X, X, activation="sine").startswith("modulated_linear: ")


def test_explain_refuses_what_the_call_refuses() -> None:
    with pytest.raises(ValueError, match="l2_attention: k and v must have the same number of tokens"):
        explain("l2_attention", X, None, X[:2])
    with pytest.raises(ValueError, match="modulated_linear: weight must be"):
        explain("modulated_linear", X, X[:, :2], X)
    with pytest.raises(TypeError, match=r"modulated_siren: weights\[0\] must be a Tensor, got NoneType"):
        explain("modulated_siren", X, [None], [X])
    with pytest.raises(ValueError, match="spectral_norm: n_iterations must be"):
        explain("spectral_norm", [X], [torch.ones(5)], [torch.ones(3)], n_iterations=-1)


@pytest.mark.parametrize("name", OPERATORS)
def test_explain_of_a_call_with_other_arguments_names_those_there_are(name: str) -> None:
    with pytest.raises(TypeError, match=rf"a call of {name} takes .*, .* and backend: missing a required argument: '"):
        explain(name)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'size'"):
        explain(name, X, X, X, size=3)


def test_explain_of_an_unknown_operator() -> None:
    with pytest.raises(ValueError, match=r"unknown operator 'attention': choose one of l2_attention, modulated_linear"):
        explain("attention", X)


def test_the_environment_variable_sets_the_default_of_a_process() -> None:
    code = """if True:
        import os, sys
        import torch

        x = torch.ones(2, 2, dtype=torch.float64)  # which no kernel takes, not even in an interpreter
        for backend in ("reference", "triton", "fastest"):
            if os.fork() > 0:
                os.wait()
                continue
            os.environ["VITGAN_KERNELS_BACKEND"] = backend
            try:
                import vitgan_kernels
                print(vitgan_kernels.explain("modulated_linear", x, x, x).splitlines()[0])
                with vitgan_kernels.use_backend("auto"):
                    vitgan_kernels.modulated_linear(x, x, x)
                vitgan_kernels.modulated_linear(x, x, x)
            except RuntimeError as error:
                print(type(error).__name__, error)
            sys.stdout.flush()
            os._exit(0)
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    explained_reference, explained_triton, raised_triton, explained_fastest, raised_fastest = result.stdout.splitlines()
    assert explained_reference == "modulated_linear: reference runs"
    assert explained_triton.startswith("backend 'triton' was asked for, but cannot run this call of modulated_linear")
    assert raised_triton == f"BackendError {explained_triton}"
    assert explained_triton.endswith("or unset VITGAN_KERNELS_BACKEND.")
    assert explained_fastest.startswith("unknown backend 'fastest' in the environment variable VITGAN_KERNELS_BACKEND")
    assert raised_fastest == f"BackendError {explained_fastest}"


def test_an_unknown_backend_is_refused_before_the_block() -> None:
    with pytest.raises(ValueError, match="unknown backend 'nope': choose one of auto, reference"):
        use_backend("nope")  # type: ignore[arg-type]
