"""The one table of goals, and each figure's value over all seeds (docs/simulation.md has the same table)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from loadtest.truth.blocks import FALSE, MISSED
from loadtest.truth.conservation import CONSERVATION
from loadtest.truth.counts import COUNTS
from loadtest.truth.figures import TIMES, Finding, percentile
from loadtest.truth.positions import HIGH_S, LOW_S, RESUME
from loadtest.truth.slots import DEMAND, DEMAND_MS, QUIET, QUIET_MS
from loadtest.truth.trends import MOST_S, NEVER_S
from loadtest.truth.views import END, END_MS, WATCHED, WATCHED_MS

Findings = Mapping[str, Finding]
"""Topic (blocks, slots, positions, views, counts, trends, conservation) → finding."""
TICK_S = TIMES.tick / 1000
PRECISION, RECALL = 0.9, 0.95


class Row(Struct):
    """`met` None: there was nothing to judge, or it is shown for information only."""

    figure: str
    value: str
    goal: str = ""
    met: bool | None = None


def rows(found: Findings) -> list[Row]:
    return [*_blocks(found["blocks"]), *_slots(found["slots"]), *_resume(found["positions"]), *_views(found["views"]),
            *_counts(found["counts"]), *_trends(found["trends"]), *_conservation(found["conservation"])]  # fmt: skip


def missed(found: Findings) -> list[Row]:
    """The goals that are not met."""
    return [row for row in rows(found) if row.met is False]


def _blocks(f: Finding) -> list[Row]:
    c = f.counts
    decisions = c.get("decisions", 0)

    def per_thousand(name: str) -> str:
        return f"{c.get(name, 0):g} ({1000 * c.get(name, 0) / decisions if decisions else 0:.4f} ‰)"

    judged = None if not decisions else True
    return [
        Row(MISSED, per_thousand(f"cases of {MISSED}"), "0", judged and not c.get(f"cases of {MISSED}")),
        Row("false blocks outside the ghost window", per_thousand(f"cases of {FALSE}"), "0", judged and not c.get(f"cases of {FALSE}")),
        Row("  blocks within the ghost window", per_thousand("in the ghost window")),
        Row("  blocks at the limit", f"{c.get('at the limit', 0):g}"),
        Row("  blocks after an eviction or takeover", f"{sum(v for k, v in c.items() if k.startswith('sticky') or k in ('evicted', 'taken over')):g}"),
        Row("  decisions", f"{decisions:,.0f}"),
    ]  # fmt: skip


def _spread(values: list[float], unit: str = "s") -> str:
    if not values:
        return "none"
    p50, p95 = percentile(values, 0.5), percentile(values, 0.95)
    return f"{min(values):.1f} | {p50:.1f} | {p95:.1f} | {max(values):.1f} {unit} (n={len(values):,})"


def _within(figure: str, values: list[float], low: float, high: float, goal: str) -> Row:
    """All of them."""
    return Row(figure, _spread(values), goal, None if not values else low <= min(values) and max(values) <= high)


def _slots(f: Finding) -> list[Row]:
    return [
        _within(DEMAND, f.values.get(DEMAND, []), 0, DEMAND_MS / 1000 + TICK_S, f"≤ {DEMAND_MS / 1000:g} s"),
        _within(QUIET, f.values.get(QUIET, []), 0, QUIET_MS / 1000, f"≤ {QUIET_MS / 1000:g} s"),
    ]


def _judged(f: Finding, figure: str, low: float, high: float, goal: str) -> Row:
    """All values within, and no other case."""
    row = _within(figure, f.values.get(figure, []), low, high, goal)
    return Row(row.figure, row.value, row.goal, False if f.counts.get(f"cases of {figure}") else row.met)


def _resume(f: Finding) -> list[Row]:
    return [
        _judged(f, RESUME, LOW_S, HIGH_S, "in [−10, 0] s"),
        Row("  where the last word was lost", _spread(f.values.get("lost on the way", []))),
    ]


def _views(f: Finding) -> list[Row]:
    def apart(start: str) -> list[Row]:
        return [
            Row(f"  {name.removeprefix(start)}", _spread(values))
            for name, values in sorted(f.values.items())
            if name.startswith(start)
        ]

    end, watched = END_MS / 1000, WATCHED_MS / 1000
    return [
        _judged(f, END, -end - TICK_S, end + TICK_S, f"within ±{end:g} s"),
        *apart("end: "),
        _judged(f, WATCHED, -watched - TICK_S, watched + TICK_S, f"within ±{watched:g} s"),
        *apart("watched: "),
    ]


def _counts(f: Finding) -> list[Row]:
    compared, off = f.counts.get("counts compared", 0), f.counts.get("unexplained", 0)
    return [
        Row(
            f"{COUNTS}: unexplained error",
            f"{off:g} of {compared:,.0f} counts",
            "0",
            None if not compared else off == 0,
        ),
        Row("  raw error, viewers", _spread(f.values.get("raw error", []), "viewers")),
    ]


def _trends(f: Finding) -> list[Row]:
    c = f.counts
    made = []
    for kind, most in MOST_S.items():
        delays = f.values.get(f"{kind} delay", [])
        p95 = percentile(delays, 0.95)
        text = (
            "none planted"
            if not delays
            else "never"
            if p95 >= NEVER_S
            else f"p50 {percentile(delays, 0.5):.0f} s, p95 {p95:.0f} s"
        )
        made.append(Row(f"trending {kind}: delay", text, f"p95 ≤ {most:g} s", None if math.isnan(p95) else p95 <= most))
    return [
        *made,
        _share("trending: precision@10", c.get("right", 0), c.get("shown", 0), PRECISION),
        _share("trending: recall", c.get("found", 0), c.get("planted", 0), RECALL),
        Row("trending: decoys listed", f"{c.get('decoys listed', 0):g} of {c.get('decoys', 0):g}", "0",
            not c.get("decoys listed") if c.get("decoys") else None),
    ]  # fmt: skip


def _share(figure: str, part: float, whole: float, goal: float) -> Row:
    if not whole:
        return Row(figure, "nothing to judge", f"≥ {goal:g}")
    return Row(figure, f"{part / whole:.3f} ({part:g} of {whole:g})", f"≥ {goal:g}", part / whole >= goal)


def _conservation(f: Finding) -> list[Row]:
    names = sorted(name.removesuffix(": expected") for name in f.counts if name.endswith(": expected"))
    rows = [
        Row(
            f"{CONSERVATION}: difference",
            f"{f.counts.get('difference', 0):g}",
            "0",
            not f.counts.get("difference") if names else None,
        )
    ]
    return rows + [
        Row(
            f"  {name}",
            f"{f.counts[f'{name}: expected']:,.0f} by the truth, {f.counts[f'{name}: engine']:,.0f} by the engine",
        )
        for name in names
    ]
