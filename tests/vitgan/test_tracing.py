import json
from pathlib import Path

from tests.vitgan.helpers import trainer
from vitgan.tracing import STEPS, TRACE


def test_a_profile_says_where_the_time_goes_and_leaves_a_trace(tmp_path: Path) -> None:
    job, out = trainer(tmp_path, profile=True)
    assert job.train()
    said = out.getvalue()
    for part in ("discriminator", "generator", "backward", "optimiser", "data", "average", "aten::"):
        assert part in said
    assert str(tmp_path / TRACE) in said
    names = [event.get("name") for event in json.loads((tmp_path / TRACE).read_text())["traceEvents"]]
    assert names.count("vitgan: discriminator") == STEPS


def test_a_run_too_short_to_be_traced_ends_well(tmp_path: Path) -> None:
    job, _ = trainer(tmp_path, profile=True, images=8)
    assert job.train()
