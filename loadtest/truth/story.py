"""What happened in one household, in order, for people: how each case of the scoreboard is explained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loadtest.truth.figures import Finding
from loadtest.truth.truth import Lost, Play, Request, Truth, View

Told = tuple[int, int, str]


def story(truth: Truth, account: str, records: list[dict[str, Any]], findings: dict[str, Finding]) -> str:
    """Every line with the time since the start of the run. Raises KeyError for a household that is not in the truth."""
    household = truth.households[account]
    head = f"{account}: plan {household.plan}, limit {household.limit}, {household.mode}, {'honest' if household.honest else 'a cheat'}"
    told: list[Told] = [(p.started_at, 0, _play(p)) for p in truth.plays.get(account, [])]
    told += [(v.ended_at, 3, _view(v)) for v in truth.views.get(account, [])]
    told += [(r.at, 1, _request(r)) for r in truth.requests.get(account, [])]
    told += [(r.at, 1, _request(r)) for r in truth.lost.get(account, [])]
    for record in records:
        told += _record(record)
    told += [
        (case.at, 4, f"!!! {case.figure}: {case.what}")
        for f in findings.values()
        for case in f.cases
        if case.account == account
    ]
    lines = [f"{clock(at - truth.run.start)}  {text}" for at, _, text in sorted(told)]
    return "\n".join([head, *lines])


def clock(ms: int) -> str:
    seconds, rest = divmod(ms, 1_000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{rest:03d}"


def _play(p: Play) -> str:
    place = "" if p.from_position is None else f" {p.from_position:.1f} to {p.to_position or 0:.1f} s"
    return f"    really: {p.session} ({p.device}) {p.state} {p.content or ''}{place}, for {(p.ended_at - p.started_at) / 1000:g} s"


def _view(v: View) -> str:
    return f"    really: {v.session} ends {v.content}: {v.end}, played {v.played_ms / 1000:.1f} s"


def _request(r: Request | Lost) -> str:
    place = "" if r.position is None else f" at {r.position:.1f} s"
    sent = f"{r.call} {r.session} ({r.device}) {r.content or ''} seq {r.seq} {r.state or r.evidence or ''}{place}"
    if isinstance(r, Lost):
        return f"{sent} → lost on the way"
    flags = [name for name in ("late", "duplicate", "degraded") if getattr(r, name)] + (
        ["answer lost"] if r.lost_answer else []
    )
    return f"{sent} → {r.decision or r.status}{f' ({r.reason})' if r.reason else ''}{', ' + ', '.join(flags) if flags else ''}"


def _record(record: dict[str, Any]) -> Iterator[Told]:
    name = f"{record['session']} view {record['view']} of {record['content']}"
    yield record["started_at"], 2, f"  engine: {name} begins"
    if record["ended_at"] is not None:
        estimated = record["estimated_end_at"]
        guess = f", really {(record['ended_at'] - estimated) / 1000:g} s ago" if estimated else ""
        yield (
            record["ended_at"], 2,
            f"  engine: {name} ends: {record['reason']}{guess}; watched {record['watched_ms'] / 1000:g} s, revision {record['revision']}",
        )  # fmt: skip
