"""What the tests of spectral normalisation share."""

import os
from typing import Any

import pytest

from vitgan_kernels.spectral_norm import native, op


@pytest.fixture
def compiled() -> None:
    """Skips where the extension is not built, unless it has to be."""
    ok, why = native.available()
    if not ok:
        assert os.environ.get("VITGAN_REQUIRE_NATIVE") != "1", why
        pytest.skip(why)


@pytest.fixture
def backend_that_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends of the calls of spectral_norm, as they are made."""
    chosen: list[str] = []
    select = op.OPERATOR.select

    def watched(*args: Any, **kwargs: Any) -> Any:
        implementation = select(*args, **kwargs)
        chosen.append(implementation.backend)
        return implementation

    monkeypatch.setattr(op.OPERATOR, "select", watched)
    return chosen
