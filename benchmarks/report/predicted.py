"""The part of the report that is not measured: predictions, and beside them a measurement where there is one."""

from collections.abc import Sequence
from html import escape

from benchmarks.predictions import figures, model
from benchmarks.predictions.devices import GPUS, Gpu
from benchmarks.predictions.figures import CaseFigures
from benchmarks.records import Run
from benchmarks.report.tables import MEASURES, median
from benchmarks.report.units import milliseconds


def section(runs: Sequence[Run]) -> str:
    """HTML: assumptions, and a table for each GPU. A note instead where the figures are of other kernels."""
    head = f"<section><h2>Kernels: {model.LABEL}</h2>"
    if why := figures.why_stale():
        return f"{head}<p>{escape(why)}</p></section>"
    cases = figures.load()
    about = "".join(f"<p>{escape(part)}</p>" for part in (model.__doc__ or "").split("\n\n")[:1])
    model_text = escape((model.__doc__ or "").split("\n\n", 1)[1])
    tables = "".join(_table(gpu, [case for case in cases if case.target == gpu.target], runs) for gpu in GPUS)
    return f"{head}{about}<details><summary>The model</summary><pre>{model_text}</pre></details>{tables}</section>"


def _table(gpu: Gpu, cases: Sequence[CaseFigures], runs: Sequence[Run]) -> str:
    columns = ("", model.LABEL, "measured", "bound by", "occupancy", "registers", "shared memory")
    body = []
    for case in cases:
        shape = ", ".join(f"{name} {size:,}" for name, size in case.shape.items())
        name = f"{case.suite}, {MEASURES[case.measures]}, {case.dtype}"
        cells = [
            f"{name}<br><span class=soft>{shape}</span>",
            milliseconds(1e3 * model.total(case, gpu)),
            _measured(case, gpu, runs),
        ]
        body.append(f"<tr class=best>{''.join(f'<td>{cell}</td>' for cell in cells)}<td colspan=4></td></tr>")
        for kernel in case.kernels:
            one = model.predicted(kernel, gpu)
            times = "" if kernel.launches == 1 else f", {kernel.launches} times"
            cells = [
                f"&emsp;{escape(kernel.kernel)}{times}",
                milliseconds(1e3 * one.seconds),
                "",
                one.bound,
                f"{one.occupancy:.0%}",
                str(kernel.registers),
                f"{kernel.shared:,} B",
            ]
            body.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in columns)
    return (
        f"<h3>{escape(gpu.name)} ({model.LABEL})</h3><p class=soft>Ceilings: {escape(gpu.source)}.</p>"
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _measured(case: CaseFigures, gpu: Gpu, runs: Sequence[Run]) -> str:
    """The fastest time of ours in the same case on that GPU."""
    found = [
        time
        for run in runs
        if gpu.name in run.device
        for row in run.rows
        if row.ours and all(getattr(row, key) == getattr(case, key) for key in ("suite", "shape", "dtype", "measures"))
        and (time := median(row)) is not None
    ]  # fmt: skip
    return milliseconds(min(found)) if found else "not measured"
