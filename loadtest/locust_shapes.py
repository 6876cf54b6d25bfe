"""Shapes of an evening: how many players there are, and what they do, as functions of time. Nothing here imports locust.

moment("final", seconds=42.0, total_s=120.0, peak=2000).players
"""

from __future__ import annotations

from dataclasses import dataclass

CALM_ZAP_S = 480.0
"""A viewer changes what is watched about every eight minutes."""


@dataclass(frozen=True)
class Phase:
    """A stretch of the evening."""

    name: str
    share: float
    """Of the run's time."""
    players: float
    """Share of the peak, at the phase's end."""
    ramp: float = 1.0
    """Share of the phase in which the number gets there, linearly from that of the phase before; 0: at once."""
    zap_s: float = CALM_ZAP_S
    """Mean time between two changes of content, of one player, s."""
    hit: bool = False
    """The players who come, come for one live channel."""
    outage: bool = False
    """The API is away; what fails is not held against it, and is counted apart."""


@dataclass(frozen=True)
class Moment:
    """What should be so at one moment."""

    phase: str
    players: int
    zap_s: float
    hit: bool
    outage: bool


SHAPES: dict[str, tuple[Phase, ...]] = {
    "steady": (Phase("join", 0.25, 1.0), Phase("steady", 0.75, 1.0)),
    "premiere": (
        Phase("before", 0.15, 0.1, ramp=0.5),
        Phase("premiere", 0.35, 1.0, hit=True),
        Phase("steady", 0.5, 1.0),
    ),
    "zapping": (
        Phase("join", 0.25, 1.0),
        Phase("steady", 0.2, 1.0),
        Phase("zapping storm", 0.35, 1.0, zap_s=10.0),
        Phase("calm", 0.2, 1.0),
    ),
    "exit": (
        Phase("join", 0.25, 1.0),
        Phase("steady", 0.3, 1.0),
        Phase("mass exit", 0.1, 0.1, ramp=0.0),
        Phase("after", 0.35, 0.1),
    ),
    "reconnect": (
        Phase("join", 0.15, 1.0),
        Phase("steady", 0.2, 1.0),
        Phase("outage", 0.3, 1.0, outage=True),
        Phase("reconnect", 0.35, 1.0),
    ),
    "final": (
        Phase("before", 0.1, 0.1, ramp=0.5),
        Phase("premiere", 0.25, 1.0, hit=True),
        Phase("steady", 0.2, 1.0),
        Phase("zapping storm", 0.2, 1.0, zap_s=10.0),
        Phase("mass exit", 0.1, 0.1, ramp=0.0),
        Phase("after", 0.15, 0.1),
    ),
}

MINUTES = dict.fromkeys(SHAPES, 2.0) | {"reconnect": 3.5}
"""How long each lasts unless told otherwise; the outage of `reconnect` is then 63 s."""


def moment(shape: str, seconds: float, total_s: float, peak: int) -> Moment | None:
    """What should be so `seconds` after the start; None when the evening is over. Raises ValueError for an unknown shape."""
    if shape not in SHAPES:
        raise ValueError(f"shape: expected one of {', '.join(SHAPES)}, got {shape!r}")
    began, before = 0.0, 0.0
    for phase in SHAPES[shape]:
        lasts = phase.share * total_s
        if seconds < began + lasts:
            ramp_s = phase.ramp * lasts
            done = 1.0 if ramp_s == 0 else min(1.0, (seconds - began) / ramp_s)
            players = round(peak * (before + (phase.players - before) * done))
            return Moment(phase.name, players, phase.zap_s, phase.hit, phase.outage)
        began, before = began + lasts, phase.players
    return None


def outages(shape: str) -> frozenset[str]:
    """Names of the shape's phases in which the API is away."""
    return frozenset(phase.name for phase in SHAPES[shape] if phase.outage)
