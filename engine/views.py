"""View records: what became of each view, from its first sign of life to its end. Pure functions.

A projection of the event log, one record per view, kept by `workers/views.py`, read by `engine/viewings.py`. A view is
(account, session, ordinal); `started_at` belongs to its name, because a session id that comes back after the engine has
forgotten it counts from 1 again.

| key              | type | holds                                                         |
|------------------|------|---------------------------------------------------------------|
| of:<account>     | hash | view (session, ordinal, start; tabs between) → `View` as JSON array |
| account:<account> | zset | view → started_at                                            |
| content:<content> | zset | account, tab, view → started_at                              |
| all:<partition>  | zset | account, tab, view → started_at                               |
| open             | zset | account, tab, view → last sign of life, of views that go on   |

About 870 bytes a view. All but `open` are forgotten `views_keep_days` after the view began.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import msgspec
from msgspec import Struct

from engine.events import Event

NAME = "views"
TYPES = frozenset(["view_start", "heartbeat", "evidence", "view_end", "view_reopen", "session_linked"])
"""Event types that can change a record. A `block` is about a stream that did not come to be, or not to go on."""


class View(Struct, array_like=True):
    """Times are ms, positions and durations seconds. The order of the fields is what is stored: new ones go to the end."""

    profile: str
    device: str
    content: str
    kind: str
    started_at: int
    last_seen_at: int
    watched_ms: int = 0
    max_position: float | None = None
    revision: int = 0
    ended_at: int | None = None
    estimated_end_at: int | None = None
    reason: str | None = None
    by: str | None = None
    rule: str | None = None
    completed: bool | None = None
    duration: float | None = None

    @property
    def running(self) -> bool:
        return self.ended_at is None


class Ended(Struct):
    """The data of `view_end`."""

    reason: str
    started_at: int = 0
    last_seen_at: int = 0
    estimated_end_at: int | None = None
    watched_ms: int = 0
    max_position: float | None = None
    completed: bool | None = None
    duration: float | None = None
    by: str | None = None
    rule: str | None = None


class Linked(Struct):
    """The data of `session_linked`: `from_` is the backend's session that the player's own takes over."""

    from_: str = msgspec.field(name="from", default="")


class _Beat(Struct):
    position: float | None = None


_ended = msgspec.json.Decoder(Ended)
_linked = msgspec.json.Decoder(Linked)
_beat = msgspec.json.Decoder(_Beat)
_view = msgspec.json.Decoder(View)
_encoder = msgspec.json.Encoder()


def encode(view: View) -> bytes:
    return _encoder.encode(view)


def decode(stored: bytes) -> View:
    return _view.decode(stored)


def began(event: Event) -> int:
    """When the view of one of TYPES began; 0 if it says so of none, or of one that began only afterwards: a spooled
    heartbeat, filed under what its session was watching when it was applied."""
    if not event.view or not event.content:
        return 0
    started = event.started_at or (event.at if event.type == "view_start" else 0)
    return started if started <= event.at else 0


def name_of(session: str, ordinal: int, started_at: int) -> str:
    """The view's field in its account's hash: ids are printable, so none holds a tab."""
    return f"{session}\t{ordinal}\t{started_at}"


def adopted_from(event: Event) -> str:
    """The session whose view a `session_linked` takes over. Raises msgspec.DecodeError."""
    return _linked.decode(event.data).from_


def fold(view: View | None, event: Event, adopted: View | None = None) -> View | None:
    """The record after one of TYPES; the same object if that changes nothing. Raises msgspec.DecodeError.

    `adopted` is the record that a `session_linked` takes over, if there is one.
    """
    if event.type == "view_end":
        return _end(view, event)
    if event.type == "view_reopen":
        return _reopen(view, event)
    if view is None:
        # Backend evidence names the session it would start, not the one that it was found to belong to.
        view = None if event.type == "evidence" else _open(event, adopted)
        return view if view is None or event.type != "heartbeat" else _see(view, event)
    if event.type in ("heartbeat", "evidence"):
        return _see(view, event)
    return view


def _open(event: Event, adopted: View | None = None) -> View:
    view = View(event.profile, event.device, event.content, event.kind, began(event), event.at, revision=event.revision)
    if adopted is not None:
        view.watched_ms, view.max_position = adopted.watched_ms, adopted.max_position
    view.watched_ms = max(view.watched_ms, event.watched_ms)
    return view


def _see(view: View, event: Event) -> View:
    """A sign of life. What comes after the end is history: `view_end` has said it all."""
    if not view.running or event.content != view.content:
        return view
    new = copy(view)
    new.last_seen_at = max(view.last_seen_at, event.at)
    new.watched_ms = max(view.watched_ms, event.watched_ms)
    if event.type == "heartbeat":
        position = _beat.decode(event.data).position
        if position is not None:
            new.max_position = max(position, view.max_position or 0.0)
    return new


def _end(view: View | None, event: Event) -> View:
    if view is not None and event.revision < view.revision:
        return view
    said = _ended.decode(event.data)
    if (
        view is not None
        and not view.running
        and event.revision == view.revision
        and said.last_seen_at < view.last_seen_at
    ):
        # Ended twice: the session Redis had lost the first end, and what came before it.
        return view
    new = copy(view) if view is not None else _open(event)
    new.last_seen_at = said.last_seen_at or new.last_seen_at
    new.watched_ms, new.max_position = said.watched_ms, said.max_position
    new.revision, new.ended_at, new.estimated_end_at = event.revision, event.at, said.estimated_end_at
    new.reason, new.by, new.rule = said.reason, said.by or None, said.rule or None
    new.completed, new.duration = said.completed, said.duration
    return new


def _reopen(view: View | None, event: Event) -> View:
    if view is not None and event.revision <= view.revision:
        return view
    new = copy(view) if view is not None else _open(event)
    new.revision, new.last_seen_at = event.revision, max(new.last_seen_at, event.at)
    new.ended_at = new.estimated_end_at = new.reason = new.by = new.rule = new.completed = None
    return new


def item(account: str, name: str, view: View) -> dict[str, Any]:
    """The record as the API gives it; `name` is its field."""
    session, ordinal, _ = name.split("\t")
    return {
        "account": account, "profile": view.profile or None, "device": view.device, "session": session, "view": int(ordinal),
        "content": view.content, "kind": view.kind or None, "running": view.running, "started_at": view.started_at,
        "last_seen_at": view.last_seen_at, "ended_at": view.ended_at, "estimated_end_at": view.estimated_end_at,
        "reason": view.reason, "by": view.by, "rule": view.rule, "watched_ms": view.watched_ms,
        "max_position": view.max_position, "duration": view.duration, "completed": view.completed, "revision": view.revision,
    }  # fmt: skip
