"""Plots as SVG files that stand alone: no scripts, no fonts or styles from elsewhere, the same bytes for the same figures.

They carry a light card of their own, so they can be read on a white page and on a dark one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pygal.graph.horizontalbar import HorizontalBar
from pygal.style import Style

MOST_BYTES = 30_000
_SVG = "http://www.w3.org/2000/svg"
_UNSEEN = (f"{{{_SVG}}}script", f"{{{_SVG}}}desc")
_LOUD, _QUIET = "#2f6f9f", "#a8b4bd"
_FONT = "Helvetica, Arial, sans-serif"


def style(colors: Sequence[str] = (_LOUD, _QUIET)) -> Style:
    return Style(
        background="#fbfbfa", plot_background="#fbfbfa", foreground="#333", foreground_strong="#111", foreground_subtle="#999",
        opacity="1", opacity_hover="1", transition="0s", colors=tuple(colors), font_family=_FONT, label_font_size=13,
        major_label_font_size=13, value_font_size=13, value_label_font_size=13, title_font_size=16, legend_font_size=13,
        value_colors=("#111",) * max(2, len(colors)),
    )  # fmt: skip


def bars(title: str, values: Mapping[str, float], unit: str, *, digits: int = 2, loud: Sequence[str] = ()) -> str:
    """Horizontal bars, the first on top, each with its value. Those named in `loud` are ours, the rest what they are compared
    with. Raises ValueError if there are none."""
    if not values:
        raise ValueError("values: there is nothing to draw")
    names = list(values)[::-1]
    chart = HorizontalBar(
        title=f"{title} ({unit})" if unit else title, style=style(), show_legend=False, js=[], print_values=True,
        print_values_position="top", width=860, height=90 + 36 * len(values), margin=12, spacing=6, show_y_guides=False,
        truncate_label=-1, explicit_size=False, range=(0, max(values.values()) * 1.14 or 1), show_x_labels=True,
        formatter=lambda value: f"{value:,.{digits}f}",
    )  # fmt: skip
    chart.x_labels = names
    chart.add(title, [{"value": values[name], "color": _LOUD if name in loud else _QUIET} for name in names])
    return alone(chart, re.sub(r"[^a-z]+", "-", title.lower()).strip("-"), bars=True)


def alone(chart: Any, name: str, *, bars: bool = False) -> str:
    """A pygal chart's SVG without scripts, comments, hidden tooltips' texts, and random names. With `bars` the values stand
    behind the ends of the bars, and there is no axis besides them."""
    chart.uuid = name
    root = ElementTree.fromstring(chart.render())
    for parent in root.iter():
        for child in list(parent):
            if (
                child.tag in _UNSEEN
                or (parent is not root and child.tag == f"{{{_SVG}}}title")
                or (bars and child.get("class") == "axis x")
            ):
                parent.remove(child)
            elif bars and child.get("class") == "value":
                child.set("style", "text-anchor:start")
    for each in root.iter(f"{{{_SVG}}}style"):
        each.text = _rules(each.text or "")
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _rules(css: str) -> str:
    """Only what a still picture needs."""
    kept = [
        rule
        for rule in re.findall(r"[^{}]+\{[^{}]*\}", css)
        if not re.search(r":hover|tooltip|\.active|transition|@", rule)
    ]
    return "".join(rule.strip() for rule in kept)


def side(figures: Mapping[str, Mapping[str, float | None]], directory: Path) -> list[Path]:
    """The side-by-side table's plots: `figures` are title → `share` of bare by requests, `cpu_us` and `redis_us` a request
    (None: not measured). Returns the files. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    ours = [title for title in figures if title.startswith("API")]
    files = []
    for name, title, unit, digits in (
        ("share", "Requests per second, as a share of bare ASGI", "", 2),
        ("cpu_us", "CPU of the server process per request", "µs", 0),
        ("redis_us", "Redis per request, by commandstats", "µs", 1),
    ):
        values = {what: value for what, each in figures.items() if (value := each.get(name)) is not None}
        if values:
            path = directory / f"side-{name.replace('_', '-')}.svg"
            path.write_text(bars(title, values, unit, digits=digits, loud=ours), encoding="utf-8")
            files.append(path)
    return files
