"""Drawing: axes, marks and text as SVG, in a page or as a file of its own.

Colours are CSS classes: in a page they follow the reader's light or dark setting, a file is of one theme. The same
numbers give the same bytes, so that a committed chart can be checked against the results it was drawn from.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 440  # what a phone shows without shrinking the text much
GAP = 24  # between drawings in a file
SERIES = 8
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
LIGHT = {
    "surface": "#fcfcfb", "ink": "#0b0b0b", "soft": "#52514e", "line": "#dddbd4",
    "s0": "#2a78d6", "s1": "#eb6834", "s2": "#1baf7a", "s3": "#4a3aa7",
    "s4": "#eda100", "s5": "#e87ba4", "s6": "#008300", "s7": "#e34948",
}  # fmt: skip
DARK = {
    "surface": "#1a1a19", "ink": "#ffffff", "soft": "#c3c2b7", "line": "#3a3936",
    "s0": "#3987e5", "s1": "#d95926", "s2": "#199e70", "s3": "#9085e9",
    "s4": "#c98500", "s5": "#d55181", "s6": "#35a035", "s7": "#e66767",
}  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}


def style() -> str:
    """The colours as variables, and the classes that charts use."""

    def variables(colours: dict[str, str]) -> str:
        return "".join(f"--{name}:{colour};" for name, colour in colours.items())

    return (
        f":root{{color-scheme:light dark;{variables(LIGHT)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(DARK)}}}}}" + _classes()
    )


def _classes() -> str:
    series = "".join(
        f".f{i}{{fill:var(--s{i})}}.l{i}{{stroke:var(--s{i});fill:none;stroke-width:2;stroke-linejoin:round}}"
        for i in range(SERIES)
    )
    return (
        f"svg text{{font:11px {FONT};fill:var(--soft)}}svg text.ink{{fill:var(--ink)}}"
        "svg text.on{fill:#fff}svg text.title{font-size:13px;font-weight:600;fill:var(--ink)}"
        ".card{fill:var(--surface)}.grid{stroke:var(--line);stroke-width:1}.axis{stroke:var(--soft);stroke-width:1}"
        ".floor{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:5 4;fill:none}"
        ".mark{stroke:var(--surface);stroke-width:1.5}" + series
    )


@dataclass
class Drawing:
    """Marks that are collected, and the height that they take."""

    height: float = 0.0
    width: float = WIDTH
    marks: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, *, kind: str = "", anchor: str = "start") -> None:
        """A line of text; kind is "", "ink" or "title"."""
        extra = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self.marks.append(f'<text x="{_n(x)}" y="{_n(y)}"{extra}>{escape(words, quote=False)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A polyline."""
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        self.marks.append(f'<polyline class="{kind}" points="{path}" fill="none"/>')

    def bar(self, x: float, y: float, width: float, height: float, series: int, hint: str = "") -> None:
        """A filled rectangle."""
        box = f'x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 1))}" height="{_n(height)}"'
        self.marks.append(f'<rect class="f{series}" {box} rx="2">{_hint(hint)}</rect>')

    def dot(self, x: float, y: float, series: int, hint: str = "") -> None:
        """A data point, of a shape that goes with its colour."""
        shapes: list[Callable[[float], str]] = [
            lambda r: f"M{_n(x - r)},{_n(y)}a{r},{r} 0 1,0 {2 * r},0a{r},{r} 0 1,0 {-2 * r},0z",
            lambda r: f"M{_n(x - r)},{_n(y - r)}h{2 * r}v{2 * r}h{-2 * r}z",
            lambda r: f"M{_n(x)},{_n(y - r - 1)}l{r + 1},{2 * r + 1}h{-2 * r - 2}z",
            lambda r: f"M{_n(x)},{_n(y - r - 1)}l{r + 1},{r + 1}l{-r - 1},{r + 1}l{-r - 1},{-r - 1}z",
        ]
        path = shapes[(series + 2 * (series // SERIES)) % len(shapes)](4)
        self.marks.append(f'<path class="f{hue(series)} mark" d="{path}">{_hint(hint)}</path>')

    def legend(self, x: float, y: float, entries: Iterable[tuple[int | None, str]]) -> float:
        """Names of series in rows; None is the dashed line. The y below it."""
        at = x
        for series, name in entries:
            needed = 30 + text_width(name)
            if at + needed > self.width and at > x:
                at, y = x, y + 17
            if series is None:
                self.line([(at, y - 4), (at + 14, y - 4)], "floor")
            else:
                self.dot(at + 6, y - 4, series)
            self.text(at + 18, y, name)
            at += needed
        return y + 17


def hue(series: int) -> int:
    """The colour of a series: the first is never used again, others are, with another shape of their points."""
    return series if series < SERIES else 1 + (series - SERIES) % (SERIES - 1)


def inline(drawing: Drawing, title: str) -> str:
    """A drawing for a page that has `style()`."""
    return (
        f'<svg viewBox="0 0 {_n(drawing.width)} {_n(drawing.height)}" role="img" aria-label="{escape(title)}">'
        f"{''.join(drawing.marks)}</svg>"
    )


def standalone_width(columns: int) -> int:
    """Units, of drawings side by side."""
    return columns * WIDTH + (columns + 1) * GAP


def standalone(drawings: Sequence[Drawing], columns: int, theme: str) -> str:
    """Drawings side by side, as a file that needs nothing else, not even variables of CSS."""
    colours, gap, width = THEMES[theme], GAP, standalone_width(columns)
    classes = re.sub(r"var\(--(\w+)\)", lambda name: colours[name[1]], _classes())
    at, parts = float(gap), []
    for first in range(0, len(drawings), columns):
        row = drawings[first : first + columns]
        for column, drawing in enumerate(row):
            x = gap + column * (WIDTH + gap)
            parts.append(f'<g transform="translate({x},{_n(at)})">\n' + "\n".join(drawing.marks) + "\n</g>")
        at += max(drawing.height for drawing in row) + gap
    box = f'viewBox="0 0 {width} {_n(at)}" width="{width}" height="{_n(at)}"'
    card = f'<rect class="card" width="{width}" height="{_n(at)}" rx="6"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>\n<style>{classes}</style>\n{card}\n' + "\n".join(
        [*parts, "</svg>\n"]
    )


@dataclass(frozen=True)
class LogAxis:
    """Positive numbers to positions, by their logarithm."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Iterable[float], start: float, end: float, *, room: float = 1.25) -> "LogAxis":
        """An axis that holds values, with some room at both ends."""
        found = list(values)
        return cls(min(found) / room, max(found) * room, start, end)

    def at(self, value: float) -> float:
        """Where a value lies."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6, *, binary: bool = False) -> list[float]:
        """Round numbers, at most `most`: 1, 2, 5 in every decade, or decades, or every few; powers of 2 if binary."""
        base = 2 if binary else 10
        first, last = math.floor(math.log(self.low, base)), math.ceil(math.log(self.high, base))
        found: list[float] = []
        for step, digits in ((1, (1, 2, 5)), (1, (1, 3)), (1, (1,)), (2, (1,)), (3, (1,)), (5, (1,)), (10, (1,))):
            if binary and len(digits) > 1:
                continue
            powers = range(first - first % step, last + 1, step)
            found = [digit * float(base) ** power for power in powers for digit in digits]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= most:
                break
        return found[:: -(-len(found) // most) or 1]


def text_width(words: str) -> float:
    """About how many units a line of small text takes."""
    return 6.1 * len(words)


def shortened(words: str, width: float) -> str:
    """The text, cut where it would be wider."""
    most = int(width / 6.1)
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def _hint(words: str) -> str:
    return f"<title>{escape(words, quote=False)}</title>" if words else ""


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
