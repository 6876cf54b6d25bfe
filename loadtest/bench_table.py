"""The report: one row a figure, as a table and as JSON."""

from __future__ import annotations

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


def table(title: str, rows: list[Row]) -> str:
    """Columns: what, figure, unit, ratio, goal, met."""
    cells = [("", "figure", "unit", "ratio", "goal", "met")]
    for row in rows:
        cells.append(
            (row.what, row.figure, row.unit, row.ratio, row.goal, {None: "", True: "yes", False: "NO"}[row.met])
        )
    widths = [max(len(line[i]) for line in cells) for i in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([title, *lines, ""])
