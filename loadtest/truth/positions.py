"""Resume error: where the engine would go on, less where the viewer really stopped; seconds of watching.

The promise is [−10, 0]: never ahead of what was on the screen, at most one heartbeat behind. It is judged where the last word
that was due reached the server, and where the place had been played: a place only moved to was not watched.
"""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

from loadtest.truth.figures import TIMES, Finding
from loadtest.truth.matching import Sitting
from loadtest.truth.truth import Play, Request

RESUME = "resume error"
LOW_S, HIGH_S = -(TIMES.interval + TIMES.tick) / 1000, 0.05
"""A heartbeat goes out at the next tick; positions are rounded to milliseconds."""
SHORT_S, EARLY_S, EARLY_RATIO = 300.0, 120.0, 0.05
"""engine/completion.py: what is never resumable, and where nothing is kept yet."""
PLAYED = frozenset(["playing"])
AFTER_PLAYING = frozenset(["paused", "buffering", "error", "ended"])

Answers = dict[tuple[str, str, str], dict[str, Any] | None]
"""(account, profile, content) → what `GET /v1/resume/{content}` answers; None: 404."""


def early(duration: float | None) -> float:
    if not duration:
        return EARLY_S
    return math.inf if duration < SHORT_S else min(EARLY_RATIO * duration, EARLY_S)


def positions(sittings: list[Sitting], begin: int, answers: Answers) -> Finding:
    """Titles that were watched from that moment on."""
    found = Finding(counts={}, values={RESUME: [], "lost on the way": []}, cases=[])
    by_title: dict[tuple[str, str, str], list[Sitting]] = defaultdict(list)
    for sitting in sittings:
        if sitting.last.kind == "vod":
            by_title[sitting.account, sitting.last.profile or "", sitting.content].append(sitting)
    for key, mine in by_title.items():
        if key in answers and max(sitting.started_at for sitting in mine) >= begin:
            _title(key, sorted(mine, key=lambda s: s.started_at), answers[key], found)
    return found


def _title(key: tuple[str, str, str], mine: list[Sitting], answer: dict[str, Any] | None, found: Finding) -> None:
    """The position is that of the last sitting that came past the point before which nothing is kept."""
    told = [(s, beat) for s in mine if (beat := _furthest_told(s)) is not None]
    kept = [s for s, _ in told]
    position = None if answer is None else answer["position"]
    if not kept:
        if position is not None:
            found.case(
                RESUME, key[0], mine[-1].ended_at, f"{key[2]}: a position ({position:g} s) where nothing was to be kept"
            )
        else:
            found.count("too early to be kept, or never heard of")
        return
    last = kept[-1]
    if any(other is not last and other.ended_at > last.started_at for other in mine):
        found.count("two at once, not judged")
        return
    truth = _stopped_at(last)
    if truth is None or last.last.last_position is None:
        found.count("never played, not judged")
        return
    where, rate = truth
    word = _last_word(last)
    if min(where, where if word is None or word.position is None else word.position) < early(last.last.duration):
        found.count("went back to before the point, not judged")
        return
    error = (position - where) / rate if position is not None else -math.inf
    if not _knowable(last, where, rate):
        found.value("lost on the way", max(error, -36_000.0))
        return
    found.value(RESUME, max(error, -36_000.0))
    if not LOW_S <= error <= HIGH_S:
        found.case(
            RESUME, key[0], last.ended_at,
            f"{key[2]}, profile {key[1]!r}: would go on at {position}, stopped at {where:.1f} s ({last.last.end}, session {last.session})",
        )  # fmt: skip


def _furthest_told(sitting: Sitting) -> Request | None:
    """A heartbeat while playing, from behind the point; None if there is none."""
    point = early(sitting.last.duration)
    told = [
        r for r in sitting.beats
        if r.call == "heartbeat" and r.state == "playing" and r.position is not None and r.position >= point and r.decision == "allow"
    ]  # fmt: skip
    return told[-1] if told else None


def _stopped_at(sitting: Sitting) -> tuple[float, float] | None:
    """(last position played, rate); None if nothing was played."""
    last = _last_played(sitting)
    return None if last is None or last.to_position is None else (last.to_position, last.rate or 1.0)


def _last_played(sitting: Sitting) -> Play | None:
    played = [p for p in sitting.plays if p.state in PLAYED and p.ended_at > p.started_at]
    return played[-1] if played else None


def _knowable(sitting: Sitting, where: float, rate: float) -> bool:
    """Whether the last word that was due was heard, and playing alone led from it to the end: after a seek of which nothing was
    heard, nobody could know."""
    last = _last_word(sitting)
    if last is None or last.position is None:
        return False
    unheard = sitting.played(last.at, sitting.ended_at)
    moved = where - last.position
    return unheard <= TIMES.interval + TIMES.tick and -0.5 <= moved <= unheard / 1000 * rate + 0.5


def _last_word(sitting: Sitting) -> Request | None:
    """The last heartbeat whose position can be trusted to have been on the screen (docs/resume.md): one while playing, or the next
    after one while playing."""
    beats = [r for r in sitting.beats if r.call == "heartbeat" and r.position is not None and r.decision == "allow"]
    for before, each in reversed(list(pairwise([None, *beats]))):
        if each is None or each.state == "playing":
            return each
        follows = before is not None and before.state == "playing" and (before.seq or 0) + 1 == (each.seq or 0)
        if follows and each.state in AFTER_PLAYING:
            return each
    return None
