"""What the tests of the operators share."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.vitgan_kernels import accuracy

AsAccurate = Callable[[Any, Any, Any], None]


@pytest.fixture
def assert_as_accurate() -> AsAccurate:
    """Holds results against the errors that plain PyTorch makes in the same dtype, instead of a tolerance by hand."""
    return accuracy.assert_as_accurate
