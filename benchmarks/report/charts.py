"""The charts: speed-up bars, scaling, roofline."""

from collections.abc import Callable, Iterable, Sequence

from benchmarks.records import Row, Run
from benchmarks.report.svg import WIDTH, Drawing, LogAxis, hue, shortened, text_width
from benchmarks.report.tables import MEASURES, Comparison, Quantity, Scaling, comparisons, median, scalings
from benchmarks.report.units import milliseconds, percent, rate, short, size, tick

LEFT, TOP, PLOT = 58.0, 34.0, 210.0
RIGHT = WIDTH - 10.0


def series_of(names: Iterable[str], ours: Iterable[str]) -> dict[str, int]:
    """A colour for everybody, the same in every chart of a suite: ours take the first."""
    first = list(dict.fromkeys(ours))
    rest = [name for name in dict.fromkeys(names) if name not in first]
    return {name: index for index, name in enumerate([*first, *rest])}


def speedups(title: str, comparisons: Sequence[Comparison]) -> Drawing:
    """How many times faster ours is than the best peer that matched, or slower; bars grow from 1."""
    drawing = Drawing()
    drawing.text(0, 14, title, kind="title")
    known = [comparison.speedup for comparison in comparisons if comparison.speedup is not None]
    most = max([1.5, *known])
    axis = LogAxis(min([1.0, *known]) / 1.02, most, 4, WIDTH - 4)
    y = 34.0
    for comparison in comparisons:
        speedup, ours, peer = comparison.speedup, comparison.ours, comparison.peer
        label = comparison.name
        if speedup is None or ours is None or peer is None:
            drawing.text(4, y, shortened(label, 270), kind="ink")
            drawing.text(WIDTH - 4, y, "no time of ours" if ours is None else "no peer has a time", anchor="end")
            y += 24
            continue
        verdict = comparison.verdict
        drawing.text(4, y, shortened(label, WIDTH - 8 - text_width(verdict) - 12), kind="ink")
        drawing.text(WIDTH - 4, y, verdict, kind="ink", anchor="end")
        low, high = sorted((axis.at(1.0), axis.at(speedup)))
        drawing.line([(axis.at(1.0), y + 2), (axis.at(1.0), y + 20)], "axis")
        hint = f"{ours.who} {milliseconds(median(ours) or 0)}, {peer.who} {milliseconds(median(peer) or 0)}"
        drawing.bar(low, y + 5, high - low, 12, 0 if speedup >= 1 else 1, hint)
        against = f"against {peer.who}"
        inside = high - low > text_width(against) + 10
        if not inside:
            at, anchor = (high + 6, "start") if high + text_width(against) + 8 < WIDTH else (low - 6, "end")
            drawing.text(at, y + 15, against, anchor=anchor)
        else:
            drawing.text(low + 6, y + 15, against, kind="on")
        y += 36
    drawing.height = y - 6
    return drawing


def all_speedups(run: Run) -> list[Drawing]:
    """A chart of speed-ups for each suite that has any; what has no peers is in no chart."""
    found = [comparison for comparison in comparisons(run) if comparison.ours is not None and comparison.peers]
    suites = dict.fromkeys(comparison.first.suite for comparison in found if comparison.speedup is not None)
    return [speedups(suite, [c for c in found if c.first.suite == suite]) for suite in suites]


def all_scalings(run: Run) -> list[Drawing]:
    """Charts of time and of memory for each series of sizes."""
    found = []
    for one in scalings(run):
        rows = [row for row in run.rows if row.suite == one.suite]
        colours = series_of([row.who for row in rows], [row.who for row in rows if row.ours])
        title = f"{one.suite}, {MEASURES[one.measures]}, {one.dtype}"
        found += [scaling(f"{title}: time", one, "time", colours), scaling(f"{title}: memory", one, "memory", colours)]
    return [drawing for drawing in found if drawing is not None]


def all_rooflines(run: Run) -> list[Drawing]:
    """A roofline for each dtype."""
    found = [roofline(run, dtype) for dtype in dict.fromkeys(row.dtype for row in run.rows)]
    return [drawing for drawing in found if drawing is not None]


def scaling(title: str, found: Scaling, quantity: Quantity, colours: dict[str, int]) -> Drawing | None:
    """Time or memory against a size, both on log axes, with the floor; None where nothing was measured twice."""
    series = found.series(quantity)
    if not series:
        return None
    floor = found.floor() if quantity == "time" else []
    points = [point for line in series.values() for point in line] + floor
    across = LogAxis.of((x for x, _ in points), LEFT, RIGHT, room=1.1)
    up = LogAxis.of((y for _, y in points), TOP + PLOT, TOP)
    drawing = Drawing()
    drawing.text(0, 14, title, kind="title")
    show = milliseconds if quantity == "time" else size
    sizes = sorted({x for x, _ in points})
    _frame(drawing, across, up, [x for x in sizes if x in set(_spaced(sizes, across))], show_y=show)
    drawing.text(RIGHT, TOP + PLOT + 32, found.axis, anchor="end")
    if len(floor) > 1:
        drawing.line([(across.at(x), up.at(y)) for x, y in floor], "floor")
    for who, line in reversed(series.items()):
        drawing.line([(across.at(x), up.at(y)) for x, y in line], f"l{hue(colours[who])}")
        for x, y in line:
            drawing.dot(across.at(x), up.at(y), colours[who], f"{who}: {show(y)} at {found.axis} = {x}")
    names: list[tuple[int | None, str]] = [(colours[who], who) for who in series]
    if len(floor) > 1:
        names.append((None, "floor"))
    drawing.height = drawing.legend(0, TOP + PLOT + 52, names)
    return drawing


def roofline(run: Run, dtype: str) -> Drawing | None:
    """Rates reached by ours against operations a byte, below this run's own ceilings; None where nothing is known."""
    rows = [row for row in run.rows if row.dtype == dtype and row.ours and row.matched and _intensity(row)]
    bandwidth, peak = run.ceilings.copy_bytes_per_second, run.ceilings.matmul_flops_per_second.get(dtype)
    if not rows or not bandwidth or not peak:
        return None
    suites = list(dict.fromkeys(row.suite for row in rows))
    points = [(_intensity(row), _reached(row), row) for row in rows]
    ridge = peak / bandwidth
    across = LogAxis.of([*(x for x, _, _ in points), ridge / 4, ridge * 4], LEFT, RIGHT)
    up = LogAxis.of([*(y for _, y, _ in points), peak], TOP + PLOT, TOP, room=1.5)
    drawing = Drawing()
    drawing.text(0, 14, f"Roofline, {dtype}", kind="title")
    _frame(drawing, across, up, across.ticks(), show_y=tick)
    drawing.text(RIGHT, TOP + PLOT + 32, "operations a byte", anchor="end")
    drawing.text(0, TOP - 5, "operations a second")
    start = max(across.low, up.low / bandwidth)
    drawing.line(
        [(across.at(x), up.at(min(peak, x * bandwidth))) for x in (start, ridge, across.high)],
        "floor",
    )
    drawing.text(RIGHT, up.at(peak) - 5, rate(peak, "FLOP/s"), anchor="end")
    along = max(start, (start * ridge) ** 0.5)
    drawing.text(across.at(along) - 6, up.at(along * bandwidth) - 6, rate(bandwidth, "B/s"), anchor="end")
    for x, y, row in points:
        limit = min(peak, x * bandwidth)
        hint = f"{row.suite}, {row.case}, {MEASURES[row.measures]}: {percent(y / limit)} of the roof"
        drawing.dot(across.at(x), up.at(y), suites.index(row.suite), hint)
    drawing.height = drawing.legend(0, TOP + PLOT + 52, [(i, suite) for i, suite in enumerate(suites)])
    return drawing


def _intensity(row: Row) -> float:
    return row.flops / row.bytes if row.flops and row.bytes and row.milliseconds else 0.0


def _reached(row: Row) -> float:
    return 1e3 * (row.flops or 0) / (median(row) or 1)


def _spaced(values: Sequence[float], axis: LogAxis, apart: float = 34) -> list[float]:
    kept: list[float] = []
    for value in values:
        if not kept or abs(axis.at(value) - axis.at(kept[-1])) >= apart:
            kept.append(value)
    return kept


def _frame(
    drawing: Drawing, across: LogAxis, up: LogAxis, at_x: Sequence[float], *, show_y: Callable[[float], str]
) -> None:
    for value in up.ticks(binary=show_y is size):
        drawing.line([(LEFT, up.at(value)), (RIGHT, up.at(value))], "grid")
        drawing.text(LEFT - 6, up.at(value) + 4, short(show_y(value)), anchor="end")
    for value in at_x:
        drawing.line([(across.at(value), TOP + PLOT), (across.at(value), TOP + PLOT + 4)], "axis")
        drawing.text(across.at(value), TOP + PLOT + 17, tick(value), anchor="middle")
    drawing.line([(LEFT, TOP + PLOT), (RIGHT, TOP + PLOT)], "axis")
