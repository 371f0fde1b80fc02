"""The relative rule lets every program of the same accuracy pass, whatever the draw, and no other."""

import pytest
import torch
from torch import Tensor

from tests.vitgan_kernels.accuracy import assert_as_accurate

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def product(x: Tensor, y: Tensor, order: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ y, summed one term after the other in an order and a dtype of its own, as another CPU would."""
    total = torch.zeros(x.shape[0], y.shape[1], dtype=dtype)
    for index in order:
        total = total + x[:, index, None].to(dtype) * y[None, index].to(dtype)
    return total


def draw(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Two programs of equal accuracy and the exact values, of two results, the second tiny."""
    x, y = torch.randn(6, 17).to(dtype), torch.randn(17, 9).to(dtype)
    some = x[:1], y[:, :3]
    ours, theirs = ([product(*factors, torch.randperm(17), dtype) for factors in ((x, y), some)] for _ in range(2))
    return ours, theirs, [(a.double() @ b.double()) for a, b in ((x, y), some)]


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_equal_accuracy_passes_on_every_draw(dtype: torch.dtype) -> None:
    for seed in range(100):
        torch.manual_seed(seed)
        assert_as_accurate(*draw(dtype))


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32], ids=str)
def test_a_coarser_program_fails_on_every_draw(dtype: torch.dtype) -> None:
    """Results rounded to four bits fewer."""
    for seed in range(30):
        torch.manual_seed(seed)
        _, theirs, exact = draw(dtype)
        coarse = [value * (1 + 16 * torch.finfo(dtype).eps * (torch.rand_like(value) - 0.5)) for value in exact]
        with pytest.raises(AssertionError, match="times plain PyTorch's, at most"):
            assert_as_accurate([value.to(dtype) for value in coarse], theirs, exact)


@pytest.mark.parametrize("wrong", [1.05, 0.0, float("nan")])
def test_one_wrong_element_fails(wrong: float) -> None:
    ours, theirs, exact = draw(FP32)
    ours[0][3, 4] *= wrong
    with pytest.raises(AssertionError, match="times plain PyTorch's"):
        assert_as_accurate(ours, theirs, exact)
    assert_as_accurate(theirs[1], theirs[1], exact[1])
