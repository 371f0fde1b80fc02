"""The kernels' sine and cosine against float64, over their range and at its edges."""

import math

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from vitgan_kernels.modulated_siren.sine import cosine, sine  # noqa: E402 triton must be there

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 2**16
# NumPy's, in which the interpreter computes
OVERFLOWS = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@triton.jit
def kernel(Z, SINE, COSINE, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def, name-defined]
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < count
    z = tl.load(Z + offsets, mask=inside, other=0.0)
    tl.store(SINE + offsets, sine(z), mask=inside)
    tl.store(COSINE + offsets, cosine(z), mask=inside)


def both(z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.to(DEVICE)
    values = torch.empty_like(z), torch.empty_like(z)
    kernel[(triton.cdiv(z.numel(), BLOCK),)](z, *values, z.numel(), BLOCK)
    return values[0].cpu(), values[1].cpu()


def largest_error(z: Tensor) -> float:
    sines, cosines = both(z)
    exact = z.double()
    return max((sines - exact.sin()).abs().max().item(), (cosines - exact.cos()).abs().max().item())


@pytest.mark.parametrize(("limit", "error"), [(1.6, 2e-7), (30, 2e-7), (1000, 2e-7), (1e4, 2e-7), (1e5, 1e-6)])
def test_error_over_the_range(limit: float, error: float) -> None:
    assert largest_error((torch.rand(2**20) * 2 - 1) * limit) < error


def test_multiples_of_half_pi_and_their_neighbours() -> None:
    """Where the remainder is smallest and the reduction cancels most, and where the multiple changes."""
    exact = torch.arange(-1280, 1281, dtype=torch.float64) * (math.pi / 4)
    nearest = exact.float()
    up, down = (torch.nextafter(nearest, torch.tensor(sign * math.inf)) for sign in (1.0, -1.0))
    assert largest_error(torch.cat([nearest, up, down])) < 2e-7


def test_edges() -> None:
    smallest = torch.finfo(torch.float32).tiny
    z = torch.tensor([0.0, -0.0, smallest, -smallest, 1e-20, -1e-7, 1000.0, -1000.0])
    sines, cosines = both(z)
    torch.testing.assert_close(sines[:6], z[:6], rtol=0, atol=0)
    assert largest_error(z) < 2e-7
    assert (cosines[:6] == 1).all()


@OVERFLOWS
@pytest.mark.parametrize("limit", [1e6, 1e8, 1e20, 3e38])
def test_far_beyond_the_range_values_stay_bounded(limit: float) -> None:
    for values in both((torch.rand(2**16) * 2 - 1) * limit):
        assert values.abs().max() <= 1


@OVERFLOWS
def test_what_is_not_finite_is_nan() -> None:
    sines, cosines = both(torch.tensor([math.inf, -math.inf, math.nan]))
    assert sines.isnan().all()
    assert cosines.isnan().all()
