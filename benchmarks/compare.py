"""Which rows of two runs differ by more than the noise.

    python -m benchmarks.compare BEFORE.json AFTER.json

A time has changed where two things hold. The ranges from the 20th to the 80th percentile, of both timings of each
run, lie apart. And the medians differ by more than medians of the same thing do inside either run, which timed
everything twice: more than 80 % of its rows did. Slow noise, a machine that was busy throughout one of the runs, shows
in neither; the ceilings are printed for that.

Peak memory does not vary: any difference is listed.

Exit status: 0 if nothing of this project became slower, takes more memory or lost its time; 1 if something did; 2 if a
file cannot be read, or the runs have no row in common. What peers do is listed and decides nothing.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.records import ResultError, Row, Run, percentiles

WORSE = ("slower", "lost", "more memory")


@dataclass(frozen=True)
class Change:
    """A row that is not what it was; `what` is slower, faster, lost, gained, more memory or less memory."""

    what: str
    before: Row
    after: Row

    @property
    def counts(self) -> bool:
        """Whether it is a change for the worse of this project's own."""
        return self.after.ours and self.what in WORSE

    def __str__(self) -> str:
        row = self.after
        name = f"{row.who} · {' · '.join(part for part in row.group if part)}"
        return f"{self.what:<12} {self._numbers():<34} {name}"

    def _numbers(self) -> str:
        before, after = self.before, self.after
        if self.what == "lost":
            return after.why or ""
        if self.what == "gained":
            assert after.milliseconds is not None
            return f"{after.milliseconds.median:.4g} ms"
        if "memory" in self.what:
            assert before.peak_memory_bytes is not None
            assert after.peak_memory_bytes is not None
            return f"{before.peak_memory_bytes / 1e6:.4g} to {after.peak_memory_bytes / 1e6:.4g} MB"
        assert before.milliseconds is not None
        assert after.milliseconds is not None
        ratio = after.milliseconds.median / before.milliseconds.median
        return f"{before.milliseconds.median:.4g} to {after.milliseconds.median:.4g} ms (x {ratio:.2f})"


def changes(before: Run, after: Run) -> list[Change]:
    """Of the rows that both runs have, those that changed, the worst of our own first.

    A row of ours that the later run has no more, in a case that it does have, is lost.
    """
    noise = max(repeat_noise(before), repeat_noise(after))
    earlier = {_key(row): row for row in before.rows}
    found = []
    for row in after.rows:
        if (old := earlier.get(_key(row))) is not None:
            found += [Change(what, old, row) for what in _differences(old, row, noise)]
    later, groups = {_key(row) for row in after.rows}, {row.group for row in after.rows}
    for old in before.rows:
        if old.ours and old.milliseconds and old.group in groups and _key(old) not in later:
            gone = replace(old, milliseconds=None, repeat_milliseconds=None, why="the later run has no such row")
            found.append(Change("lost", old, gone))
    return sorted(found, key=lambda change: not change.counts)


def repeat_noise(run: Run) -> float:
    """|log(median / median of the same thing timed again)|: its 80th percentile over the rows; 0 without any."""
    apart = [
        abs(math.log(row.milliseconds.median / row.repeat_milliseconds.median))
        for row in run.rows
        if row.milliseconds and row.repeat_milliseconds
    ]
    return percentiles(apart).p80 if apart else 0.0


def _key(row: Row) -> tuple[object, ...]:
    return row.group, row.who


def _differences(before: Row, after: Row, noise: float) -> list[str]:
    if before.milliseconds is None or after.milliseconds is None:
        if before.milliseconds is after.milliseconds:
            return []
        return ["lost" if after.milliseconds is None else "gained"]
    found = []
    (low, high), (new_low, new_high) = _range(before), _range(after)
    apart = new_low > high or new_high < low
    ratio = math.log(after.milliseconds.median / before.milliseconds.median)
    if apart and abs(ratio) > noise:
        found.append("slower" if ratio > 0 else "faster")
    if before.peak_memory_bytes is not None and after.peak_memory_bytes is not None:
        if after.peak_memory_bytes > before.peak_memory_bytes:
            found.append("more memory")
        elif after.peak_memory_bytes < before.peak_memory_bytes:
            found.append("less memory")
    return found


def _range(row: Row) -> tuple[float, float]:
    times = [each for each in (row.milliseconds, row.repeat_milliseconds) if each]
    return min(each.p20 for each in times), max(each.p80 for each in times)


def _ceilings(before: Run, after: Run) -> str:
    old, new = before.ceilings, after.ceilings
    ratios = {"copy": new.copy_bytes_per_second / old.copy_bytes_per_second}
    shared = old.matmul_flops_per_second.keys() & new.matmul_flops_per_second.keys()
    ratios |= {f"{x} product": new.matmul_flops_per_second[x] / old.matmul_flops_per_second[x] for x in sorted(shared)}
    return "ceilings, after / before: " + ", ".join(f"{name} x {ratio:.2f}" for name, ratio in ratios.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the changes; the exit status."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(arguments)
    try:
        before, after = Run.load(options.before), Run.load(options.after)
    except (ResultError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    common = {_key(row) for row in before.rows} & {_key(row) for row in after.rows}
    if not common:
        print("compare: the two runs have no row in common: give two of the same size and device", file=sys.stderr)
        return 2
    for name, run in (("before", before), ("after", after)):
        changed = ", with changes" if run.dirty else ""
        print(f"{name}: {run.device}, torch {run.torch}, {run.commit[:12]}{changed}, {run.date}, {run.size}")
    print(_ceilings(before, after))
    noise = max(repeat_noise(before), repeat_noise(after))
    found = changes(before, after)
    print(f"{len(common)} rows in common, of {len(before.rows)} and {len(after.rows)}; noise {100 * noise:.1f} %")
    print("\n".join(map(str, found)) or "no row changed beyond the noise")
    return int(any(change.counts for change in found))


if __name__ == "__main__":
    sys.exit(main())
