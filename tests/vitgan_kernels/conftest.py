"""What the tests of the operators share."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

AsAccurate = Callable[[Tensor, Tensor, Tensor], None]


@pytest.fixture
def assert_as_accurate() -> AsAccurate:
    """Holds a result against the error that plain PyTorch makes in the same dtype, instead of a tolerance by hand."""

    def check(actual: Tensor, plain: Tensor, exact: Tensor) -> None:
        """error(actual) <= 2 * error(plain) + one rounding of the result, both against the exact float64 values."""
        assert exact.dtype == torch.float64
        assert actual.dtype == plain.dtype
        error, allowed = ((result.double() - exact).abs().max() for result in (actual, plain))
        rounding = exact.abs().max() * torch.finfo(actual.dtype).eps / 2
        assert error <= 2 * allowed + rounding, f"largest error {error:.2e}; plain {actual.dtype}: {allowed:.2e}"

    return check
