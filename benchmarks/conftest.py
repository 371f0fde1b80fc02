"""pytest benchmarks/ [-m headline] [--benchmark-json=benchmarks/results/NAME.json]

On a CPU, OMP_NUM_THREADS=1 gives steadier times where other work has a core. The JSON is written after every case, so
that Ctrl-C loses nothing.
"""

import gc
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import environment, result_files
from benchmarks.cases import Case
from benchmarks.measure import Implementation, Row, measure

DEVICE = environment.pick_device()
SECONDS = 0.5  # for each implementation
LEFT_OUT = pytest.StashKey[list[dict[str, str]]]()
CEILINGS = pytest.StashKey[dict[str, float]]()
INFO = pytest.StashKey[tuple[dict[str, Any], dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", "default")  # compilers warn of much that is not ours
    config.stash[LEFT_OUT] = []
    config.stash[INFO] = environment.machine_info(DEVICE), environment.commit_info()  # of when the run began


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What compiles for long comes last, the rows of the README first."""
    items.sort(key=lambda item: ("compiled" in item.name, item.get_closest_marker("headline") is None))


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    return dict(config.stash[INFO][0])


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    return dict(config.stash[INFO][1])


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    output_json["ceilings"] = config.stash.get(CEILINGS, {})
    output_json["left_out"] = config.stash[LEFT_OUT]
    for row in output_json["benchmarks"]:
        row["stats"].pop("data", None)
        del row["options"], row["params"], row["param"]  # of pytest-benchmark's own clock


@pytest.fixture(scope="session")
def ceilings(request: pytest.FixtureRequest) -> dict[str, float]:
    request.config.stash[CEILINGS] = environment.ceilings(DEVICE)
    return request.config.stash[CEILINGS]


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any, ceilings: dict[str, float]) -> Callable[..., None]:
    """record(rows, suite, case, dtype, measures): gives rows to pytest-benchmark; fails where ours failed."""
    session = request.config._benchmarksession
    benchmark._mode = "turns"  # or it warns that it was not used
    session.save_json = partial(result_files.write, Path(session.json)) if session.json else None

    def give(rows: Sequence[Row], suite: str, case: str, dtype: str, measures: str, floor: float | None = None) -> None:
        words = measures.replace("_backward", " + backward").replace("_", " ")
        benchmark.group = ", ".join(part for part in (suite, case, dtype, words) if part)
        for row in rows:
            if row.reason:
                request.config.stash[LEFT_OUT].append({"group": benchmark.group, "name": row.name, "why": row.reason})
                continue
            benchmark.name, benchmark.fullname = row.name, f"{request.node.nodeid}: {row.name}"
            known = {"name": row.name, "suite": suite, "role": row.role, "dtype": dtype, "floor": floor}
            headline = request.node.get_closest_marker("headline") is not None
            benchmark.extra_info = known | {"headline": headline} | row.info
            stats = benchmark._make_stats(1)
            for seconds in row.seconds:
                stats.update(seconds)
        if session.json:
            session.handle_saving()
        if failed := [f"{row.name}: {row.reason}" for row in rows if row.role == "ours" and row.failed]:
            pytest.fail("\n".join(failed))

    return give


@pytest.fixture
def compare(record: Callable[..., None], ceilings: dict[str, float]) -> Callable[..., None]:
    """compare(case, implementations): checks all, times those that match in turns, and records them."""
    torch._dynamo.reset()
    gc.collect()

    def run(case: Case, implementations: Sequence[Implementation]) -> None:
        dtype = str(case.dtype).removeprefix("torch.")
        floor = None
        if case.bytes is not None and case.flops is not None:
            floor = max(case.bytes / ceilings["copy"], case.flops / ceilings[dtype])
        exact = case.exact_results()
        rows = measure(implementations, exact, case.allowed(exact), DEVICE, SECONDS)
        record(rows, case.suite, case.name, dtype, case.measures, floor)

    return run
