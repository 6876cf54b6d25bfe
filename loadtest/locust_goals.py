"""Thresholds: what must hold for a run to pass, and what was missed."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

DUE = "heartbeat-due"
"""Heartbeats, counted from when they were due."""
NAMES = ("heartbeat", DUE, "check", "edge", "events", "stop", "trending", "audience", "resume", "quality")
"""What a limit can be set on: the names of the requests in the table, and `heartbeat-due`."""


@dataclass(frozen=True)
class Verdict:
    """One threshold, and how it stands. `ok` is None if there was nothing to judge."""

    name: str
    wanted: str
    got: str
    ok: bool | None

    def __str__(self) -> str:
        return f"{self.name}: {self.got}, wanted {self.wanted}"


Limits = dict[str, dict[float, float]]
"""Request → percentile → ms."""


def limits(text: str) -> Limits:
    """`heartbeat:p50=50,p99=500 check:p99=500` as limits. Raises ValueError that names what is wrong."""
    found: Limits = {}
    for word in text.split():
        name, colon, rest = word.partition(":")
        if name not in NAMES or not colon:
            raise ValueError(f"--max-ms: {word!r}: expected one of {', '.join(NAMES)}, then ':', got {name!r}")
        for part in rest.split(","):
            match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)=(\d+(?:\.\d+)?)", part)
            if match is None or float(match[1]) == 0:
                raise ValueError(f"--max-ms: {name}: expected p50=…, p95=…, p99=… (ms), got {part!r}")
            found.setdefault(name, {})[float(match[1])] = float(match[2])
    return found


Percentile = Callable[[str, float], float | None]
"""(request, percent) → ms, or None if there was no such request."""


def judge_latency(wanted: Limits, measured: Percentile) -> list[Verdict]:
    verdicts = []
    for name, each in wanted.items():
        for percent, most in each.items():
            value = measured(name, percent)
            got = "no such request" if value is None else f"{value:,.0f} ms"
            ok = None if value is None else value <= most
            verdicts.append(Verdict(f"{name} p{percent:g}", f"≤ {most:,g} ms", got, ok))
    return verdicts


def judge_failures(failed: int, requests: int, most: float) -> Verdict:
    ratio = failed / requests if requests else 0.0
    wanted, got = f"≤ {most:.2%}", f"{ratio:.2%} ({failed:,} of {requests:,})"
    return Verdict("failure ratio", wanted, got, ratio <= most if requests else None)


def judge_count(name: str, count: int) -> Verdict:
    return Verdict(name, "0", f"{count:,}", count == 0)


def judge_achieved(answered: int, due: int, least: float) -> Verdict:
    """Nothing due is a miss, not a pass: then no load was made."""
    got = f"{answered / due:.3f} ({answered:,} of {due:,})" if due else "nothing was due"
    return Verdict("achieved ÷ target", f"≥ {least:g}", got, due > 0 and answered / due >= least)


def missed(verdicts: Collection[Verdict]) -> list[Verdict]:
    return [verdict for verdict in verdicts if verdict.ok is False]
