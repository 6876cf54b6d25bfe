"""The report's plots, as SVG text that stands alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from pygal.graph.bar import Bar
from pygal.graph.xy import XY

from loadtest.plots import alone, style
from loadtest.truth.figures import Finding

MOST_POINTS = 400
# pygal leaves an import hook of an older kind behind, of which Python warns whenever something is not found.
sys.meta_path[:] = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]


def spread(title: str, values: Sequence[float], low: float, high: float, unit: str, bins: int) -> str:
    """How values are distributed between two bounds; what lies outside is counted in the first and the last bar."""
    width = (high - low) / bins
    heights = [0] * bins
    for value in values:
        heights[max(0, min(bins - 1, math.floor((value - low) / width)))] += 1
    chart = Bar(
        title=f"{title} ({unit}; {len(values):,} values)", style=style(("#2f6f9f",)), show_legend=False, js=[], width=860, height=300,
        spacing=0, margin=12, x_label_rotation=0, show_minor_x_labels=False, truncate_label=-1, logarithmic=False,
    )  # fmt: skip
    labels = [f"{low + n * width:g}" for n in range(bins)]
    chart.x_labels = labels
    chart.x_labels_major = labels[::5]
    chart.add(title, heights)
    return alone(chart, _name(title))


def over_time(title: str, finding: Finding) -> str:
    """The engine's count and the truth's, summed over all contents, of one seed."""
    seconds, engine, truth = (finding.values.get(f"over time: {name}", []) for name in ("s", "engine", "truth"))
    step = max(1, len(seconds) // MOST_POINTS)
    chart = XY(
        title=title, style=style(("#2f6f9f", "#d98841")), js=[], width=860, height=320, show_dots=False, margin=12,
        x_title="minutes", y_title="viewers", legend_at_bottom=True,
    )  # fmt: skip
    for name, values in (("engine", engine), ("truth", truth)):
        chart.add(name, [(s / 60, v) for s, v in list(zip(seconds, values, strict=True))[::step]])
    return alone(chart, _name(title))


def _name(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title.lower())
