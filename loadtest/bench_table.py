"""The report: one row a figure, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """`figure` is `median (min–max)`; `ratio` is to the ceiling or peer named in the goal or in the part's heading."""

    what: str
    figure: str
    unit: str
    ratio: str = ""
    goal: str = ""
    met: bool | None = None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Sheet:
    """Things compared in more than one respect: a line for each, a column for each figure."""

    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def table(title: str, rows: Sequence[Row | Sheet]) -> str:
    """Sheets first. Columns of the rows: what, figure, unit, ratio, goal, met."""
    texts = [_aligned([row.columns, *row.lines]) for row in rows if isinstance(row, Sheet)]
    cells = [("", "figure", "unit", "ratio", "goal", "met")]
    for row in rows:
        if isinstance(row, Row):
            met = {None: "", True: "yes", False: "NO"}[row.met]
            cells.append((row.what, row.figure, row.unit, row.ratio, row.goal, met))
    if len(cells) > 1:
        texts.append(_aligned(cells))
    return "\n".join([title, "\n\n".join(texts), ""])


def _aligned(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )
