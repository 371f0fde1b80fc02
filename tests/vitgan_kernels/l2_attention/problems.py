"""Attentions to hold kernels against: random tensors, and what plain PyTorch makes of them to second order."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Problem:
    """Sizes and form of one attention. m = 0 ties q and k; `among` makes the queries the first of the keys."""

    n: int
    m: int
    d: int
    e: int
    metric: str = "sqeuclidean"
    scale: float = 0.3
    leading: tuple[int, ...] = (2, 2)
    among: bool = False

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """q, k, v and cotangents of O and of the gradients, rounded to dtype."""
        sizes = {"q": (self.n, self.d), "k": (self.m, self.d), "v": (self.m or self.n, self.e)}
        sizes |= {"grad": (self.n, self.e)} | {f"{name}2": size for name, size in sizes.items()}
        made = {name: torch.randn(*self.leading, *size, dtype=torch.float64) for name, size in sizes.items()}
        if self.among:
            made["q"] = made["k"][..., : self.n, :].clone()
        if not self.m:
            del made["k"], made["k2"]
        return {name: x.to(dtype).to(DEVICE) for name, x in made.items()}


Attention = Callable[[Tensor, Tensor | None, Tensor, Problem], Tensor]


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
