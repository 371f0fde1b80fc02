"""The Triton kernels of L2 attention and its derivatives against float64: on a GPU, or interpreted without one."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.vitgan_kernels.accuracy import assert_as_accurate
from tests.vitgan_kernels.l2_attention.problems import DEVICE, Problem, orders, plain
from vitgan_kernels import explain, l2_attention, triton_support
from vitgan_kernels.l2_attention import tiles

pytestmark = pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")


def fused(q: Tensor, k: Tensor | None, v: Tensor, problem: Problem) -> Tensor:
    return l2_attention(q, k, v, scale=problem.scale, metric=problem.metric, backend="triton")  # type: ignore[arg-type]


def held(problem: Problem, dtype: torch.dtype, highest: int = 2) -> None:
    """Hold every result against the error that plain PyTorch makes in the same dtype."""
    tensors = problem.tensors(dtype)
    actual, usual = (orders(attention, tensors, problem, highest) for attention in (fused, plain))
    exact = orders(plain, {name: x.double() for name, x in tensors.items()}, problem, highest)
    assert {x.dtype for x in actual.values()} == {dtype}
    assert list(actual) == list(exact)
    assert_as_accurate(*(list(results.values()) for results in (actual, usual, exact)))


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiled path for every length."""
    monkeypatch.setattr(tiles, "LONGEST_SHORT", 0)


PROBLEMS = [
    Problem(37, 23, 8, 3),
    Problem(17, 0, 20, 16),
    Problem(65, 0, 16, 16, leading=(1, 2)),
    Problem(33, 49, 24, 40, scale=-0.2, leading=(2, 1)),
    Problem(3, 80, 33, 8),
    Problem(1, 65, 16, 16, scale=0.03, leading=(1, 8), among=True),
]


@pytest.mark.parametrize(
    ("dtype", "metric"),
    [(torch.bfloat16, "sqeuclidean"), (torch.float16, "sqeuclidean"), (torch.bfloat16, "euclidean")],
    ids=str,
)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_short_sequences(problem: Problem, metric: str, dtype: torch.dtype) -> None:
    held(replace(problem, metric=metric), dtype)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize(
    ("dtype", "metric"),
    [(torch.bfloat16, "sqeuclidean"), (torch.float32, "sqeuclidean"), (torch.float32, "euclidean")],
    ids=str,
)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_tiles(problem: Problem, metric: str, dtype: torch.dtype) -> None:
    held(replace(problem, metric=metric), dtype)


@settings(max_examples=10)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(2, 20), st.integers(1, 20)),
    metric=st.sampled_from(["sqeuclidean", "euclidean"]),
    tied=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_ragged_sizes(sizes: tuple[int, int, int, int], metric: str, tied: bool, seed: int) -> None:
    """A few numbers can come out of plain PyTorch exact, so that here an error of some roundings is allowed too.

    Not d = 1, where the second derivative of a distance is 0 by terms that cancel, which the kernels round.
    """
    torch.manual_seed(seed)
    n, m, d, e = sizes
    problem = Problem(n, 0 if tied else m, d, e, metric, scale=0.1, leading=(1, 2))
    tensors = problem.tensors(torch.float32)
    actual, usual = (orders(attention, tensors, problem, 2) for attention in (fused, plain))
    exact = orders(plain, {name: x.double() for name, x in tensors.items()}, problem, 2)
    for name, value in exact.items():
        error, allowed = ((results[name].double() - value).abs().max() for results in (actual, usual))
        assert error <= 4 * allowed + 1e-5 * (1 + value.abs().max()), f"{name}: {error:.1e}, plain {allowed:.1e}"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_wide_heads(tied: bool, dtype: torch.dtype) -> None:
    """Wider than registers hold, so that features are read in parts, the last of which is not a whole one."""
    held(Problem(19, 0 if tied else 21, 100, 200, scale=0.02, leading=(1, 1)), dtype)


@pytest.mark.parametrize("long", [0, 128], ids=["tiled", "short"])
@pytest.mark.parametrize("tied", [True, False])
def test_one_key_leaves_nothing_to_choose(tied: bool, long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LONGEST_SHORT", long)
    problem = Problem(1, 0 if tied else 1, 4, 3)
    tensors = problem.tensors(torch.bfloat16)
    results = orders(fused, tensors, problem, 2)
    torch.testing.assert_close(results["out"], tensors["v"])
    torch.testing.assert_close(results["dv"], tensors["grad"])
    torch.testing.assert_close(results["dgrad2"], tensors["v2"])
    for name in ("dq", "dq2", "dv2"):
        torch.testing.assert_close(results[name], torch.zeros_like(results[name]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("long", [0, 128], ids=["tiled", "short"])
def test_strides_and_broadcasting_change_no_bit(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LONGEST_SHORT", long)
    problem = Problem(12, 0, 8, 8)
    tensors = problem.tensors(torch.bfloat16)
    expected = orders(fused, tensors, problem, 2)
    heads_last = {name: x.transpose(1, 2).contiguous().transpose(1, 2) for name, x in tensors.items()}
    features_first = {name: x.mT.contiguous().mT for name, x in tensors.items()}
    for strided in (heads_last, features_first):
        torch.testing.assert_close(orders(fused, strided, problem, 2), expected, rtol=0, atol=0)
    assert fused(heads_last["q"], None, heads_last["v"], problem).transpose(1, 2).is_contiguous(), (
        "heads merge for free"
    )
    q, v = tensors["q"][:, :1], tensors["v"][0]
    torch.testing.assert_close(
        fused(q, None, v, problem), fused(q.expand(2, 2, 12, 8).clone(), None, v.expand(2, 2, 12, 8).clone(), problem)
    )


@pytest.mark.parametrize("long", [0, 128], ids=["tiled", "short"])
def test_repeats_bit_for_bit(long: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LONGEST_SHORT", long)
    problem = Problem(33, 0, 8, 8, leading=(1, 2))
    tensors = problem.tensors(torch.float16)
    torch.testing.assert_close(orders(fused, tensors, problem, 2), orders(fused, tensors, problem, 2), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_duplicate_tokens(dtype: torch.dtype) -> None:
    """Distances of exactly zero off the diagonal too, where the distance itself has no derivative and 0 is taken."""
    problem = Problem(6, 0, 8, 4, "euclidean")
    tensors = problem.tensors(dtype)
    tensors["q"] = tensors["q"][..., [0, 1, 1, 2, 1, 0], :]
    results = orders(fused, tensors, problem, 2)
    exact = orders(plain, {name: x.double() for name, x in tensors.items()}, problem, 2)
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for name, value in exact.items():
        torch.testing.assert_close(results[name].double(), value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("m", [0, 11])
def test_float32_tokens_may_lie_far_from_the_origin(m: int) -> None:
    problem = Problem(9, m, 8, 4)
    tensors = problem.tensors(torch.float32)
    for name in ("q", "k") if m else ("q",):
        tensors[name] += 1000
    exact = orders(plain, {name: x.double() for name, x in tensors.items()}, problem, 2)
    for name, value in orders(fused, tensors, problem, 2).items():
        torch.testing.assert_close(value.double(), exact[name], rtol=1e-4, atol=1e-4)


def test_explain_tells_the_path() -> None:
    def explained(n: int, dtype: torch.dtype, width: int = 64) -> str:
        x = torch.zeros(1, 1, n, width, dtype=dtype, device=DEVICE)
        return explain("l2_attention", x, None, x)

    assert "short path, one program a (batch, head): 65 keys held as 64 + 16 (all orders)" in explained(65, torch.half)
    assert "(order 0 and 1, tiled beyond)" in explained(128, torch.half)
    assert "tiled path: more than 128 tokens" in explained(129, torch.half)
    assert "tiled path: float32, or too wide" in explained(65, torch.float32)
    assert "d and e go to 256, and here one is larger" in explained(4, torch.half, 257)
