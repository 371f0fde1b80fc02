"""Which implementation runs: by itself, by argument, by context and by environment variable."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vitgan_kernels
from vitgan_kernels import explain, use_backend
from vitgan_kernels.backends import OPERATORS, BackendError, Implementation, Operator, always

X = torch.randn(5, 3)
LEGAL: dict[str, tuple[Any, ...]] = {
    "l2_attention": (X, None, X),
    "modulated_linear": (X, torch.ones(2, 3), torch.ones(4, 3)),
    "modulated_siren": (X, [torch.ones(2, 3)], [torch.ones(4, 3)]),
    "spectral_norm": ([X], [torch.ones(5)], [torch.ones(3)]),
}


def call(name: str, **options: Any) -> Tensor:
    arguments = copy.deepcopy(LEGAL[name])  # spectral_norm moves its vectors
    result = getattr(vitgan_kernels, name)(*arguments, **options)
    return result if isinstance(result, Tensor) else result[1]


def test_every_operator_is_known() -> None:
    assert set(OPERATORS) == set(LEGAL)


@pytest.mark.parametrize("name", LEGAL)
def test_explain_takes_what_the_operator_takes(name: str) -> None:
    taken = list(inspect.signature(getattr(vitgan_kernels, name)).parameters)
    assert taken == [*inspect.signature(OPERATORS[name].arguments).parameters, "backend"]
    assert explain(name, *LEGAL[name]).startswith(f"{name}: ")
    with pytest.raises(TypeError, match=rf"a call of {name} takes .*, .* and backend: missing a required argument: '"):
        explain(name)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'size'"):
        explain(name, *LEGAL[name], size=3)


@pytest.mark.parametrize("name", LEGAL)
def test_the_reference_serves_every_operator(name: str) -> None:
    expected = call(name)
    torch.testing.assert_close(call(name, backend="reference"), expected)
    with use_backend("reference"):
        torch.testing.assert_close(call(name), expected)


@pytest.mark.parametrize("name", LEGAL)
def test_a_backend_that_there_is_not_is_an_error(name: str) -> None:
    message = f"backend 'cuda' was asked for, but cannot run this call of {name}: "
    with pytest.raises(BackendError, match=message):
        call(name, backend="cuda")
    with use_backend("cuda"), pytest.raises(BackendError, match=message):
        call(name)
    with pytest.raises(ValueError, match="unknown backend 'gpu': choose one of auto, reference, triton, cuda, cpp"):
        call(name, backend="gpu")


def test_use_backend_refuses_a_name_it_does_not_know_before_the_block() -> None:
    with pytest.raises(ValueError, match="unknown backend 'gpu': choose one of auto, reference"):
        use_backend("gpu")  # type: ignore[arg-type]


def never(*_args: Any) -> Any:
    raise AssertionError("nothing is to be computed here")


@pytest.fixture
def toy() -> Iterator[Callable[..., str]]:
    """The choice of an operator with an implementation that serves even numbers only, in front of the reference."""

    def even(n: int) -> tuple[bool, str]:
        return n % 2 == 0, "even" if n % 2 == 0 else "odd number"

    implementations = [Implementation("cpp", never, even), Implementation("reference", never, always)]
    operator = Operator("toy", lambda n: ((n,), {}), implementations)
    yield lambda n, backend=None: operator.select(backend, n).backend
    del OPERATORS["toy"]


def test_the_first_that_can_is_chosen_and_one_asked_for_never_gives_way(toy: Callable[..., str]) -> None:
    assert [toy(2), toy(3), toy(3, "auto")] == ["cpp", "reference", "reference"]
    assert [toy(2, "cpp"), toy(2, "reference")] == ["cpp", "reference"]
    with pytest.raises(BackendError, match=r"'cpp' was asked for, .* of toy: odd number. Use backend='auto'"):
        toy(3, "cpp")
    with pytest.raises(BackendError, match="of toy: toy has no triton implementation"):
        toy(2, "triton")


def test_use_backend_nests_and_ends(toy: Callable[..., str]) -> None:
    with use_backend("reference"):
        assert toy(2) == "reference"
        with use_backend("auto"):
            assert toy(2) == "cpp"
        assert toy(2) == "reference"
        assert toy(2, "cpp") == "cpp", "an argument goes before the context"
    assert toy(2) == "cpp"
    with pytest.raises(BackendError), use_backend("triton"):
        toy(2)
    assert toy(2) == "cpp"


def test_explain_names_what_runs_and_why_not_the_others(toy: Callable[..., str]) -> None:
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


def test_explain_refuses_what_the_call_refuses() -> None:
    with pytest.raises(ValueError, match="l2_attention: k and v must have the same number of tokens"):
        explain("l2_attention", X, None, X[:2])
    with pytest.raises(ValueError, match="modulated_linear: weight must be"):
        explain("modulated_linear", X, X[:, :2], X)
    with pytest.raises(TypeError, match=r"modulated_siren: weights\[0\] must be a Tensor, got NoneType"):
        explain("modulated_siren", X, [None], [X])
    with pytest.raises(ValueError, match="spectral_norm: n_iterations must be"):
        explain("spectral_norm", [X], [torch.ones(5)], [torch.ones(3)], n_iterations=-1)


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
