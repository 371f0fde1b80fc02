"""Bar charts of speed-ups, each with a digest of what it shows."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

OURS, BASELINE, INK = "#2a6fb0", "#c8702a", "#1f2328"


class Bar(NamedTuple):
    """A ratio of times: above 1, ours is faster."""

    label: str
    speedup: float
    against: str


def digest(title: str, bars: Sequence[Bar]) -> str:
    """Of the numbers and of this file, which draws them."""
    return hashlib.sha256(Path(__file__).read_bytes() + json.dumps([title, *bars]).encode()).hexdigest()


def is_of(path: Path, title: str, bars: Sequence[Bar]) -> bool:
    """Whether the file is the chart of these bars; nothing is drawn for it."""
    if not path.is_file():
        return False
    with Image.open(path) as image:
        return image.info.get("digest") == digest(title, bars)


def draw(path: Path, title: str, bars: Sequence[Bar]) -> None:
    """Write the chart as PNG: bars from 1 on a log axis. Raises ImportError without matplotlib."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError(f"{path} has to be drawn, by matplotlib: run pip install -e '.[charts]'") from error

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(figsize=(9, 0.34 * len(bars) + 1.1), dpi=110, layout="constrained")
    values = [bar.speedup for bar in bars]
    colours = [OURS if value >= 1 else BASELINE for value in values]
    axes.barh(range(len(bars)), [value - 1 for value in values], left=1, height=0.66, color=colours)
    for at, bar in enumerate(bars):
        axes.annotate(f"{bar.speedup:.2f}×  {bar.against}", (max(bar.speedup, 1), at), (5, 0),
                      textcoords="offset points", va="center", fontsize=8, color=INK)  # fmt: skip
    axes.set_xscale("log", base=2)
    low, high = min([1.0, *values]), max([1.5, *values])
    axes.set_xlim(low / 1.1, high * (high / low) ** 0.9)  # room for the words
    ticks = [x for x in (0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low / 1.1 <= x <= high * 1.1]
    axes.set_xticks(ticks, [f"{x:g}×" for x in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(bars)), [bar.label for bar in bars], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"digest": digest(title, bars), "Software": None})
    plt.close(figure)
