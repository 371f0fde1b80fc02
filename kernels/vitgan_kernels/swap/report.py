"""What `swap` says about what it did."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SwapRow:
    """One place that a recipe recognised.

    `now` is what runs there now, or why it was left alone. `differences` has, by dtype, the largest measured
    difference between what was there and what replaces it, relative to the largest value of the tensor it is in.
    """

    path: str
    was: str
    now: str
    swapped: bool
    differences: dict[str, float]


@dataclass(frozen=True)
class SwapReport:
    """What `swap` found in a model and did about it. Prints as a table."""

    model: str
    rows: list[SwapRow]
    looked_for: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.rows:
            known = "; ".join(self.looked_for)
            return f"swap of {self.model}: nothing recognised, nothing changed. Looked for: {known}."
        swapped = sum(row.swapped for row in self.rows)
        cells = [("path", "was", "now", "difference"), *(_cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        return "\n".join([f"swap of {self.model}: {swapped} of {len(self.rows)} swapped", *map(str.rstrip, lines)])


def _cells(row: SwapRow) -> tuple[str, str, str, str]:
    differences = ", ".join(f"{value:.1e} ({dtype})" for dtype, value in row.differences.items())
    return row.path or "(the model)", row.was, row.now if row.swapped else f"left alone: {row.now}", differences
