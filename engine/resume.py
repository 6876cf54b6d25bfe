"""Resume positions: what one heartbeat says about where a viewer stands, and how heartbeats add up. Pure functions.

A projection of the event log, one entry per (account, profile, content), kept by `workers/resume.py` and read by
`engine/resumes.py`. The rules, each with its reason, are in `docs/resume.md`; in short:

- A position counts when it was *playing* there. A pause counts as far as playing could have carried it; seeking and
  starting never count. So the position is never ahead of what was seen.
- Order is (sitting, seq), never arrival. A sitting begins with the view, and anew when its player goes on after a pause.
- Too early changes nothing. Completed is a fact of its own. A hidden title stays hidden until a later view shows it.

Keys: `of:<account>`, a hash: profile, tab, content → `Entry` as a JSON array.
"""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import msgspec
from msgspec import Struct

from engine.completion import Thresholds, completed_point, too_early_point
from engine.events import Event
from engine.keys import Space
from engine.settings import Settings

NAME = "resume"
SET, HIDE = "resume_set", "resume_hide"
TYPES = frozenset(["heartbeat", "resume", "view_reopen", SET, HIDE])
"""Event types that can change an entry."""
SLACK_S = 1.0
"""How much further than the clock a pause may be: heartbeats do not take equally long to arrive."""

_STANDING = frozenset(["paused", "buffering", "error", "ended"])


class Entry(Struct, array_like=True):
    """What is known of one title for one profile. Positions are seconds, times ms; 0 and '' stand for never and nobody.

    The order of the fields is what is stored: new ones go to the end, with a default.
    """

    position: float | None = None
    duration: float | None = None
    credits: float | None = None
    kind: str = ""
    title: str = ""
    provider: str = ""
    start_over: bool = False
    session: str = ""
    """With the next nine: the view whose heartbeats count, and the last of them."""
    device: str = ""
    view: int = 0
    started_at: int = 0
    sitting_at: int = 0
    run_at: int = 0
    seq: int = -1
    at: int = 0
    playing: bool = False
    done: bool = False
    """The viewer stands behind the completed point: nothing to continue."""
    updated_at: int = 0
    set_at: int = 0
    shown_at: int = 0
    hidden_at: int = 0
    completed_at: int = 0
    cleared_at: int = 0
    rival: tuple[str, int, int] | None = None
    """Session, ordinal and begin of the last sitting of a view other than that."""

    @property
    def hidden(self) -> bool:
        return self.hidden_at > 0 and self.shown_at <= self.hidden_at

    @property
    def in_progress(self) -> bool:
        """Belongs on the continue-watching list."""
        live = self.kind == "live" and not self.start_over
        return bool(self.position) and not (self.done or self.hidden or live)


class Said(Struct):
    """What counts here of a heartbeat's body, or of `resume_set`. Fields nobody has checked yet may be anything."""

    position: float | None = None
    state: str = ""
    rate: float = 1.0
    title: str = ""
    provider: str = ""
    duration: Any = None
    credits: Any = None
    start_over: Any = None
    completed: bool | None = None


@dataclass(frozen=True, slots=True)
class Rules:
    thresholds: Thresholds
    run_gap_ms: int
    """`seq` 0 this long after the last heartbeat is a player that started anew under its old session id."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(Thresholds.of(settings), settings.interval_ms // 2)


_said = msgspec.json.Decoder(Said)
_entry = msgspec.json.Decoder(Entry)
_encoder = msgspec.json.Encoder()
_NEW = Entry()


def encode(entry: Entry) -> bytes:
    return _encoder.encode(entry)


def decode(stored: bytes) -> Entry:
    return _entry.decode(stored)


def field(profile: str, content: str) -> str:
    """The entry's field in its account's hash: ids are printable, so none holds a tab."""
    return f"{profile}\t{content}"


def key(space: Space, account: str) -> str:
    return space.key("of", account)


def fold(entry: Entry | None, event: Event, rules: Rules) -> Entry | None:
    """The entry after one of TYPES; the same object if that changes nothing. Raises msgspec.DecodeError."""
    if event.type == "heartbeat":
        return _heartbeat(entry, event, rules)
    if event.type == SET:
        return _set(entry or _NEW, event, rules)
    if event.type == HIDE:
        return _hide(entry or _NEW, event)
    return _sit_down(entry, event)


def _heartbeat(entry: Entry | None, event: Event, rules: Rules) -> Entry | None:
    said = _said.decode(event.data)
    position = said.position
    if position is None or (event.kind == "live" and said.start_over is not True):
        return entry
    old = entry or _NEW
    duration, credits = _seconds(said.duration) or old.duration, _seconds(said.credits) or old.credits
    early = too_early_point(duration, rules.thresholds)
    if early == math.inf:
        return entry
    point = completed_point(duration, credits, rules.thresholds)
    rank = _rank(old, event, rules)
    seen = said.state == "playing" or (rank is not None and rank.same and _standing(old, event, said, position))
    finished = point is not None and position >= point and (seen or said.state == "ended")
    if rank is None:
        return _completed(old, event.at) if finished else entry
    if not finished and not (seen and position >= early):
        # A player that starts anew counts from 0 again, whether or not there is anything to see yet.
        return _follow(old, event, rank) if rank.run_at > old.run_at else entry
    new = _follow(_completed(old, event.at) if finished else old, event, rank)
    if seen:
        new.position, new.playing = position, said.state == "playing"
    new.duration, new.credits, new.done, new.updated_at = duration, credits, finished, event.at
    new.device, new.kind, new.start_over = event.device, event.kind, said.start_over is True
    new.title, new.provider = said.title or old.title, said.provider or old.provider
    new.shown_at = max(old.shown_at, rank.started_at)
    return new


class _Rank(Struct):
    """Where a heartbeat stands that is newer than what the entry knows. `same`: it goes on with the entry's view."""

    same: bool
    started_at: int
    sitting_at: int
    run_at: int = 0


def _rank(old: Entry, event: Event, rules: Rules) -> _Rank | None:
    """None if the entry knows something newer."""
    if event.at <= old.set_at:
        return None
    # A heartbeat older than the view it is filed under was spooled before that view began; which was its own is not known.
    started = event.started_at if event.view and event.started_at <= event.at else 0
    if not old.session:
        return _Rank(False, started, started)
    if event.session == old.session and (not started or (event.view == old.view and started == old.started_at)):
        run_at = old.run_at
        if event.seq == 0 and old.seq > 0 and event.at > old.at + rules.run_gap_ms:
            run_at = event.at
        elif event.at < run_at or (event.seq, event.at) <= (old.seq, old.at):
            return None
        return _Rank(True, old.started_at, old.sitting_at, run_at)
    if event.session == old.session and event.seq > old.seq and event.at > old.at:
        # One player's heartbeats are in order whatever their views: a session server that has forgotten its last second
        # goes on with the view before.
        return _Rank(False, started, max(started, old.sitting_at))
    sitting = started
    if old.rival is not None and old.rival[:2] == (event.session, event.view) and event.at >= old.rival[2]:
        sitting = old.rival[2]
    if not started or (sitting, event.session, event.view) <= (old.sitting_at, old.session, old.view):
        return None
    return _Rank(False, started, sitting)


def _standing(old: Entry, event: Event, said: Said, position: float) -> bool:
    """Did a player that does not play now play up to there? It can have if its heartbeat before was playing, and time
    enough went by. One that is missing in between may have been a seek."""
    if said.state not in _STANDING or old.position is None:
        return False
    followed = old.playing and event.seq == old.seq + 1
    played = max(0, event.at - old.at) / 1000 * said.rate + SLACK_S if followed else 0.0
    return position <= old.position + played


def _follow(old: Entry, event: Event, rank: _Rank) -> Entry:
    """A copy whose last heartbeat is this one, of which nothing was seen so far."""
    new = copy(old)
    if not rank.same:
        new.session, new.view = event.session, event.view
        if new.rival is not None and new.rival[:2] == (event.session, event.view):
            new.rival = None
    new.started_at, new.sitting_at, new.run_at = rank.started_at, rank.sitting_at, rank.run_at
    new.seq, new.at, new.playing = event.seq, event.at, False
    return new


def _completed(old: Entry, at: int) -> Entry:
    """With the fact that it was completed: since the first time after somebody last said it was not."""
    if at <= old.cleared_at or 0 < old.completed_at <= at:
        return old
    new = copy(old)
    new.completed_at = at
    return new


def _sit_down(entry: Entry | None, event: Event) -> Entry | None:
    """The player of a view goes on after a pause or a time-out: from now on it is the one the viewer sits before."""
    if entry is None or not entry.session:
        return entry
    if (event.session, event.view) == (entry.session, entry.view):
        if event.at <= entry.sitting_at:
            return entry
        new = copy(entry)
        new.sitting_at = event.at
        return new
    if event.at <= max(entry.sitting_at, entry.rival[2] if entry.rival else 0):
        return entry
    new = copy(entry)
    new.rival = (event.session, event.view, event.at)
    return new


def _set(old: Entry, event: Event, rules: Rules) -> Entry:
    """A position given by hand. It holds until something is seen that happened later."""
    said = _said.decode(event.data)
    new = copy(old)
    new.set_at, new.shown_at = max(old.set_at, event.at), max(old.shown_at, event.at)
    if event.at >= old.updated_at:
        new.position, new.updated_at, new.playing = said.position, event.at, False
        new.duration = _seconds(said.duration) or old.duration
        new.kind, new.start_over = event.kind, said.start_over is True
        new.title = said.title or old.title
        point = completed_point(new.duration, new.credits, rules.thresholds)
        reached = point is not None and said.position is not None and said.position >= point
        new.done = reached if said.completed is None else said.completed
        if new.done:
            new = _completed(new, event.at)
    elif said.completed:
        new = _completed(new, event.at)
    if said.completed is False:
        new.cleared_at = max(old.cleared_at, event.at)
        if new.completed_at <= new.cleared_at:
            new.completed_at = 0
    return new


def _hide(old: Entry, event: Event) -> Entry:
    new = copy(old)
    new.hidden_at, new.updated_at = max(old.hidden_at, event.at), old.updated_at or event.at
    return new


def _seconds(value: Any) -> float | None:
    """A length or moment that is one."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return float(value) if good else None
