"""The public function: what it refuses, and torch.compile."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vitgan_kernels import spectral_norm
from vitgan_kernels.spectral_norm import op

W, U, V = torch.randn(4, 2, 3), torch.randn(4), torch.randn(6)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"weights": []}, "one entry a matrix, got 0, 1 and 1"),
        ({"u": [U, U]}, "one entry a matrix, got 1, 2 and 1"),
        ({"v": []}, "one entry a matrix, got 1, 1 and 0"),
        ({"weights": [W[0, 0]]}, r"weights\[0\] must be \(out, in, ...\) and not empty, got \(3,\)"),
        ({"weights": [W[:, :0]]}, r"weights\[0\] must be \(out, in, ...\) and not empty, got \(4, 0, 3\)"),
        ({"u": [V]}, r"weights\[0\] \(4, 2, 3\) is a matrix \(4, 6\), so u must be \(4,\) and v \(6,\), got \(6,\)"),
        ({"v": [V[None]]}, r"so u must be \(4,\) and v \(6,\), got \(4,\) and \(1, 6\)"),
        ({"u": [U.clone().requires_grad_()]}, r"u\[0\] and v\[0\] are constants and must not require a gradient"),
        ({"v": [V.clone().requires_grad_()]}, r"u\[0\] and v\[0\] are constants and must not require a gradient"),
        ({"sigma_init": torch.ones(2)}, r"sigma_init must be \(1,\), got \(2,\)"),
        ({"sigma_init": torch.ones(())}, r"sigma_init must be \(1,\), got \(\)"),
        ({"n_iterations": -1}, "n_iterations must be an integer of at least 0, got -1"),
        ({"n_iterations": 1.0}, "n_iterations must be an integer of at least 0, got 1.0"),
        ({"eps": float("nan")}, "eps must be a finite number, got nan"),
        ({"eps": 0.0}, "eps must be positive, got 0.0"),
        ({"u": [U.to("meta")]}, r"weights\[0\] is on cpu but u\[0\] is on meta: move one"),
    ],
)
def test_arguments_that_do_not_fit(replaced: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"weights": [W], "u": [U], "v": [V]}
    with pytest.raises(ValueError, match=f"^spectral_norm: .*{message}"):
        spectral_norm(**(arguments | replaced))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"v": [V.double()]}, r"weights\[0\] is torch.float32 but v\[0\] is torch.float64: convert one"),
        ({"sigma_init": torch.ones(1, dtype=torch.float64)}, "weights.* but sigma_init is torch.float64: convert one"),
        ({"weights": [W.long()]}, r"weights\[0\] must be floating point, got torch.int64"),
        ({"weights": W}, "weights must be a list of tensors, got Tensor"),
        ({"v": None}, "v must be a list of tensors, got NoneType"),
        ({"update": "no"}, "update must be True or False, got 'no'"),
        ({"dtype": "float32"}, "dtype must be a floating-point dtype or None, got 'float32'"),
        ({"weights": [torch.ones(4, 6).to_sparse()]}, r"weights\[0\] must be a dense tensor, got .* torch.sparse_coo"),
        ({"u": [1.0]}, r"u\[0\] must be a Tensor, got float"),
        ({"weights": [None]}, r"weights\[0\] must be a Tensor, got NoneType"),
    ],
)
def test_types_that_do_not_fit(replaced: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"weights": [W], "u": [U], "v": [V]}
    with pytest.raises(TypeError, match=f"^spectral_norm: {message}"):
        spectral_norm(**(arguments | replaced))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_vector_given_twice_is_refused_where_it_would_move(backend: str) -> None:
    with pytest.raises(ValueError, match=r"^spectral_norm: u\[0\] and u\[1\] are one tensor and share memory"):
        spectral_norm([W, W], [U, U], [V, V.clone()], backend=backend)
    square = torch.randn(4, 4)
    with pytest.raises(ValueError, match=r"^spectral_norm: u\[0\] and v\[0\] are one tensor"):
        spectral_norm([square], [U], [U], backend=backend)
    _, sigma = spectral_norm([W, W], [U, U], [V, V], update=False, backend=backend)
    assert sigma[0] == sigma[1]


@pytest.mark.usefixtures("compiled")
def test_vectors_that_share_memory_are_refused_by_name() -> None:
    both = torch.randn(8)
    with pytest.raises(ValueError, match=r"^spectral_norm: u\[0\] and u\[1\] share memory"):
        spectral_norm([W, W], [both[:4], both[2:6]], [V.clone(), V.clone()], backend="cpp")


def test_an_update_under_a_transform_that_maps_over_weights_says_what_to_do() -> None:
    def total(weight: Tensor, update: bool) -> Tensor:
        return spectral_norm([weight], [U], [V], update=update)[0][0].sum()

    for transform in (lambda f: torch.func.vmap(f)(W[None]), lambda f: torch.func.jvp(f, (W,), (W,))):
        with pytest.raises(RuntimeError, match=r"^spectral_norm: under this transform .* update=False"):
            transform(lambda weight: total(weight, True))
    assert torch.func.jvp(lambda weight: total(weight, False), (W,), (W,))[1].isfinite()


def test_other_errors_under_a_transform_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("there is none left")

    monkeypatch.setattr(op.reference, "spectral_norm", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match="there is none left"):
        torch.func.grad(lambda weight: spectral_norm([weight], [U], [V])[1].sum())(W)


def test_a_refused_call_moves_nothing() -> None:
    u, v = U.clone(), V.clone()
    with pytest.raises(ValueError, match=r"weights\[1\]"):
        spectral_norm([W, W], [u, V], [v, V])
    torch.testing.assert_close([u, v], [U, V], rtol=0, atol=0)


def test_sequences_of_any_kind() -> None:
    expected, sigma = spectral_norm([W], [U.clone()], [V.clone()])
    actual, sigma_of_tuples = spectral_norm((W,), (U.clone(),), (V.clone(),))
    torch.testing.assert_close([*actual, sigma_of_tuples], [*expected, sigma])


def test_compiles_as_one_graph() -> None:
    weights = [W.clone().requires_grad_(), torch.randn(5, 3, requires_grad=True)]
    pairs = [([U.clone(), torch.ones(5)], [V.clone(), torch.ones(3)]) for _ in range(2)]

    def loss(u: list[Tensor], v: list[Tensor]) -> Tensor:
        scaled, sigma = spectral_norm(weights, u, v, sigma_init=torch.ones(2))
        return torch.stack([x.pow(3).sum() for x in scaled]).sum() + sigma.sum()

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(*pairs[0])
    eager = loss(*pairs[1])
    torch.testing.assert_close(compiled, eager)
    torch.testing.assert_close(torch.autograd.grad(compiled, weights), torch.autograd.grad(eager, weights))
    torch.testing.assert_close(pairs[0], pairs[1])
