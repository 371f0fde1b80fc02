"""The result files: pytest-benchmark's JSON, one row a line, whole at every moment.

benchmarks/results/<name>.json is what `pytest benchmarks/ --benchmark-json=...` writes. Each row's `extra_info` says
what was computed and by whom; "left_out" has the implementations without a time and the reasons.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


class ResultError(ValueError):
    """A file is not a result file; the text says what is wrong and what to do."""


@dataclass(frozen=True)
class Row:
    """One implementation of one case: seconds of a call, and their ratio to the anchor's, as (q1, median, q3)."""

    group: str
    name: str
    suite: str
    role: str
    dtype: str
    headline: bool
    seconds: tuple[float, float, float]
    relative: tuple[float, float, float] | None
    error: float | None
    allowed: float | None
    floor: float | None
    peak_memory: int | None
    backend: str | None


@dataclass(frozen=True)
class Run:
    """A result file."""

    name: str
    machine: dict[str, Any]
    commit: dict[str, Any]
    date: str
    ceilings: dict[str, float]
    rows: list[Row]
    left_out: list[dict[str, str]]


def write(path: Path, output: dict[str, Any]) -> None:
    """Write pytest-benchmark's JSON; an interrupt leaves the file of before or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lists = {key: output[key] for key in ("benchmarks", "left_out")}
    head = json.dumps({key: value for key, value in output.items() if key not in lists}, default=str)
    parts = [head[:-1]]
    for key, rows in lists.items():
        lines = ",\n".join(json.dumps(row, default=str, allow_nan=False) for row in rows)
        parts.append(f'"{key}": [\n{lines}\n]')
    partial = path.with_suffix(".part")
    partial.write_text(",\n".join(parts) + "}\n")
    partial.replace(path)


def load(path: Path) -> Run:
    """Read a file. Raises ResultError where it is none, FileNotFoundError where there is none."""
    try:
        values = json.loads(path.read_text())
        rows = [_row(each) for each in values["benchmarks"]]
        return Run(
            path.stem,
            values["machine_info"],
            values["commit_info"],
            values["datetime"],
            values["ceilings"],
            rows,
            values["left_out"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ResultError(
            f"{path} is not a result file ({type(error).__name__}: {error}): give one that "
            "`pytest benchmarks/ --benchmark-json=FILE` wrote"
        ) from error


def load_all(folder: Path = FOLDER) -> list[Run]:
    """Every run in a folder, GPUs first. Raises ResultError where there is no such folder or nothing in it."""
    if not (paths := sorted(folder.glob("*.json"))):
        missing = "has no result file" if folder.is_dir() else "is no folder"
        raise ResultError(f"{folder} {missing}: run `python -m pytest benchmarks/ --benchmark-json={folder}/NAME.json`")
    return sorted((load(path) for path in paths), key=lambda run: (run.machine["kind"] != "cuda", run.name))


def _row(values: dict[str, Any]) -> Row:
    info, stats = values["extra_info"], values["stats"]
    seconds = stats["q1"], stats["median"], stats["q3"]
    if not 0 < seconds[0] <= seconds[1] <= seconds[2]:
        raise ValueError(f"{values['name']} has quartiles out of order: {seconds}")
    relative = info.get("relative")
    return Row(
        group=values["group"],
        name=info["name"],
        suite=info["suite"],
        role=info["role"],
        dtype=info["dtype"],
        headline=info["headline"],
        seconds=seconds,
        relative=None if relative is None else tuple(relative),
        **{key: info.get(key) for key in ("error", "allowed", "floor", "peak_memory", "backend")},
    )
