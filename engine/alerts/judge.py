"""Whether an alert fires: a state per rule and group, moved on by each new figure. Pure: the caller brings the time.

    quiet ── breached ──▶ pending ── for `for_s` ──▶ firing ── back inside for `clear_s` ──▶ quiet
               ▲                 │ once inside
               └─────────────────┘

What fires is back inside only a tenth of the way within its bound, so a figure that stands at the bound is told once. A figure of too few
sessions breaches nothing; and what fired is over when nobody has watched for `clear_s`.

`deviates` compares with what has been usual: a slow average of the figure and of its deviation, learned while it is quiet.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from engine.alerts.rules import Rule

MARGIN = 0.1
"""How far inside its bound a figure must come, as a share of the bound."""
USUAL_HALF_LIFE_S = 6 * 3600
LEARNED = 30
"""Figures after which it is known what is usual."""
_LEAST_DEVIATION = 0.05
"""Of the usual: a figure that never moves would otherwise deviate by anything."""

Status = Literal["quiet", "pending", "firing"]


class State(msgspec.Struct):
    """One rule and group. Times are ms."""

    status: Status = "quiet"
    since: int = 0
    """When the status began."""
    inside_since: int = 0
    """Firing: since when the figure is back inside; 0: it is not."""
    at: int = 0
    value: float | None = None
    sessions: int = 0
    usual: float = 0.0
    deviation: float = 0.0
    learned: int = 0


class Told(msgspec.Struct):
    """What is told: an alert fires, or is over."""

    status: Literal["firing", "resolved"]
    at: int
    since: int
    """When the figure first breached."""
    value: float | None
    sessions: int
    bound: float


def judge(rule: Rule, state: State, now: int, value: float | None, sessions: int) -> tuple[State, Told | None]:
    """The state after a new figure (None: it cannot be measured), and what is to be told, if anything."""
    known = value if value is not None and math.isfinite(value) and sessions >= rule.sessions else None
    new = msgspec.structs.replace(state, at=now, value=value, sessions=sessions)
    bound = _bound(rule, state)
    if state.status == "firing":
        return _firing(rule, new, now, known, bound)
    if known is None or not _beyond(rule, state, known, bound):
        new.status, new.since = "quiet", state.since if state.status == "quiet" else now
        if known is not None:
            _learn(new, state, now, known)
        return new, None
    if state.status == "quiet":
        new.status, new.since = "pending", now
    if now - new.since < rule.for_s * 1000:
        return new, None
    new.status, new.inside_since = "firing", 0
    return new, Told("firing", now, new.since, value, sessions, bound)


def _firing(rule: Rule, new: State, now: int, known: float | None, bound: float) -> tuple[State, Told | None]:
    if known is not None and not _inside(rule, new, known, bound):
        new.inside_since = 0
        return new, None
    new.inside_since = new.inside_since or now
    if now - new.inside_since < rule.clear_s * 1000:
        return new, None
    told = Told("resolved", now, new.since, new.value, new.sessions, bound)
    new.status, new.since, new.inside_since = "quiet", now, 0
    return new, told


def _bound(rule: Rule, state: State) -> float:
    """Of a deviation: the upper one."""
    if rule.above is not None:
        return rule.above
    if rule.below is not None:
        return rule.below
    return state.usual + _away(rule, state)


def _away(rule: Rule, state: State) -> float:
    return (rule.deviates or 0.0) * max(state.deviation, _LEAST_DEVIATION * abs(state.usual))


def _beyond(rule: Rule, state: State, value: float, bound: float) -> bool:
    if rule.above is not None:
        return value > bound
    if rule.below is not None:
        return value < bound
    return state.learned >= LEARNED and abs(value - state.usual) > _away(rule, state)


def _inside(rule: Rule, state: State, value: float, bound: float) -> bool:
    if rule.above is not None:
        return value <= bound - MARGIN * abs(bound)
    if rule.below is not None:
        return value >= bound + MARGIN * abs(bound)
    return abs(value - state.usual) <= (1 - MARGIN) * _away(rule, state)


def _learn(new: State, old: State, now: int, value: float) -> None:
    """The first figures count alike; later ones by time."""
    new.learned = old.learned + 1
    elapsed = (now - old.at) / 1000 if old.at else 0.0
    weight = (
        max(1 / new.learned, 1 - 2 ** (-elapsed / USUAL_HALF_LIFE_S))
        if new.learned <= LEARNED
        else (1 - 2 ** (-elapsed / USUAL_HALF_LIFE_S))
    )
    new.usual = old.usual + weight * (value - old.usual)
    new.deviation = old.deviation + weight * (abs(value - new.usual) - old.deviation)
