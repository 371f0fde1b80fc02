"""Recipes of one's own."""

import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgan_kernels import swap, unswap
from vitgan_kernels.swap import ModuleRecipe, register, unregister
from vitgan_kernels.swap.recipes import __doc__ as documentation
from vitgan_kernels.swap.recipes import registered


class Squared(nn.Module):
    def __init__(self, power: int = 2) -> None:
        super().__init__()
        self.power, self.weight = power, nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight) ** self.power


class FusedSquared(ModuleRecipe):
    looks_for = "squares"
    runs = "nothing"

    def recognises(self, module: nn.Module) -> bool:
        return hasattr(module, "power")

    def inputs(self, module: nn.Module) -> list[tuple[int, ...]]:
        return [(2, 3)]

    @staticmethod
    def forward(module: Any, x: Tensor) -> Tensor:
        product = x * module.weight
        return product * product


@pytest.fixture
def recipe() -> Iterator[FusedSquared]:
    made = FusedSquared()
    register(made)
    yield made
    if made in registered():
        unregister(made)


def test_the_documented_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert documentation is not None
    example = "\n".join(line for line in documentation.splitlines() if line.startswith("    ") or not line)
    before = registered()
    try:
        exec(textwrap.dedent(example), {"__name__": "example"})
    finally:
        for added in [one for one in registered() if one not in before]:
            unregister(added)
    printed = capsys.readouterr().out
    assert "swap of Sequential: 1 of 1 swapped" in printed
    assert "vitgan_kernels.l2_attention" in printed


def test_a_registered_recipe_is_tried_first_and_forgotten_again(recipe: FusedSquared) -> None:
    assert registered()[0] is recipe
    model = nn.Sequential(Squared(), Squared(power=3))
    rows = swap(model).rows
    assert [row.swapped for row in rows] == [True, False]
    assert "disagrees" in rows[1].now
    unswap(model)
    assert type(model[0]) is Squared
    unregister(recipe)
    assert not swap(model).rows


def test_what_is_no_recipe_is_refused(recipe: FusedSquared) -> None:
    with pytest.raises(ValueError, match="'squares' is registered already"):
        register(recipe)
    with pytest.raises(TypeError, match=r"got a class: give an object, FusedSquared\(\)"):
        register(FusedSquared)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got int without looks_for, find"):
        register(3)  # type: ignore[arg-type]
    unregister(recipe)
    with pytest.raises(ValueError, match="is not registered"):
        unregister(recipe)
