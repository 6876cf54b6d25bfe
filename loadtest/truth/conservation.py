"""Conservation: what the simulator sent is what the API counted, what is in the log, in the lake, and in the view records."""

from __future__ import annotations

import re

from loadtest.truth.figures import Finding
from loadtest.truth.households import Home, allows, fresh
from loadtest.truth.matching import Record
from loadtest.truth.truth import Truth

CONSERVATION = "conservation"
_LINE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Metrics = dict[str, list[tuple[dict[str, str], float]]]


def parse(text: str) -> Metrics:
    """Prometheus' text format: name → (labels, value)."""
    found: Metrics = {}
    for line in text.splitlines():
        if match := _LINE.match(line):
            labels = dict(_LABEL.findall(match[2] or ""))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """The sum of all that have these labels."""
    return sum(value for has, value in metrics.get(name, []) if all(has.get(k) == v for k, v in labels.items()))


def conservation(
    truth: Truth, homes: dict[str, Home], records: list[Record], text: str, differences: list[str] | None
) -> Finding:
    """`text` is `/metrics`; `differences` are lines of `pulsegate verify audience` (None: not asked)."""
    metrics = parse(text)
    found = Finding(counts={}, values={}, cases=[])
    requests = [r for each in truth.requests.values() for r in each]
    beats = [r for r in requests if r.call == "heartbeat"]
    good = [r for r in beats if r.decision is not None]
    _equal(found, "heartbeats received", len(beats), total(metrics, "pulsegate_requests_total", route="/v1/heartbeats"))
    _equal(
        found, "heartbeats answered 200", len(good), total(metrics, "pulsegate_requests_total", route="/v1/heartbeats", status="200")
    )  # fmt: skip
    for outcome in ("allow", "block"):
        asked = sum(r.decision == outcome and not r.degraded for r in requests if r.call != "stop")
        _equal(found, f"decisions: {outcome}", asked, total(metrics, "pulsegate_decisions_total", outcome=outcome))
    accepted = logged(homes)
    evidence = sum(r.call in ("signal", "edge") and r.decision is not None and not r.duplicate for r in requests)
    thinned = total(metrics, "pulsegate_thinned_events_total")
    in_log = total(metrics, "pulsegate_mirrored_events", topic="heartbeats")
    _equal(found, "heartbeats and evidence in the log", accepted + evidence, in_log + thinned)
    _equal(
        found,
        "events in the lake",
        total(metrics, "pulsegate_mirrored_events"),
        total(metrics, "pulsegate_handled_events", consumer="lake"),
    )
    for name in ("pulsegate_lost_events", "pulsegate_dead_letters", "pulsegate_degraded_total"):
        _equal(found, name, 0, total(metrics, name))
    paused = sum(each["ended_at"] is None and _paused(homes, each) for each in records)
    found.count("views paused at the end of the run", paused)
    _equal(found, "views begun and ended", len(records) - paused, sum(each["ended_at"] is not None for each in records))
    if differences is not None:
        _equal(found, "recount of the audience", 0, len(differences))
    return found


def _equal(found: Finding, name: str, expected: float, got: float) -> None:
    found.count(f"{name}: expected", expected)
    found.count(f"{name}: engine", got)
    found.count("difference", abs(expected - got))
    if expected != got:
        found.case(CONSERVATION, "-", 0, f"{name}: {expected:g} by the truth, {got:g} by the engine")


def logged(homes: dict[str, Home]) -> int:
    """Heartbeats that were let go on."""
    return sum(
        each.call == "heartbeat" and each.decision == "allow" and fresh(each)
        for home in homes.values()
        for stream in home.streams.values()
        for each in stream.decided
    )


def _paused(homes: dict[str, Home], record: Record) -> bool:
    home = homes.get(record["account"])
    stream = home.streams.get(record["session"]) if home else None
    heard = [r for r in stream.decided if allows(r)] if stream else []
    return bool(heard) and heard[-1].state == "paused"
