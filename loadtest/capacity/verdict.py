"""What the storm is judged by: what players saw, what became of their views, and when percentiles were as before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from loadtest.bench_table import table
from loadtest.capacity.herd import Player, Seen
from loadtest.capacity.timeline import LEAST_MS, Normal, Timeline

GOAL_S = 60.0


@dataclass(frozen=True)
class Plan:
    """`rate`: heartbeats/s, 0: half of the knee. `players`: 0: as many as make that rate. Times in s."""

    rate: float = 0.0
    players: int = 0
    interval_s: float = 10.0
    lifetime_s: float = 30.0
    before_s: float = 20.0
    outage_s: float = 60.0
    after_s: float = 75.0
    at_once_s: float = 1.0
    processes: int = 7
    """Of the workers."""
    gone_after_ms: int = 3_000
    stale_intervals: float = 1.5
    normal_ms: float = LEAST_MS
    """p99 up to here is normal whatever it was before."""


QUICK = Plan(
    rate=150.0, interval_s=1.0, lifetime_s=4.0, before_s=2.0, outage_s=4.5, after_s=7.0, at_once_s=0.2, processes=2,
    gone_after_ms=2_000, stale_intervals=3.9, normal_ms=2_000.0,
)  # fmt: skip
"""Everything shorter: leases live for less than the outage, too, but for longer than a busy machine stalls."""


@dataclass(frozen=True)
class Views:
    """What the event log has of the players' views until the end of the run."""

    started: int
    again: int
    """Started more than once, or reopened."""
    ended: dict[str, int]
    """Reason → views."""
    missing: int
    """Players without a view."""
    others: int
    """Views of further devices, which had no slot."""


@dataclass(frozen=True)
class Verdict:
    what: str
    got: str
    wanted: str
    ok: bool


@dataclass
class Result:
    plan: Plan
    seen: Seen
    timeline: Timeline
    normal: Normal
    views: Views
    sampled: tuple[int, int]
    """Views asked for through the API, and those of them that are not the same running view as before."""
    players: int
    waiting: int
    """Whose last heartbeat had no answer at the end."""
    back_s: float
    """After it was killed."""

    @property
    def verdicts(self) -> list[Verdict]:
        seen, views, after = self.seen, self.views, self.normal.after_s
        ended = ", ".join(f"{reason} {n:,}" for reason, n in sorted(views.ended.items())) or "0"
        asked, wrong = self.sampled
        return [
            Verdict("false blocks", f"{seen.false_blocks:,}", "0", seen.false_blocks == 0),
            Verdict("slots given away to further devices", f"{seen.let_in + views.others:,} of {seen.refused + seen.let_in:,} requests", "0",
                    seen.let_in == views.others == 0 and seen.refused > 0),
            Verdict("false view ends, by reason (event log)", ended, "0", not views.ended),
            Verdict("views started again or reopened", f"{views.again:,}", "0", views.again == 0),
            Verdict("players with no view", f"{views.missing:,} of {self.players:,}", "0", views.missing == 0),
            Verdict("the same view still running, by GET /v1/views", f"{asked - wrong:,} of {asked:,}", "all", wrong == 0 and asked > 0),
            Verdict("percentiles as before, after the return", "never" if after is None else f"{after:.1f} s", f"≤ {GOAL_S:g} s",
                    after is not None and after <= GOAL_S),
            Verdict("players without an answer at the end", f"{self.waiting:,}", "≤ 1 %", self.waiting <= self.players / 100),
        ]  # fmt: skip

    @property
    def passed(self) -> bool:
        return all(verdict.ok for verdict in self.verdicts)

    def text(self) -> str:
        normal, plan = self.normal, self.plan
        marks = [(0.0, "API killed"), (self.back_s, f"API back; all reconnect within {plan.at_once_s:g} s")]
        lines = [
            "",
            table("Timeline, seconds from the kill", [self.timeline.sheet(marks)]),
            f"{self.players:,} players, {plan.rate:,.0f} heartbeats/s; before: p50 {normal.p50_ms:.1f} ms, p99 {normal.p99_ms:.1f} ms "
            f"(medians of seconds), so up to {normal.limit_ms:.1f} ms is as before",
            f"sent late by the generator itself: p99 {self.seen.late_p99_ms:.1f} ms",
            "wrong answers, outage included: "
            + (", ".join(f"{why} {n:,}" for why, n in self.seen.wrong.most_common()) or "none"),
            *([f"first: {self.seen.said}"] if self.seen.said else []),
            "",
        ]
        width = max(len(verdict.what) for verdict in self.verdicts)
        lines += [
            f"{'met   ' if v.ok else 'MISSED'}  {v.what.ljust(width)}  {v.got} (goal {v.wanted})" for v in self.verdicts
        ]
        lines.append("verdict: " + ("all goals met" if self.passed else "missed"))
        return "\n".join(lines)

    def to_json(self) -> dict[str, object]:
        seen = {"false_blocks": self.seen.false_blocks, "let_in": self.seen.let_in, "refused": self.seen.refused,
                "degraded": self.seen.degraded, "wrong": dict(self.seen.wrong), "said": self.seen.said, "late_p99_ms": self.seen.late_p99_ms}  # fmt: skip
        return {
            "plan": asdict(self.plan), "players": self.players, "back_s": self.back_s, "normal": asdict(self.normal),
            "views": asdict(self.views), "sampled": self.sampled, "seen": seen, "passed": self.passed,
            "verdicts": [asdict(verdict) for verdict in self.verdicts], "timeline": self.timeline.to_json(),
        }  # fmt: skip


def views_of(
    events: Iterable[dict[str, object]], players: Iterable[Player], further: Iterable[Player], until_ms: float
) -> Views:
    """What became of the players' views until then; events of others are left out, and those of `further` devices count apart."""
    playing = {player.session for player in players}
    others = {player.session for player in further}
    begun: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    reopened = given = 0
    for event in events:
        session, kind = str(event.get("session", "")), event["type"]
        if float(str(event["at"])) > until_ms:
            continue
        if session in others:
            given += kind in ("view_start", "view_reopen")
        elif session in playing:
            begun[session] += kind == "view_start"
            reopened += kind == "view_reopen"
            if kind == "view_end":
                data = event.get("data")
                ended[str(data.get("reason")) if isinstance(data, dict) else "unknown"] += 1
    again = sum(1 for count in begun.values() if count > 1) + reopened
    started = sum(1 for count in begun.values() if count)
    return Views(started, again, dict(ended), len(playing) - started, given)
