import json
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.vitgan.helpers import trainer
from vitgan.training.tracing import STEPS, TRACE


def test_a_profile_says_where_the_time_goes_and_leaves_a_trace(tmp_path: Path) -> None:
    job, out = trainer(tmp_path, profile=True)
    assert job.train()
    said = out.getvalue()
    for part in ("discriminator", "generator", "backward", "optimiser", "data", "average", "aten::"):
        assert part in said
    assert str(tmp_path / TRACE) in said
    names = [event.get("name") for event in json.loads((tmp_path / TRACE).read_text())["traceEvents"]]
    assert names.count("vitgan: discriminator") == STEPS
    assert "no profile" not in said


def test_a_run_that_breaks_off_stops_the_profiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, out = trainer(tmp_path, profile=True)

    def broken() -> None:
        raise ArithmeticError

    assert job.report.tracer is not None
    stop = Mock(wraps=job.report.tracer.profiler.stop)
    monkeypatch.setattr(job.report.tracer.profiler, "stop", stop)
    monkeypatch.setattr(job.report, "log", broken)
    with pytest.raises(ArithmeticError):
        job.train()
    assert "no profile: the run ended after" in out.getvalue()
    stop.assert_called_once()


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_run_too_short_to_be_traced_says_so(steps: int, tmp_path: Path) -> None:
    job, out = trainer(tmp_path, profile=True, images=4 * steps)
    assert job.train()
    assert (
        f"no profile: the run ended after {steps} steps, and the steps traced are those from 4 to 6" in out.getvalue()
    )
    assert not (tmp_path / TRACE).exists()
