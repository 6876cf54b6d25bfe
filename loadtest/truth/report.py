"""The table on stdout, the JSON, and the HTML page: all from the results alone."""

from __future__ import annotations

from html import escape
from typing import Any

import msgspec

from loadtest.truth import plots
from loadtest.truth.blocks import FALSE, MISSED
from loadtest.truth.figures import Case, Finding, added
from loadtest.truth.goals import Row, rows
from loadtest.truth.positions import RESUME
from loadtest.truth.run import Result
from loadtest.truth.slots import DEMAND, QUIET
from loadtest.truth.trends import NEVER_S
from loadtest.truth.views import END, WATCHED

CASES_SHOWN = 200
VALUE = "value, or min | p50 | p95 | max"
MET = {None: "", True: "yes", False: "NO"}
_PLOTS = (
    ("positions", RESUME, -20.0, 5.0, 25), ("views", END, -15.0, 15.0, 30), ("views", WATCHED, -20.0, 20.0, 40),
    ("slots", DEMAND, 0.0, 40.0, 40), ("slots", QUIET, 0.0, 40.0, 40), ("trends", "live delay", 0.0, 120.0, 24),
    ("trends", "vod delay", 0.0, 240.0, 24),
)  # fmt: skip
"""Topic, figure, lowest, highest, bars."""
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;background:#fff;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left;vertical-align:top}
td:first-child{white-space:pre}.NO{color:#b00020;font-weight:600}.yes{color:#1b6e3c}svg{max-width:100%;height:auto}code{font-size:.85em}"""


def together(results: list[Result]) -> dict[str, Finding]:
    """All seeds added up, by topic."""
    topics = results[0].findings if results else {}
    return {topic: added(result.findings[topic] for result in results) for topic in topics}


def table(title: str, lines: list[Row]) -> str:
    """Columns: figure, value, goal, met."""
    cells = [(title, VALUE, "goal", "met"), *((r.figure, r.value, r.goal, MET[r.met]) for r in lines)]
    widths = [max(len(line[n]) for line in cells) for n in range(4)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def cases(results: list[Result]) -> list[Case]:
    return [case for result in results for finding in result.findings.values() for case in finding.cases]


def by_kind(results: list[Result]) -> dict[str, list[Result]]:
    kinds = sorted({result.on for result in results}, reverse=True)
    return {kind: sorted((r for r in results if r.on == kind), key=lambda r: r.seed) for kind in kinds}


def title(kind: str, results: list[Result]) -> str:
    return f"{kind}, {len(results)} seeds ({results[0].size})"


def to_json(results: list[Result]) -> dict[str, Any]:
    """All figures over all seeds and of each, with all cases."""

    def lines(some: list[Result]) -> Any:
        return msgspec.to_builtins(rows(together(some)))

    return {
        "deployments": {
            kind: {
                "figures": lines(some),
                "seeds": {str(r.seed): {"took_s": r.took_s, "figures": lines([r])} for r in some},
            }
            for kind, some in by_kind(results).items()
        },
        "cases": [msgspec.to_builtins(case) | {"replay": case.replay} for case in cases(results)],
    }


def html(results: list[Result]) -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Scoreboard</title>",
        f"<style>{_STYLE}</style>",
        "<h1>Scoreboard</h1>",
    ]
    for kind, some in by_kind(results).items():
        found = together(some)
        parts += [
            f"<h2>{escape(title(kind, some))}</h2>",
            _rows(rows(found)),
            "<h3>By seed</h3>",
            _seeds(some),
            *_plots(kind, some, found),
        ]
    parts += ["<h2>Cases</h2>", _cases(cases(results)), "</html>"]
    return "\n".join(parts)


def _rows(lines: list[Row]) -> str:
    body = "".join(
        f"<tr><td>{escape(r.figure)}<td>{escape(r.value)}<td>{escape(r.goal)}<td class={MET[r.met] or 'none'}>{MET[r.met]}"
        for r in lines
    )
    return f"<table><tr><th>figure<th>{VALUE}<th>goal<th>met{body}</table>"


def _seeds(results: list[Result]) -> str:
    """One line a seed: missed and false blocks, and which goals were not met."""
    body = []
    for result in results:
        wrong = [row.figure for row in rows(result.findings) if row.met is False]
        counts = result.findings["blocks"].counts
        cells = (
            result.seed, f"{counts.get('decisions', 0):,.0f}", f"{counts.get(f'cases of {MISSED}', 0):g}",
            f"{counts.get(f'cases of {FALSE}', 0):g}", f"{result.took_s:g} s", ", ".join(wrong) or "all met",
        )  # fmt: skip
        body.append("<tr>" + "".join(f"<td>{escape(str(cell))}" for cell in cells))
    head = "".join(f"<th>{name}" for name in ("seed", "decisions", "missed", "false", "took", "goals not met"))
    return f"<table><tr>{head}{''.join(body)}</table>"


def _plots(kind: str, results: list[Result], found: dict[str, Finding]) -> list[str]:
    made = []
    for topic, figure, low, high, bins in _PLOTS:
        values = [value for value in found[topic].values.get(figure, []) if value < NEVER_S]
        if values:
            made.append(plots.spread(f"{kind}: {figure}", values, low, high, "s", bins))
    for result in results[:3]:
        if result.findings["counts"].values.get("over time: s"):
            made.append(plots.over_time(f"{kind}: concurrent viewers, seed {result.seed}", result.findings["counts"]))
    return made


def _cases(found: list[Case]) -> str:
    if not found:
        return "<p>None.</p>"
    body = "".join(
        f"<tr><td>{escape(c.figure)}<td>{escape(c.what)}<td><code>{escape(c.replay)}</code>"
        for c in found[:CASES_SHOWN]
    )
    more = f"<p>{len(found) - CASES_SHOWN} more are in the JSON.</p>" if len(found) > CASES_SHOWN else ""
    return f"<table><tr><th>figure<th>what<th>to see it again{body}</table>{more}"
