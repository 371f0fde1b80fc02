"""The compiled implementations, each in turn: values, gradients, repeatability, opcheck, torch.compile.

They are the C++ of the CPU, and the CUDA source compiled for the CPU, with barriers across the grid and without.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitgan_kernels import reference
from vitgan_kernels.spectral_norm import torch_ops

Shape = tuple[int, ...]
Matrices = tuple[list[Tensor], list[Tensor], list[Tensor]]

# one by one, a row, a column, a convolution, longer and wider than a task, a segment and a chunk of the CUDA kernels
SHAPES = [(1, 1), (1, 40), (40, 1), (4, 2, 3, 3), (33, 65), (600, 40), (5, 2100), (70, 200), (257, 4)]

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 70), st.integers(1, 70)),
        st.tuples(st.just(1), st.integers(1, 300)),
        st.tuples(st.integers(1, 300), st.just(1)),
        st.tuples(*[st.integers(1, 5)] * 4),
        st.sampled_from([(63, 65), (520, 3), (3, 2050), (257, 4)]),
    ),
    min_size=1,
    max_size=4,
)
on_any_shapes = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def matrices(shapes: list[Shape], dtype: torch.dtype = torch.float32, *, transposed: bool = False) -> Matrices:
    """transposed: every second matrix lies in memory as its transpose."""
    weights = [torch.randn(shape).to(dtype) for shape in shapes]
    if transposed:
        weights = [w.flatten(1).t().contiguous().t() if i % 2 == 0 else w for i, w in enumerate(weights)]
    u = [torch.nn.functional.normalize(torch.randn(w.shape[0]), dim=0).to(dtype) for w in weights]
    v = [torch.nn.functional.normalize(torch.randn(w[0].numel()), dim=0).to(dtype) for w in weights]
    return weights, u, v


def cloned(given: Matrices, dtype: torch.dtype | None = None) -> Matrices:
    weights, u, v = ([x.to(dtype, copy=True) for x in tensors] for tensors in given)
    return weights, u, v


def call(given: Matrices, goals: Tensor | None = None, n: int = 1, dtype: torch.dtype | None = None) -> list[Tensor]:
    """Everything that a call returns and moves."""
    scaled, sigma, vectors = torch_ops.spectral_norm_(*given, goals, n, 1e-12, dtype)
    together = [x for pair in zip(*given[1:], strict=True) for x in pair]
    torch.testing.assert_close(vectors, torch.cat(together), rtol=0, atol=0)
    return [*scaled, sigma, *given[1], *given[2]]


def by_reference(given: Matrices, goals: Tensor | None = None, n: int = 1) -> list[Tensor]:
    scaled, sigma = reference.spectral_norm(*given, sigma_init=goals, n_iterations=n)
    return [*scaled, sigma, *given[1], *given[2]]


def check_as_accurate(
    actual: list[Tensor], plain: list[Tensor], exact: list[Tensor], terms: int, sizes: list[float] | None = None
) -> None:
    """As `assert_as_accurate`, with room for the rounding of sums of so many terms where PyTorch happens to be exact.

    sizes: those of the terms, where they cancel and the result is smaller.
    """
    for a, p, e, size in zip(actual, plain, exact, sizes or [0.0] * len(exact), strict=True):
        assert a.dtype == p.dtype
        assert a.shape == e.shape
        error, allowed = ((x.double() - e).abs().max() for x in (a, p))
        rounding = 2 * torch.finfo(a.dtype).eps * math.sqrt(terms) * max(e.abs().max().item(), size)
        assert error <= 2 * allowed + rounding, f"largest error {error:.2e}, of plain PyTorch {allowed:.2e}"


def terms_of(shapes: list[Shape]) -> int:
    return max(max(shape[0], math.prod(shape[1:])) for shape in shapes)


@on_any_shapes
@given(shapes=shapes, n=st.integers(0, 3), seed=st.integers(0, 9), transposed=st.booleans(), classic=st.booleans())
def test_is_as_exact_as_the_reference(
    implementation: str, shapes: list[Shape], n: int, seed: int, transposed: bool, classic: bool
) -> None:
    torch.manual_seed(seed)
    given = matrices(shapes, transposed=transposed)
    goals = None if classic else torch.rand(len(shapes)) + 0.5
    exact = by_reference(cloned(given, torch.float64), None if goals is None else goals.double(), n)
    plain = by_reference(cloned(given), goals, n)
    actual = call(cloned(given), goals, n)
    sizes = [weight.norm() for weight in given[0]]
    # sigma and the scaled weights suffer where u and v are still random and sigma is a small difference of large sums
    harm = max(float(size / sigma.abs()) for size, sigma in zip(sizes, exact[len(shapes)], strict=True))
    check_as_accurate(actual, plain, exact, int(terms_of(shapes) * (1 + harm) ** 2))


@pytest.mark.parametrize("n", [0, 2])
def test_shapes_that_cross_every_border(implementation: str, n: int) -> None:
    given = matrices(SHAPES, transposed=True)
    goals = torch.rand(len(SHAPES)) + 0.5
    if n == 0:
        reference.spectral_norm(*given, n_iterations=3)  # so that sigma is no small difference
    actual = call(cloned(given), goals, n)
    plain = by_reference(cloned(given), goals, n)
    exact = by_reference(cloned(given, torch.float64), goals.double(), n)
    check_as_accurate(actual, plain, exact, terms_of(SHAPES))


@pytest.mark.usefixtures("compiled")
def test_float64() -> None:
    given = matrices(SHAPES, torch.float64, transposed=True)
    torch.testing.assert_close(call(cloned(given), None, 2), by_reference(cloned(given), None, 2))


def test_converges_to_the_largest_singular_value(implementation: str) -> None:
    shapes: list[Shape] = [(48, 40), (6, 2, 3, 3), (1, 9), (9, 1)]
    given = matrices(shapes)
    for i, weight in enumerate(given[0]):  # a gap in the spectrum, so that it converges in few iterations
        left, values, right = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        values[0] = 2 * values.max()
        given[0][i] = (left @ values.diag() @ right).view(weight.shape)
    scaled, sigma, _ = torch_ops.spectral_norm_(*given, None, 40, 1e-12, None)
    exact = torch.stack([torch.linalg.svdvals(weight.double().flatten(1))[0] for weight in given[0]])
    torch.testing.assert_close(sigma.double(), exact, rtol=8 * torch.finfo(torch.float32).eps, atol=0)
    for weight in scaled:
        top = torch.linalg.svdvals(weight.double().flatten(1))[0].item()
        assert top == pytest.approx(1, abs=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("transposed", [False, True])
def test_zero_matrices_beside_others(implementation: str, transposed: bool) -> None:
    given = matrices([(33, 20), (8, 8), (1, 5)], transposed=transposed)
    given[0][0].zero_()
    expected = by_reference(cloned(given), None, 2)
    torch.testing.assert_close(call(given, None, 2), expected, equal_nan=True)
    assert expected[0].isnan().all()
    assert not given[1][0].any()
    assert not given[2][0].any()


def test_eps_is_the_smallest_norm_divided_by(implementation: str) -> None:
    given = matrices([(5, 7), (7, 5)], transposed=True)
    given[0][:] = [1e-3 * weight for weight in given[0]]
    theirs = cloned(given)
    _, sigma = reference.spectral_norm(*theirs, eps=10.0)
    ours = torch_ops.spectral_norm_(*given, None, 1, 10.0, None)
    assert given[2][0].norm() < 1e-2, "the case must be one where eps decides"
    torch.testing.assert_close([*given[1], *given[2], ours[1]], [*theirs[1], *theirs[2], sigma])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_in_its_own_matrix(implementation: str, bad: float) -> None:
    given = matrices([(20, 30), (6, 5)])
    given[0][0][3, 4] = bad
    scaled, sigma, _ = torch_ops.spectral_norm_(*given, None, 1, 1e-12, None)
    assert sigma[0].isnan()
    assert given[1][0].isnan().any()
    assert sigma[1].isfinite()
    assert scaled[1].isfinite().all()


def test_norms_of_large_and_of_small_floats(implementation: str) -> None:
    given = matrices([(20, 30), (6, 5)], transposed=True)
    _, expected, _ = torch_ops.spectral_norm_(*cloned(given), None, 3, 1e-12, None)
    for power in (2.0**80, 2.0**-80):
        weights, u, v = cloned(given)
        _, sigma, _ = torch_ops.spectral_norm_([weight * power for weight in weights], u, v, None, 3, 1e-30, None)
        torch.testing.assert_close(sigma / power, expected)


def test_repeats_bit_for_bit_wherever_the_tensors_lie(implementation: str) -> None:
    given = matrices([(130, 77), (40, 5)])
    first = call(cloned(given), None, 2)
    for offset in (1, 3):
        moved = cloned(given)
        for tensors in moved:
            for i, tensor in enumerate(tensors):
                room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
                tensors[i] = room[offset:].view(tensor.shape).copy_(tensor)
        torch.testing.assert_close(call(moved, None, 2), first, rtol=0, atol=0)


def test_a_matrix_has_the_same_result_in_any_company_and_in_one_call_or_two(implementation: str) -> None:
    given = matrices([(70, 50), (3, 400), (9, 9)], transposed=True)
    together = call(cloned(given), None, 2)
    for i in range(3):
        alone = cloned(([given[0][i]], [given[1][i]], [given[2][i]]))
        torch_ops.spectral_norm_(*alone, None, 1, 1e-12, None)
        one_by_one = call(alone)
        torch.testing.assert_close(
            one_by_one,
            [together[i], together[3][i : i + 1], together[4 + i], together[7 + i]],
            rtol=0,
            atol=0,
        )


@pytest.mark.usefixtures("compiled")
def test_threads_change_no_bit() -> None:
    given = matrices([(300, 301), (1, 9), (200, 400), (301, 300), (70, 50)], transposed=True)
    results = []
    for threads in (1, 3, 8):
        torch.set_num_threads(threads)
        try:
            weights, u, v = cloned(given)
            weights = [weight.requires_grad_() for weight in weights]
            outputs = call((weights, u, v), None, 2)
            slopes = torch.autograd.grad(outputs[:5], weights, given[0])
            results.append([*outputs, *slopes])
        finally:
            torch.set_num_threads(1)
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=0)


def test_weights_may_share_storage_and_have_any_strides(implementation: str) -> None:
    storage = torch.randn(12, 12)
    weights = [storage, storage, storage.t(), storage[2:8, ::2], torch.randn(4, 3, 2, 2).mT.contiguous().mT]
    _, u, v = matrices([tuple(weight.shape) for weight in weights])
    expected = by_reference(cloned((weights, u, v)), None, 3)
    torch.testing.assert_close(call((weights, u, v), None, 3), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shared", ["u and v", "u of two", "u and a weight"])
def test_vectors_that_share_memory_are_refused_and_nothing_moves(implementation: str, shared: str) -> None:
    weights, u, v = matrices([(6, 6), (6, 6)])
    match shared:
        case "u and v":
            v[0] = u[0]
        case "u of two":
            u[1] = u[0]
        case _:
            u[0] = weights[1][2]
    before = cloned((weights, u, v))
    with pytest.raises(ValueError, match="share memory; clone one of them"):
        torch_ops.spectral_norm_(weights, u, v, None, 1, 1e-12, None)
    torch.testing.assert_close((weights, u, v), before, rtol=0, atol=0)


def gradients(outputs: list[Tensor], inputs: list[Tensor], towards: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(outputs, inputs, towards))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("with_sigma", [True, False])
def test_gradient_is_as_exact_as_the_reference(implementation: str, n: int, with_sigma: bool) -> None:
    given = matrices(SHAPES, transposed=True)
    reference.spectral_norm(*given, n_iterations=3)
    goals = torch.rand(len(SHAPES)) + 0.5
    towards = [torch.randn_like(weight) for weight in given[0]] + [torch.randn(len(SHAPES))] * with_sigma
    results = []
    for dtype, by in ((torch.float32, "ours"), (torch.float32, "plain"), (torch.float64, "exact")):
        weights, u, v = cloned(given, dtype)
        weights = [weight.requires_grad_() for weight in weights]
        if by == "ours":
            scaled, sigma, vectors = torch_ops.spectral_norm_(weights, u, v, goals, n, 1e-12, None)
            assert not vectors.requires_grad
        else:
            scaled, sigma = reference.spectral_norm(weights, u, v, sigma_init=goals.to(dtype), n_iterations=n)
        outputs = [*scaled, sigma] if with_sigma else scaled
        results.append(gradients(outputs, weights, [x.to(dtype) for x in towards]))
    sizes = [(s / norm * x).abs().max().item() for s, norm, x in zip(goals, sigma.detach(), towards, strict=False)]
    ours, plain, exact = results
    check_as_accurate(ours, plain, exact, terms_of(SHAPES), sizes)


def test_gradients_of_some_and_of_any_strides(implementation: str) -> None:
    given = matrices([(6, 5), (4, 3), (3, 4)], transposed=True)
    for weight, wanted in zip(given[0], (True, False, True), strict=True):
        weight.requires_grad_(wanted)
    results = []
    for ours in (True, False):
        weights, u, v = given[0], [x.clone() for x in given[1]], [x.clone() for x in given[2]]
        if ours:
            scaled, _, _ = torch_ops.spectral_norm_(weights, u, v, None, 1, 1e-12, None)
            assert [x.requires_grad for x in scaled] == [True, False, True]
        else:
            scaled, _ = reference.spectral_norm(weights, u, v)
        # of the first: a gradient of one number, expanded; of the last: none at all
        results.append(torch.autograd.grad(scaled[0].sum(), weights[0], retain_graph=True))
        results[-1] += torch.autograd.grad((scaled[0].t() @ torch.ones(6, 2)).sum() + scaled[1].sum(), weights[0])
    torch.testing.assert_close(results[0], results[1])


def test_a_later_call_does_not_disturb_an_earlier_graph(implementation: str) -> None:
    given = matrices([(6, 5), (4, 3)])
    weights = [weight.requires_grad_() for weight in given[0]]
    scaled, _, _ = torch_ops.spectral_norm_(*given, None, 1, 1e-12, None)
    loss = torch.stack([x.square().sum() for x in scaled]).sum()
    expected = torch.autograd.grad(loss, weights, retain_graph=True)
    torch_ops.spectral_norm_(*given, None, 10, 1e-12, None)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), expected, rtol=0, atol=0)


def test_autograd_sees_that_u_moved(implementation: str) -> None:
    given = matrices([(6, 5)])
    depends_on_u = (given[0][0].clone().requires_grad_().T @ given[1][0]).sum()
    torch_ops.spectral_norm_(*given, None, 1, 1e-12, None)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        depends_on_u.backward()


def test_the_functional_form_moves_nothing_and_returns_the_same(implementation: str) -> None:
    given = matrices([(6, 5), (3, 7)], transposed=True)
    before = cloned(given)
    functional = torch_ops.spectral_norm(*given, None, 2, 1e-12, None)
    torch.testing.assert_close(given, before, rtol=0, atol=0)
    torch.testing.assert_close(functional, torch_ops.spectral_norm_(*given, None, 2, 1e-12, None), rtol=0, atol=0)


def test_inference_mode(implementation: str) -> None:
    given = matrices([(6, 5)])
    expected = call(cloned(given))
    with torch.inference_mode():
        torch.testing.assert_close(call(cloned(given)), expected, rtol=0, atol=0)


@pytest.mark.usefixtures("compiled")
def test_opcheck() -> None:
    given = matrices([(6, 5), (4, 2, 3, 1), (3, 7)], transposed=True)
    weights = [weight.requires_grad_() for weight in given[0]]
    for goals, n in ((None, 1), (torch.ones(3), 0)):
        for operator in (torch_ops.spectral_norm_, torch_ops.spectral_norm):
            torch.library.opcheck(operator, (*given, goals, n, 1e-12, None))
    scaled, sigma, vectors = torch_ops.spectral_norm(*given, None, 1, 1e-12, None)
    constants = [[x.detach() for x in tensors] for tensors in (scaled, weights)]
    sigma = sigma.detach()
    torch.library.opcheck(torch_ops.spectral_norm_backward, (*constants, vectors, sigma, None, sigma))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_as_one_graph(backend: str) -> None:
    given = matrices([(6, 5), (3, 7)], transposed=True)
    weights = [weight.requires_grad_() for weight in given[0]]
    u, v = [x.clone() for x in given[1]], [x.clone() for x in given[2]]

    def loss(u: list[Tensor], v: list[Tensor]) -> Tensor:
        scaled, sigma, _ = torch_ops.spectral_norm_(weights, u, v, None, 1, 1e-12, None)
        return torch.stack([x.pow(3).sum() for x in scaled]).sum() + sigma.sum()

    compiled = torch.compile(loss, backend=backend, fullgraph=True)
    for _ in range(2):
        ours, expected = compiled(u, v), loss(given[1], given[2])
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close([*u, *v], [*given[1], *given[2]])
        torch.testing.assert_close(torch.autograd.grad(ours, weights), torch.autograd.grad(expected, weights))
