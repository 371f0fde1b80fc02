"""The report: one HTML page that asks nothing of the network and runs no script."""

from collections.abc import Sequence
from html import escape

from benchmarks.records import Row, Run
from benchmarks.report import charts, svg
from benchmarks.report.svg import Drawing
from benchmarks.report.tables import Comparison, comparisons, median, share_of_floor, spread
from benchmarks.report.units import digits, milliseconds, percent, rate, size

STYLE = """
body{margin:0;background:var(--surface);color:var(--ink);font:16px/1.5 %(font)s}
main{max-width:1480px;margin:0 auto;padding:16px 20px 60px}
h1{font-size:1.6rem;margin:.4em 0}
h2{font-size:1.25rem;margin:2em 0 .4em;border-top:1px solid var(--line);padding-top:1em}
h3{font-size:1.05rem;margin:1.6em 0 .5em}
p,ul{max-width:75ch}.soft{color:var(--soft)}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%%,400px),1fr));gap:28px;align-items:start}
svg{width:100%%;max-width:520px;height:auto;display:block}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:6px;margin:.6em 0}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;white-space:nowrap;width:100%%}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--line)}tr:last-child td{border-bottom:0}
th:first-child,td:first-child,td.left,th.left{text-align:left}th{color:var(--soft);font-weight:600;vertical-align:bottom}
td.why{white-space:normal;min-width:16em;text-align:left;color:var(--soft)}
tr.best td{font-weight:600}tr.group td{border-bottom:0;padding-top:10px;text-align:left;font-weight:600}
pre{white-space:pre-wrap;font-size:.85rem}
summary{cursor:pointer;padding:6px 0;font-weight:600}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
"""


def page(runs: Sequence[Run], unmeasured: Sequence[str]) -> str:
    """The whole page: the latest run of each device at each size, and what has none."""
    missing = ""
    if unmeasured:
        missing = f"<p><strong>Not measured:</strong> {escape(', '.join(unmeasured))}.</p>"
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Benchmarks</title><style>{svg.style()}{STYLE % {'font': svg.FONT}}</style></head><body><main>\n"
        "<h1>Benchmarks</h1>\n"
        "<p>Each row of an operator or of training was checked against float64 before it was timed; one that did not "
        "match has no time. A speed-up is the time of the fastest peer that matched, divided by ours. The floor is "
        "what the bytes and the operations of a row cost at the ceilings measured in the same run: the rate of a large "
        "copy and of a large matrix product; above 100 %, a row reached more than they did, as where all of it stays "
        "in the cache.</p>\n"
        f"{missing}\n" + "\n".join(_run(run) for run in runs) + "\n</main></body></html>\n"
    )


def _run(run: Run) -> str:
    found = comparisons(run)
    suites = list(dict.fromkeys(row.suite for row in run.rows))
    parts = [
        f"<section><h2>{escape(run.device)}, {run.size} sizes</h2>",
        _conditions(run),
        _charts("Speed-up against the best peer that matched", charts.all_speedups(run)),
        _charts("Scaling", charts.all_scalings(run)),
        _charts("Roofline", charts.all_rooflines(run)),
    ]
    parts.append("<h3>Every row</h3>")
    parts += [_table(suite, [c for c in found if c.first.suite == suite]) for suite in suites]
    return "\n".join([*parts, "</section>"])


def _conditions(run: Run) -> str:
    ceilings = [f"copy {rate(run.ceilings.copy_bytes_per_second, 'B/s')}"] if run.ceilings.copy_bytes_per_second else []
    ceilings += [f"{dtype} product {rate(v, 'FLOP/s')}" for dtype, v in run.ceilings.matmul_flops_per_second.items()]
    facts = {
        "device": run.device,
        "driver": run.driver,
        "CPU": f"{run.cpu}, {run.threads} thread{'' if run.threads == 1 else 's'}",
        "software": f"Python {run.python}, torch {run.torch}"
        + "".join(f", {name} {version}" for name, version in (("triton", run.triton), ("CUDA", run.cuda)) if version),
        "commit": run.commit + (", with uncommitted changes" if run.dirty else ""),
        "date": run.date,
        "sizes": run.size,
        "ceilings": "; ".join(ceilings),
    }
    return (
        "<dl>"
        + "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items() if value)
        + "</dl>"
    )


def _charts(title: str, drawings: Sequence[Drawing]) -> str:
    if not drawings:
        return f"<h3>{title}</h3><p class=soft>No row of this run says anything here.</p>"
    shown = "".join(f"<figure style='margin:0'>{svg.inline(drawing, title)}</figure>" for drawing in drawings)
    return f"<h3>{title}</h3><div class=charts>{shown}</div>"


COLUMNS = (
    "who", "median", "p20 to p80", "again", "spread", "floor", "of the floor",
    "memory", "launches", "error", "allowed", "note",
)  # fmt: skip


def _table(suite: str, found: Sequence[Comparison]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    body = []
    for comparison in found:
        first = comparison.first
        shape = ", ".join(f"{name} {value:,}" for name, value in first.shape.items())
        gain = f"; {comparison.verdict} against the best peer" if comparison.speedup else ""
        label = f"{escape(comparison.name)} <span class=soft>({escape(shape)}){gain}</span>"
        body.append(f"<tr class=group><td colspan={len(COLUMNS)}>{label}</td></tr>")
        best = min((m for row in comparison.rows if (m := median(row)) is not None), default=None)
        body += [_row(row, best) for row in comparison.rows]
    return (
        f"<details{' open' if len(found) < 5 else ''}><summary>{escape(suite)}</summary>"
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _row(row: Row, best: float | None) -> str:
    time, again = row.milliseconds, row.repeat_milliseconds
    change, share = spread(row), share_of_floor(row)
    cells = [
        escape(row.who) + (" (ours)" if row.ours else ""),
        "no time" if time is None else milliseconds(time.median),
        "" if time is None else f"{milliseconds(time.p20)} to {milliseconds(time.p80)}",
        "" if again is None else milliseconds(again.median),
        "" if change is None else percent(change),
        "" if row.floor_milliseconds is None else milliseconds(row.floor_milliseconds),
        "" if share is None else percent(share),
        "" if row.peak_memory_bytes is None else size(row.peak_memory_bytes),
        "" if row.launches is None else digits(row.launches),
        "" if row.error is None else f"{row.error:.1e}",
        "" if row.allowed is None else f"{row.allowed:.1e}",
    ]
    kind = " class=best" if time is not None and time.median == best else ""
    why = row.why or ("" if row.matched else "did not match the reference")
    return f"<tr{kind}>{''.join(f'<td>{cell}</td>' for cell in cells)}<td class=why>{escape(why)}</td></tr>"
