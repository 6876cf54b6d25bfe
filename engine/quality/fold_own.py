"""Measuring by our own heartbeats and events. The rules with their reasons: docs/quality-facts.md.

What was played comes from the engine's count (`watched_ms`). A heartbeat's own events follow it in the log, so what a heartbeat tells
is settled only when the next one comes, when the stalls in it are known.
"""

from __future__ import annotations

from typing import Any

from engine.events import Event
from engine.quality.fold_read import MESSAGE, number, text, whole
from engine.quality.fold_tell import GAP_MS, LONGEST_MS, PIECE_MS, Teller
from engine.quality.state import ASKED, FAILED, FINE, NONE, OVER, RUNNING

SEEK_MS = 2_000
AGAIN_MS = 5_000
"""A heartbeat that says `playing` this soon after a fatal error was under way before it."""
_DIMS = ("cdn", "edge", "player", "player_version", "app_version", "experiment")
_GOING = frozenset(["starting", "playing", "buffering", "seeking"])


def heartbeat(t: Teller, event: Event, data: dict[str, Any]) -> None:
    """One heartbeat of our own; one made of a CMCD report tells dimensions only."""
    s, b = t.s, t.s.beats
    measures = "cmcd" not in data and not s.reports.states
    late = event.at < b.at or 0 < event.at < event.started_at
    if measures and not late:
        settle(t)
    told = data.get("quality")
    quality: dict[str, Any] = told if isinstance(told, dict) else {}
    t.learn(
        provider=text(data.get("provider")),
        device_type=text(data.get("device_type")),
        **{n: text(quality.get(n)) for n in _DIMS},
    )
    t.label(quality.get("labels"))
    if not measures or late:
        return
    state = text(data.get("state"))
    if b.rate_next:
        t.rate(b.rate_next)
        b.rate_next = 0.0
    s.pieces.stalls_known = s.pieces.stalls_known or isinstance(told, dict)
    started = number(quality.get("startup_ms"), LONGEST_MS)
    ran = _ran(t)
    _opened(t, event, state, started)
    _interval(t, event, data, started, ran)
    before, b.at, b.seq, b.state, b.watched, b.seen = b.at, event.at, event.seq, state, event.watched_ms, True
    _long_stall(t, event, state, before)
    _told(t, quality)
    if state == "error":
        t.owe()
    elif state == "playing" and s.attempt.failing not in (FINE, FAILED):
        s.attempt.failing = FINE


def _ran(t: Teller) -> bool:
    """The picture had been seen before the time since the last heartbeat, or a part of it: a fatal error may have come before this one."""
    attempt = t.s.attempt
    return attempt.phase == RUNNING or (attempt.phase == OVER and attempt.frame and attempt.over_at >= t.s.beats.at)


def _opened(t: Teller, event: Event, state: str, started: float | None) -> None:
    """The attempt and its first frame, as this heartbeat tells them."""
    attempt = t.s.attempt
    if attempt.phase == OVER:
        again = state == "starting" or (state == "playing" and event.at - attempt.over_at > AGAIN_MS)
    else:
        again = attempt.phase == NONE and (state in _GOING or state == "error")
    if again:
        t.ask(event.at if state == "starting" else 0, state == "starting")
        attempt = t.s.attempt
    if attempt.phase == ASKED and (
        state == "playing" or (started is not None and state in ("buffering", "seeking", "paused"))
    ):
        since = event.at - attempt.asked if attempt.asked else None
        t.frame(int(started) if started is not None else since)
    t.s.beats.opened = t.s.beats.opened or event.at


def _interval(t: Teller, event: Event, data: dict[str, Any], started: float | None, ran: bool) -> None:
    """What the time since the last heartbeat was: played, or idle."""
    b, attempt = t.s.beats, t.s.attempt
    if b.at and attempt.frame and (ran or attempt.phase == RUNNING):
        passed = min(event.at - b.at, LONGEST_MS)
        played = max(0, min(event.watched_ms - b.watched, passed))
        if not ran:
            known = started is not None and attempt.asked > 0
            played = min(played, max(0, event.at - attempt.asked - int(started or 0))) if known else 0
        if b.state == "seeking" or (data.get("position") is None and passed > GAP_MS):
            # A seek moves the position, too; and nobody can say what a long silence without one was.
            played = 0
        if passed:
            average = (b.rate_sum + t.s.pieces.rate * max(0, event.at - max(b.rate_at, b.at))) / passed
            b.fresh_bits += average * played / 1000
        b.fresh += played
        b.idle += 0 if b.state == "paused" else passed - played
    b.due, b.later = b.due + b.later, 0
    b.rate_sum, b.rate_at = 0.0, event.at


def settle(t: Teller, closing: bool = False) -> None:
    """Tells what was played of the heartbeats so far: stalls stand in their idle time, and where there is too little of it, in what
    the engine counted as watched, for without a position it cannot see them."""
    b = t.s.beats
    if b.stall_at > 0 and not closing:
        return
    if closing:
        b.due, b.later = b.due + b.later, 0
    played = max(0, b.fresh - max(0, b.due - b.idle))
    if played:
        t.play(played, b.fresh_bits * 1000 / b.fresh)
        b.spent += played
    b.fresh, b.fresh_bits, b.idle, b.due = 0, 0.0, 0, 0


def ended(t: Teller, event: Event, watched_ms: int, last_seen_at: int) -> None:
    """The view is over: what it had watched by its last sign of life, and a stall that nobody ended."""
    b = t.s.beats
    if b.at and _ran(t) and b.state != "seeking":
        passed = max(0, min(last_seen_at, event.at) - b.at)
        passed = passed if passed <= GAP_MS else 0
        played = max(0, min(watched_ms - b.watched, passed))
        b.fresh += played
        b.fresh_bits += t.s.pieces.rate * played / 1000
        b.idle += passed - played
    if b.rate_next:
        t.rate(b.rate_next)
    if b.stall_at > 0:
        _stalled(t, (b.resumed_at or max(b.at, b.stall_at)) - b.stall_at - b.stall_told, b.at)
        t.end_stall()
    settle(t, closing=True)
    b.at = b.fresh = b.idle = b.stall_at = b.resumed_at = 0
    b.rate_next = 0.0


def _told(t: Teller, quality: dict[str, Any]) -> None:
    b, pieces = t.s.beats, t.s.pieces
    rate = number(quality.get("bitrate"), 1e12)
    if rate and not pieces.rate:
        t.rate(rate)
        if b.fresh and not b.fresh_bits:
            b.fresh_bits = rate * b.fresh / 1000
    elif rate and rate != pieces.rate:
        b.rate_next = rate
    t.drop(whole(quality.get("dropped_frames")))
    t.late_by(number(quality.get("latency_ms"), 1e9))


def _long_stall(t: Teller, event: Event, state: str, before: int) -> None:
    """A stall that goes on: told minute by minute, up to the heartbeat `before`, for this one may bring its end. One whose end was never
    told is over when the player has said twice that it plays."""
    b = t.s.beats
    if b.stall_at <= 0:
        return
    if b.resumed_at:
        _stalled(t, b.resumed_at - b.stall_at - b.stall_told, event.at)
        _stall_over(t)
        return
    lasted = before - b.stall_at - b.stall_told
    if state == "playing" and event.seq > b.stall_seq:
        b.resumed_at = event.at
    elif lasted >= PIECE_MS:
        _stalled(t, lasted, event.at)
        b.stall_told += lasted


def _stalled(t: Teller, ms: int, at: int) -> None:
    """A stall's time, never more than the session has had: durations are the player's word."""
    b = t.s.beats
    ms = max(0, min(ms, LONGEST_MS, max(at, b.at) - b.opened - b.spent))
    t.stall(ms)
    b.spent += ms
    # So much of it at most was after the last heartbeat; one that is told within a heartbeat was before it.
    after = min(ms, max(0, at - b.at - b.later))
    b.later += after
    b.due += ms - after


def _stall_over(t: Teller) -> None:
    b = t.s.beats
    t.end_stall()
    b.stall_at = b.stall_told = b.resumed_at = 0


class Said:
    """An event's fields, beside `type` or in its `data`."""

    def __init__(self, data: dict[str, Any]) -> None:
        inner = data.get("data")
        self._beside, self._inner = data, inner if isinstance(inner, dict) else {}
        self.clock = whole(data.get("at")) or 0

    def get(self, name: str) -> Any:
        found = self._beside.get(name)
        return self._inner.get(name) if found is None else found


def happened(t: Teller, event: Event, data: dict[str, Any]) -> None:
    """One event of a player or its application."""
    said = Said(data)
    if event.type == "error":
        _error(t, event, said)
    elif event.type.startswith("ad_"):
        if not t.s.ads.by_cmcd:
            _advertised(t, event, said)
    elif t.s.reports.states:
        return
    elif event.type == "buffer_start":
        _buffer_start(t, event, said)
    elif event.type == "buffer_end":
        _buffer_end(t, event, said)
    elif event.type == "bitrate_change":
        _bitrate(t, event, said)
    elif event.type == "seek":
        t.s.beats.seek_clock = said.clock


def _present(t: Teller, event: Event) -> None:
    """An event of a view that nothing was heard of yet shows that playback was asked for."""
    if t.s.attempt.phase == NONE and not t.s.now.ended and not t.s.reports.states:
        t.ask(0)
        t.s.beats.opened = t.s.beats.opened or event.at


def _within(t: Teller, event: Event) -> bool:
    """The event came in the last heartbeat, so it happened before it."""
    return 0 <= event.seq == t.s.beats.seq


def _buffer_start(t: Teller, event: Event, said: Said) -> None:
    b = t.s.beats
    t.s.pieces.stalls_known = True
    if b.stall_at > 0:
        _stalled(t, _lasted(t, event, said) - b.stall_told, event.at)
        _stall_over(t)
    sought = b.seek_clock and said.clock and 0 <= said.clock - b.seek_clock <= SEEK_MS
    b.stall_at, b.stall_clock, b.stall_told, b.stall_seq, b.resumed_at = event.at, said.clock, 0, b.seq, 0
    if t.s.attempt.phase != RUNNING or sought:
        b.stall_at = -1
    else:
        t.begin_stall()


def _buffer_end(t: Teller, event: Event, said: Said) -> None:
    b = t.s.beats
    t.s.pieces.stalls_known = True
    duration = whole(said.get("duration_ms"), 10**11)
    if b.stall_at < 0 or t.s.attempt.phase != RUNNING:
        b.stall_at = 0
        return
    if not b.stall_at:
        if duration is None:
            return
        t.begin_stall()
    lasted = _lasted(t, event, said) if duration is None else duration
    _stalled(t, lasted - b.stall_told, event.at)
    _stall_over(t)


def _lasted(t: Teller, event: Event, said: Said) -> int:
    """Of the stall that goes on: by the player's clock if it told both ends, else by the server's."""
    b = t.s.beats
    if b.stall_clock and said.clock:
        return max(0, said.clock - b.stall_clock)
    return max(0, event.at - b.stall_at)


def _bitrate(t: Teller, event: Event, said: Said) -> None:
    b, to = t.s.beats, number(said.get("to"), 1e12)
    if not to:
        return
    b.rate_next = 0.0
    if b.at and t.s.pieces.rate:
        since = max(b.rate_at, b.at)
        b.rate_sum += t.s.pieces.rate * max(0, event.at - since)
        b.rate_at = max(since, event.at)
    t.rate(to, before=number(said.get("from"), 1e12) or 0.0)


def _error(t: Teller, event: Event, said: Said) -> None:
    attempt, code = t.s.attempt, said.get("code")
    name = str(code)[:MESSAGE] if isinstance(code, str | int | float) and not isinstance(code, bool) else ""
    message, business = text(said.get("message"), MESSAGE), said.get("business") is True
    fatal = said.get("fatal") is True
    if t.s.reports.states and not business:
        return  # the reports tell of it
    if attempt.bare and fatal:
        attempt.bare = False
        return
    if fatal:
        _present(t, event)
    ends = fatal or (t.s.attempt.failing == FAILED and said.get("fatal") is None)
    t.error(name, message, ends, business)
    if ends and not t.s.reports.states:
        t.give_up()


def _advertised(t: Teller, event: Event, said: Said) -> None:
    ads, part = t.s.ads, text(said.get("ad_type")) or text(said.get("break"))
    _present(t, event)
    if not _within(t, event):
        settle(t)
    if event.type == "ad_break_start":
        t.break_starts(part)
    elif event.type == "ad_break_end":
        t.break_ends()
    elif event.type == "ad_start":
        t.ad_starts(
            whole(said.get("startup_ms"), LONGEST_MS), text(said.get("ad_type")) or ads.part or part, said.clock
        )
    elif event.type == "ad_end":
        ms = whole(said.get("watched_ms"), LONGEST_MS)
        if ms is None and ads.began and said.clock >= ads.began:
            ms = min(said.clock - ads.began, LONGEST_MS)
        t.ad_ends(ms, said.get("skipped") is True)
    elif event.type == "ad_error":
        t.tell("ad_error", code=text(said.get("code"), MESSAGE) or str(whole(said.get("code")) or ""))
