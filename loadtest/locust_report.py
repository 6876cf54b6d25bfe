"""What a run comes to: its figures as one document, as a line every few seconds, as the live page, and as the report."""

from __future__ import annotations

import html
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pygal.graph.line import Line

from loadtest.locust_goals import Verdict, missed
from loadtest.locust_tally import END, Counts, Tally, percentile
from loadtest.plots import alone, style

COLUMNS = {
    "phase": "phase", "due": "due", "answered": "answered", "ratio": "achieved ÷ target", "send_p50": "from send p50", "send_p95": "p95",
    "send_p99": "p99 (ms)", "due_p50": "from due p50", "due_p95": "p95", "due_p99": "p99 (ms)", "false_blocks": "false blocks",
    "degraded": "degraded", "attempts_failed": "attempts failed",
}  # fmt: skip
"""Of the table of phases: key → heading."""
_POINTS = 120


def row(name: str, counts: Counts) -> dict[str, Any]:
    """One line of the table of phases; latencies in ms, null where nothing was answered."""
    told: dict[str, Any] = {"phase": name, "due": counts.due, "answered": counts.answered}
    told["ratio"] = round(counts.answered / counts.due, 3) if counts.due else None
    for kind, histogram in (("send", counts.from_send), ("due", counts.from_due)):
        for percent in (50, 95, 99):
            told[f"{kind}_p{percent}"] = percentile(histogram, percent)
    return told | {
        "false_blocks": counts.false_blocks, "degraded": counts.degraded, "attempts_failed": counts.attempts_failed,
    }  # fmt: skip


def rows(tally: Tally, outages: Collection[str]) -> list[dict[str, Any]]:
    """The phases in order, and all of them together; an outage of the API is not part of the sum."""
    found = [row(name, counts) for name, counts in tally.phases.items() if name and name != END]
    return [*found, row("all but the outage" if outages else "all", tally.total(outages))]


def series(tally: Tally, behind_s: int) -> list[tuple[int, float, float]]:
    """(s since the first, due a second, answered a second), at most 120 points, without the seconds that are not complete."""
    seconds = [second for second in sorted(tally.seconds) if second <= time.time() - behind_s]
    if not seconds:
        return []
    width = -(-(seconds[-1] - seconds[0] + 1) // _POINTS)
    points = []
    for start in range(seconds[0], seconds[-1] + 1, width):
        own = [tally.seconds.get(second, [0, 0]) for second in range(start, min(start + width, seconds[-1] + 1))]
        points.append((start - seconds[0], sum(r[0] for r in own) / len(own), sum(r[1] for r in own) / len(own)))
    return points


def document(
    tally: Tally, shape: str, outages: Collection[str], verdicts: Sequence[Verdict], behind_s: int = 1
) -> dict[str, Any]:
    """All of it, as JSON for the live page. Generators report up to `behind_s` late."""
    target, achieved = tally.rates(behind_s)
    return {
        "shape": shape, "phase": tally.phase, "players": tally.players, "target": target, "achieved": achieved,
        "rows": rows(tally, outages), "series": series(tally, behind_s),
        "verdicts": [{"name": v.name, "wanted": v.wanted, "got": v.got, "ok": v.ok} for v in verdicts],
    }  # fmt: skip


def line(told: Mapping[str, Any], seconds: float) -> str:
    """What is printed every few seconds."""
    now = next((each for each in told["rows"] if each["phase"] == told["phase"]), told["rows"][-1])
    total = told["rows"][-1]

    def ms(key: str) -> str:
        return "–" if now[key] is None else f"{now[key]:g} ms"

    return (
        f"{seconds:4.0f} s  {told['phase']:<14} players {told['players']:>7,}  target {told['target']:>8,.1f}/s  "
        f"achieved {told['achieved']:>8,.1f}/s  p99 from send {ms('send_p99')}, from due {ms('due_p99')}  "
        f"false blocks {total['false_blocks']}"
    )


def summary(told: Mapping[str, Any]) -> str:
    """The end of a run, for the terminal: the phases, each threshold, and which were missed."""
    table = [list(COLUMNS.values()), *([_cell(each[key]) for key in COLUMNS] for each in told["rows"])]
    widths = [max(len(cells[n]) for cells in table) for n in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) if n == 0 else cell.rjust(width) for n, (cell, width) in enumerate(zip(cells, widths, strict=True)))
        for cells in table
    ]  # fmt: skip
    lines += ["", *(f"{_MARKS[v['ok']]:<7} {v['name']}: {v['got']}, wanted {v['wanted']}" for v in told["verdicts"])]
    return "\n".join(lines)


_MARKS = {True: "ok", False: "MISSED", None: "–"}


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if value < 10 else f"{value:,.0f}"
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def plot(points: Sequence[tuple[int, float, float]]) -> str:
    """Target and achieved rate over time, as SVG."""
    chart = Line(
        title="heartbeats a second: due, and answered", style=style(("#a8b4bd", "#2f6f9f")), js=[], width=900, height=300, show_dots=False,
        legend_at_bottom=True, x_labels_major_every=max(1, len(points) // 10), show_minor_x_labels=False, explicit_size=False,
        x_title="s", range=(0, max((max(p[1:]) for p in points), default=1) * 1.05 or 1), margin=12,
    )  # fmt: skip
    chart.x_labels = [str(second) for second, _, _ in points]
    chart.add("target", [due for _, due, _ in points])
    chart.add("achieved", [answered for _, _, answered in points])
    return alone(chart, "load")


def block(told: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """The part that stands before Locust's own tables in the report."""
    lost = missed(verdicts)
    said = "missed: " + "; ".join(map(str, lost)) if lost else "all thresholds held"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in COLUMNS.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(each[key]))}</td>" for key in COLUMNS) + "</tr>"
        for each in told["rows"]
    )
    goals = "".join(
        f"<tr class='{_MARKS[v.ok].lower()}'><td>{html.escape(v.name)}</td><td>{html.escape(v.got)}</td>"
        f"<td>{html.escape(v.wanted)}</td><td>{_MARKS[v.ok]}</td></tr>"
        for v in verdicts
    )
    return (
        f"<section class='pulsegate'><style>{STYLE}</style><h1>Load: {html.escape(told['shape'])}</h1>"
        f"<p class='{'missed' if lost else 'ok'}'>{html.escape(said)}</p>{plot(told['series'])}"
        f"<h2>Heartbeats, phase by phase</h2><table><tr>{head}</tr>{body}</table>"
        f"<h2>Thresholds</h2><table><tr><th>of</th><th>got</th><th>wanted</th><th></th></tr>{goals}</table></section>"
    )


def into_report(page: str, part: str) -> str:
    """Locust's report with our part first. Where Locust's page has no `<body>` any more, ours stands before all of it."""
    head, body, rest = page.partition("<body>")
    return f"{head}{body}{part}{rest}" if body else part + page


STYLE = """
.pulsegate { font: 15px/1.5 Helvetica, Arial, sans-serif; color: #222; background: #fbfbfa; max-width: 1180px; margin: 0 auto; padding: 24px; }
.pulsegate h1 { font-size: 24px; margin: 0 0 8px } .pulsegate h2 { font-size: 17px; margin: 24px 0 8px }
.pulsegate table { border-collapse: collapse; width: 100%; font-size: 13px }
.pulsegate th, .pulsegate td { text-align: right; padding: 4px 8px; border-bottom: 1px solid #ddd }
.pulsegate th:first-child, .pulsegate td:first-child { text-align: left }
.pulsegate .ok td:last-child, .pulsegate p.ok { color: #1b7f4b } .pulsegate .missed td, .pulsegate p.missed { color: #b3261e }
.pulsegate .big b { font-size: 26px; display: block; line-height: 1.2 } .pulsegate .big span { display: inline-block; margin-right: 40px }
.pulsegate svg { width: 100%; height: auto }
"""
