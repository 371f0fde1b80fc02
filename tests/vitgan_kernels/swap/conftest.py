"""No test of `swap` depends on how fast anything is: by its clock, whatever is timed takes one second."""

import itertools

import pytest

from vitgan_kernels.swap import compare


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "clock", itertools.count().__next__)
