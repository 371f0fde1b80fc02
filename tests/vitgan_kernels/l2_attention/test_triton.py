"""The Triton kernels of L2 attention and its derivatives against float64: on a GPU, or interpreted without one."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from vitgan_kernels import l2_attention, triton_support
from vitgan_kernels.l2_attention import tiles

pytestmark = pytest.mark.skipif(not triton_support.INSTALLED, reason="Triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = [torch.float16, torch.bfloat16]
DTYPES = [*HALVES, torch.float32]


@dataclass(frozen=True)
class Problem:
    """Sizes and form of one attention. m = 0 ties q and k."""

    n: int
    m: int
    d: int
    e: int
    metric: str = "sqeuclidean"
    scale: float = 0.3
    leading: tuple[int, ...] = (2, 2)

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """q, k, v and cotangents of O and of the gradients, rounded to dtype."""
        sizes = {"q": (self.n, self.d), "k": (self.m, self.d), "v": (self.m or self.n, self.e)}
        sizes |= {"grad": (self.n, self.e)} | {f"{name}2": size for name, size in sizes.items()}
        made = {name: torch.randn(*self.leading, *size, dtype=torch.float64) for name, size in sizes.items()}
        if not self.m:
            del made["k"], made["k2"]
        return {name: x.to(dtype).to(DEVICE) for name, x in made.items()}


Attention = Callable[[Tensor, Tensor | None, Tensor, Problem], Tensor]


def fused(q: Tensor, k: Tensor | None, v: Tensor, problem: Problem) -> Tensor:
    return l2_attention(q, k, v, scale=problem.scale, metric=problem.metric, backend="triton")  # type: ignore[arg-type]


def plain(q: Tensor, k: Tensor | None, v: Tensor, problem: Problem) -> Tensor:
    """What one writes without thought for precision: every step in the dtype of the inputs."""
    k = q if k is None else k
    if problem.metric == "euclidean":
        squares = (q.unsqueeze(-2) - k.unsqueeze(-3)).square().sum(-1)
        scores = torch.where(squares > 0, torch.where(squares > 0, squares, 1).sqrt(), 0)
    else:
        scores = k.square().sum(-1).unsqueeze(-2) - 2 * q @ k.mT
    return torch.softmax(-problem.scale * scores, dim=-1) @ v


def orders(attention: Attention, tensors: dict[str, Tensor], problem: Problem, highest: int) -> dict[str, Tensor]:
    """O, the gradients, and the gradients of their inner product with cotangents, by name."""
    leaves = {name: tensors[name].detach().requires_grad_() for name in ("q", "k", "v", "grad") if name in tensors}
    out = attention(leaves["q"], leaves.get("k"), leaves["v"], problem)
    results = {"out": out}
    if highest > 0:
        inputs = [leaves[name] for name in ("q", "k", "v") if name in leaves]
        first = torch.autograd.grad(out, inputs, leaves["grad"], create_graph=highest > 1)
        results |= dict(zip([f"d{name}" for name in ("q", "k", "v") if name in leaves], first, strict=True))
    if highest > 1:
        cotangents = [tensors[f"{name}2"] for name in ("q", "k", "v") if name in leaves]
        second = torch.autograd.grad(first, list(leaves.values()), cotangents)
        results |= dict(zip([f"d{name}2" for name in leaves], second, strict=True))
    return {name: x.detach() for name, x in results.items()}


def held(problem: Problem, dtype: torch.dtype, highest: int = 2) -> None:
    """Hold every result against the error that plain PyTorch makes in the same dtype.

    The errors' root mean square may be twice plain PyTorch's. The largest error is one draw from a tail, which on
    tensors of this size differs by more than that between two equally accurate programs: it may be three times.
    """
    tensors = problem.tensors(dtype)
    actual, usual = (orders(attention, tensors, problem, highest) for attention in (fused, plain))
    exact = orders(plain, {name: x.double() for name, x in tensors.items()}, problem, highest)
    rounding = torch.finfo(dtype).eps / 2
    for name, value in exact.items():
        assert actual[name].dtype == usual[name].dtype == dtype
        assert actual[name].shape == value.shape
        error, allowed = (results[name].double() - value for results in (actual, usual))
        for kind, times, size in (("mean", 2, root_mean_square), ("largest", 3, lambda x: x.abs().max())):
            bound = times * size(allowed) + rounding * size(value)
            assert size(error) <= bound, (
                f"{kind} error of {name}: {size(error):.2e}, plain {size(allowed):.2e}, {problem}"
            )


def root_mean_square(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiled path for every length."""
    monkeypatch.setattr(tiles, "LONGEST_SHORT", 0)


PROBLEMS = [
    Problem(37, 23, 8, 3),
    Problem(17, 0, 20, 16),
    Problem(65, 0, 16, 16),
    Problem(33, 49, 24, 40, scale=-0.2),
    Problem(3, 80, 33, 8),
]


@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_short_sequences(problem: Problem, metric: str, dtype: torch.dtype) -> None:
    held(replace(problem, metric=metric), dtype)


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("metric", ["sqeuclidean", "euclidean"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_tiles(problem: Problem, metric: str, dtype: torch.dtype) -> None:
    held(replace(problem, metric=metric), dtype)
