"""The fold: what one session's events say about its picture, as facts. A pure function over (state, event).

| event                                   | does                                                                                     |
|-----------------------------------------|------------------------------------------------------------------------------------------|
| cmcd                                    | states with the player's own clock: `fold_cmcd.py`                                       |
| heartbeat, buffer_*, bitrate_change, error, ad_*, seek | what our own players tell: `fold_own.py`                                  |
| client                                  | dimensions: operating system, browser, player, country, network                          |
| view_start, view_reopen, session_linked | which view it is; another one is another playback                                        |
| view_end                                | tells all that was gathered, gives an attempt without a frame its outcome, and `end`     |
| block                                   | an error that is meant; the player's own error that follows from it is meant, too        |

The rules, each with its reason, are in `docs/quality-facts.md`. The state lasts beyond the view's end, for the session's next view has
the same dimensions and a late report must not count twice; whoever keeps it forgets it some hours after the session's last event.
"""

from __future__ import annotations

from typing import Any

import msgspec

from engine.events import Event
from engine.quality import fold_cmcd, fold_own
from engine.quality.dims import agent_of
from engine.quality.facts import Fact
from engine.quality.fold_read import number, text, whole
from engine.quality.fold_tell import Teller
from engine.quality.state import Beats, Playback, Watched, decode, encode

__all__ = ["TYPES", "Playback", "decode", "encode", "fold"]

_VIEWS = frozenset(["view_start", "view_reopen", "session_linked"])
_TOLD = frozenset(
    [
        "buffer_start",
        "buffer_end",
        "bitrate_change",
        "error",
        "seek",
        "ad_break_start",
        "ad_start",
        "ad_end",
        "ad_break_end",
        "ad_error",
    ]
)
TYPES = _VIEWS | _TOLD | frozenset(["cmcd", "heartbeat", "client", "view_end", "block"])
"""Event types that can change anything."""
SILENT = frozenset(["timeout", "lost", "no_progress", "paused_timeout"])


def fold(state: Playback | None, event: Event) -> tuple[Playback | None, list[Fact]]:
    """The state after one event, and its facts. Never raises for an event the API has accepted; `state` stays as it was.

    None: nothing is known of the session that would be worth keeping.
    """
    if event.type not in TYPES or not event.session:
        return state, []
    s = state.mine() if state is not None else Playback()
    t = Teller(s, event)
    data = _details(event)
    if event.type == "view_end":
        _end(t, event, data)
        fold_cmcd.beacons(t)
        return (s if state is not None else None), t.facts
    if event.type == "cmcd":
        t.source = "cmcd"
    elif event.type == "heartbeat":
        t.source = "heartbeat"
    _view(t, event)
    t.learn(profile=text(event.profile, 128), device=text(event.device, 128))
    if event.type == "cmcd":
        fold_cmcd.report(t, event, data)
    elif event.type == "heartbeat":
        fold_own.heartbeat(t, event, data)
    elif event.type == "client":
        _client(t, data)
    elif event.type == "block":
        _block(t, data)
    elif event.type in _TOLD:
        fold_own.happened(t, event, data)
    fold_cmcd.beacons(t)
    return s, t.facts


def _details(event: Event) -> dict[str, Any]:
    try:
        return event.details()
    except (msgspec.DecodeError, RecursionError):
        return {}


def _view(t: Teller, event: Event) -> None:
    """Follows the engine's views. A view younger than the one that plays is another playback, unless the player was ahead of it."""
    now, begun = t.s.now, event.started_at or event.at
    if not event.view or begun > event.at:
        return
    if _is(now.view, now.begun, event, begun):
        now.kind, now.content = now.kind or event.kind, now.content or event.content
        if event.type == "view_reopen":
            now.ended = False
    elif _younger(now, event, begun):
        if now.view:
            fold_own.ended(t, event, t.s.beats.watched, t.s.beats.at)
            t.close()
            t.renew()
            t.s.beats = Beats(seen=t.s.beats.seen)
            fold_cmcd.reset(t.s.reports)
        t.s.now = _entered(now, event, begun)
    if event.type in _VIEWS:
        t.s.attempt.refused = False


def _is(view: int, view_begun: int, event: Event, begun: int) -> bool:
    return event.view == view and begun == view_begun


def _younger(now: Watched, event: Event, begun: int) -> bool:
    # A session the engine had forgotten counts its views from 1 again; one that takes over a backend's view began before itself.
    return begun > max(now.begun, now.past_begun) or event.view > max(now.view, now.past)


def _entered(old: Watched, event: Event, begun: int) -> Watched:
    new = Watched(event.content, event.kind, event.view, begun)
    if old.view:
        new.past, new.past_begun = old.view, old.begun
        # Where the player's name is the engine's, a report that has it is of the view before.
        new.left = old.cid if old.cid == old.content else ""
    else:
        new.content, new.kind = new.content or old.content, new.kind or old.kind
        new.cid, new.left, new.past, new.past_begun = old.cid, old.left, old.past, old.past_begun
    return new


def _client(t: Teller, data: dict[str, Any]) -> None:
    agent = agent_of(text(data.get("user_agent"), 4096))
    who = t.s.who
    t.learn(os=agent.os, browser=agent.browser, country=text(data.get("country"), 8), asn=text(data.get("asn")))
    if not who.player:
        t.learn(player=agent.player, player_version=agent.player_version)


def _block(t: Teller, data: dict[str, Any]) -> None:
    """The stream is refused: no failure of the picture, nor are the player's errors that follow."""
    refused = t.s.attempt.refused
    t.s.attempt.refused = True
    if not refused:
        t.tell(
            "error",
            code=text(data.get("reason")),
            message=text(data.get("rule")),
            business=True,
            started=t.s.attempt.frame,
        )


def _end(t: Teller, event: Event, data: dict[str, Any]) -> None:
    """A view's end. One that the player had left before closes nothing."""
    now, begun = t.s.now, event.started_at or event.at
    watched, last_seen = whole(data.get("watched_ms")), whole(data.get("last_seen_at"))
    mine = _is(now.view, now.begun, event, begun)
    if mine or _younger(now, event, begun):
        if not mine:
            _view(t, event)
        fold_own.ended(t, event, watched or 0, last_seen or 0)
        t.close()
        t.s.now.ended = True
    reason = text(data.get("reason"))
    t.tell(
        "end", ms=watched, value=number(data.get("max_position")), before=number(data.get("duration")), code=reason,
        completed=data.get("completed") is True, silent=reason in SILENT, started=t.s.attempt.frame, view=event.view, started_at=begun,
        content=event.content, kind=event.kind, profile=event.profile, device=event.device,
        source="cmcd" if t.s.reports.states else "heartbeat" if t.s.beats.seen else "event",
    )  # fmt: skip
