"""CMCD as evidence: which reports show that a stream is alive, and the heartbeats that a player would have sent instead. Pure.

`e=t` and `e=ps` with a state are evidence; so is any report of an end (`sta` e, q or f). A player that preloads (d) has not been
asked to play: it takes no slot. Nor does one that tells no state yet, for it may wait for a click on its poster.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from engine.cmcd.parser import Report
from engine.wire import AT_MAX, Heartbeat, Kind, State

STATES: dict[str, State] = {
    "s": "starting", "p": "playing", "k": "seeking", "r": "buffering", "a": "paused", "w": "buffering", "e": "ended",
    "q": "ended", "f": "error",
}  # fmt: skip
"""What `sta` says in the words of a heartbeat. dash.js waits (w) after a seek."""
ENDS = frozenset(["ended", "error"])
_EVENTS = frozenset(["t", "ps"])
_KINDS: dict[str, Kind] = {"v": "vod", "l": "live", "ll": "live"}
_POSITION_MAX_MS = 1e11


def state_of(report: Report) -> State | None:
    """The state it gives evidence of; None if it is no evidence."""
    state = STATES.get(report.text("sta"))
    if state is None or seq_of(report) is None:
        return None
    if state == "error" and report.text("e") == "ps":
        # Its error report follows at once and belongs to the view (hls.js): that one ends it, or the next report does.
        return None
    return state if state in ENDS or report.text("e") in _EVENTS else None


def seq_of(report: Report) -> int | None:
    """What orders the session's reports: `sn`, else the player's clock (ms); None: nothing does."""
    if report.sn is not None:
        return min(report.sn, AT_MAX)
    at = report.number("ts")
    return None if at is None else min(int(at), AT_MAX)


def kind_of(report: Report) -> Kind | None:
    return _KINDS.get(report.text("st"))


@dataclass(slots=True)
class Stretch:
    """Reports of one session about one content, in order: up to the end of it, if they tell of one.

    `beats` are those to be made heartbeats of, before the reports become events; `last` ends the view, after them, so that all are
    filed under the view they belong to. Of like states in a row the newest says it all.
    """

    content: str
    reports: list[Report] = field(default_factory=list)
    beats: list[Report] = field(default_factory=list)
    last: Report | None = None


def stretches(reports: Iterable[Report], content: str) -> Iterator[Stretch]:
    """One session's reports by `sn`, cut where the content changes or ends. `content` is what it was watching so far."""
    now = Stretch(content)
    before: State | None = None
    for report in sorted(reports, key=lambda report: seq_of(report) or 0):
        content = report.text("cid") or now.content
        if now.last is not None or (content != now.content and now.reports):
            yield now
            now, before = Stretch(content), None
        now.content = content
        now.reports.append(report)
        state = state_of(report)
        if state is None:
            continue
        if state in ENDS:
            now.last = report
        elif state == before:
            now.beats[-1] = report
        else:
            now.beats.append(report)
        before = state
    if now.reports:
        yield now


@dataclass(frozen=True, slots=True)
class Stream:
    """What is known of a session beside its reports; '' is unknown."""

    content: str = ""
    kind: str = ""
    device: str = ""
    profile: str = ""
    device_type: str = ""
    provider: str = ""


def heartbeat(report: Report, session: str, stream: Stream) -> tuple[Heartbeat, bytes]:
    """The heartbeat that an evidence report stands for, and its JSON, in which `cmcd` is the report's `sn`.

    The playhead (`pt`, ms) counts for what is not live: of live it is anybody's clock.
    """
    state, seq = state_of(report), seq_of(report)
    assert state is not None
    assert seq is not None
    at, rate = report.number("pt"), report.number("pr")
    position = at / 1000 if at is not None and stream.kind != "live" and at <= _POSITION_MAX_MS else None
    beat = Heartbeat(
        session=session, content=stream.content, kind=stream.kind, state=state, seq=seq, device=stream.device,  # type: ignore[arg-type]
        position=position, profile=stream.profile, device_type=stream.device_type, provider=stream.provider,
        rate=rate if rate is not None and 0 < rate <= 16 else 1.0,
    )  # fmt: skip
    said = {
        "session": session, "content": beat.content, "kind": beat.kind, "state": state, "seq": seq, "device": beat.device,
        "position": position, "rate": beat.rate if beat.rate != 1 else None, "profile": beat.profile,
        "device_type": beat.device_type, "provider": beat.provider,
    }  # fmt: skip
    optional = ("device", "position", "rate", "profile", "device_type", "provider")
    kept = {name: value for name, value in said.items() if name not in optional or value not in ("", None)}
    return beat, orjson.dumps({"cmcd": report.sn} | kept)
