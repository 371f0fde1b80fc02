"""Rows and runs for the tests."""

from dataclasses import replace
from typing import Any

from benchmarks.records import Ceilings, Row, Run, Times


def row(**changes: Any) -> Row:
    """A row of this project's, of 2 ms with little noise, with changes."""
    plain = Row(
        suite="l2_attention",
        case="n65",
        shape={"tokens": 65},
        dtype="float32",
        measures="forward",
        who="vitgan_kernels",
        ours=True,
        matched=True,
        error=1e-7,
        allowed=1e-6,
        milliseconds=Times(1.98, 2.0, 2.02),
        repeat_milliseconds=Times(1.99, 2.01, 2.03),
        bytes=1e6,
        flops=1e7,
        launches=None,
        floor_milliseconds=0.5,
        peak_memory_bytes=1000,
        why=None,
    )
    return replace(plain, **changes)


def run(*rows: Row, **changes: Any) -> Run:
    """A run on a CPU, with changes."""
    plain = Run(
        device="A CPU, 2 threads",
        kind="cpu",
        driver=None,
        cpu="A CPU",
        threads=2,
        python="3.11.0",
        torch="2.13.0",
        triton=None,
        cuda=None,
        commit="0" * 40,
        dirty=False,
        date="2026-01-02T03:04:05+00:00",
        size="small",
        ceilings=Ceilings(1e10, {"float32": 1e11}),
        rows=list(rows),
    )
    return replace(plain, **changes)
