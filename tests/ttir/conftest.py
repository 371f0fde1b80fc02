"""Executes on the CPU what Triton's front end compiled of the kernels, by PyPI's `ttsem`.

    TRITON_INTERPRET=0 python -m pytest tests/ttir

Triton's interpreter runs the Python of a kernel; this runs the IR that a GPU's code is made of, real bfloat16 products
included. An access outside a tensor, two programs that race for an element and an undefined operation raise at the
kernel's line. What nothing wrote is NaN.

A process of its own: the interpreter's mode is fixed when kernels are imported, and `ttsem` takes the driver's place.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from vitgan_kernels import triton_support


def _obstacle() -> str | None:
    if torch.cuda.is_available():
        return "a GPU is there, which runs the kernels themselves: pytest tests/vitgan_kernels"
    if not triton_support.INSTALLED:
        return "Triton is not installed (pip install 'vitgan[kernels]')"
    if triton_support.INTERPRETED:
        return "Triton's interpreter is on for the whole process: TRITON_INTERPRET=0 python -m pytest tests/ttir"
    if find_spec("ttsem") is None:
        return (
            "ttsem is not installed: pip install 'vitgan[ttir]' on Python 3.12 and newer, else "
            "pip install --no-deps --ignore-requires-python ttsem==0.1.0"
        )
    return None


@pytest.fixture(autouse=True, scope="package")
def session() -> Iterator[Any]:
    """Every launch is executed and checked."""
    why_not = _obstacle()
    if why_not is not None:
        pytest.skip(why_not)
    from ttsem import _fakedriver, sanitize

    with sanitize.session(cuda_is_cpu=False) as session:
        yield session
    _fakedriver.unstub_torch_cuda()
    assert session.races_unchecked == 0
