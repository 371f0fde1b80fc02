"""The rule that kernels are held to: about as accurate as plain PyTorch in the same dtype, both against float64.

The errors of two equally accurate programs differ by chance, and by the CPU that plain PyTorch runs on. So the rule
judges norms over all results of a call, and leaves the largest error, one draw from a tail, more room than the norms.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NORM, LARGEST = 2.0, 8.0


def assert_as_accurate(
    actual: Tensor | Sequence[Tensor], plain: Tensor | Sequence[Tensor], exact: Tensor | Sequence[Tensor]
) -> None:
    """Raise AssertionError where results are wrong by more than the arithmetic of plain PyTorch explains.

    The unit of a result is plain PyTorch's error, and one rounding of the result, which plain PyTorch can escape by
    chance. The root mean square error is at most 2 units, taken over all results as the mean of squares; no single
    element of any result is wrong by more than 8.

    Args:
        actual, plain: one result or several, of the same dtypes.
        exact: the same in float64.
    """
    if isinstance(actual, Tensor):
        actual, plain, exact = [actual], [plain], [exact]  # type: ignore[list-item]
    units = [_units(*result) for result in zip(actual, plain, exact, strict=True)]
    norm = (sum(mean**2 for mean, _ in units) / len(units)) ** 0.5
    told = "; ".join(f"result {index}: {mean:.2f}, {most:.2f}" for index, (mean, most) in enumerate(units))
    assert norm <= NORM, f"errors are {norm:.2f} times plain PyTorch's, at most {NORM} (norm, largest of {told})"
    assert all(most <= LARGEST for _, most in units), f"an error is above {LARGEST} times plain PyTorch's ({told})"


def _units(actual: Tensor, plain: Tensor, exact: Tensor) -> tuple[float, float]:
    """The root mean square error and the largest of a result, each by its unit."""
    assert exact.dtype == torch.float64
    assert actual.dtype == plain.dtype
    assert actual.shape == plain.shape == exact.shape
    rounding = torch.finfo(actual.dtype).eps / 2
    units = []
    for size in (lambda x: x.square().mean().sqrt(), lambda x: x.abs().max()):
        unit = size(plain.double() - exact) + rounding * size(exact)
        error = size(actual.double() - exact)
        units.append(0.0 if error == 0 else (error / unit).item())
    return units[0], units[1]
