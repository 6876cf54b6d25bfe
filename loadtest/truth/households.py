"""One household as it physically was: who played when, what reached the server of it, and so who may hold a slot.

A *stream* is one player instance: a session of a device. It holds a slot at a moment if the engine has admitted it and it is
physically there, or if it has vanished without a word so lately that nobody could know (a *ghost*).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property

from loadtest.truth.figures import TIMES
from loadtest.truth.truth import Household, Play, Request, Truth

EVIDENCE = frozenset(["heartbeat", "signal", "edge"])
"""Calls that show a stream alive; `check` reserves nothing, and a takeover is judged by the heartbeat after it."""
BACKEND = frozenset(["signal", "edge"])
LAST_STATES = frozenset(["ended", "error"])
JOIN_MS = 300
"""Two lines of one stream with no more than a tick between them are one stretch."""


@dataclass
class Stream:
    account: str
    session: str
    device: str
    plays: list[Play] = field(default_factory=list)
    decided: list[Request] = field(default_factory=list)
    """Fresh decisions about it and its stops, in order: what tells whether the engine has admitted it."""
    lost: list[Request] = field(default_factory=list)
    """What never reached the server."""

    @cached_property
    def spans(self) -> list[tuple[int, int, bool]]:
        """(from, to, paused), joined."""
        spans: list[tuple[int, int, bool]] = []
        for play in self.plays:
            paused = play.state == "paused"
            if spans and spans[-1][2] == paused and play.started_at - spans[-1][1] <= JOIN_MS:
                spans[-1] = (spans[-1][0], max(spans[-1][1], play.ended_at), paused)
            elif play.ended_at > play.started_at:
                spans.append((play.started_at, play.ended_at, paused))
        return spans

    @cached_property
    def first(self) -> Request | None:
        """What first admitted it."""
        return next((r for r in self.decided if allows(r)), None)

    @property
    def begun(self) -> float:
        """When it was first admitted; infinite if it never was."""
        return math.inf if self.first is None else self.first.at

    @cached_property
    def admissions(self) -> list[int]:
        """When it was let in: for the first time, and again after a block, a stop, or a silence in which its slot had to yield."""
        found, before = [], None
        for each in self.decided:
            if allows(each) and (before is None or not allows(before) or each.at - before.at >= yields_after(before)):
                found.append(each.at)
            before = each
        return found

    @cached_property
    def _times(self) -> list[int]:
        return [request.at for request in self.decided]

    @cached_property
    def _starts(self) -> list[int]:
        return [span[0] for span in self.spans]

    def span(self, at: int) -> tuple[int, int, bool] | None:
        """What it physically did at that moment."""
        place = bisect_right(self._starts, at) - 1
        if place >= 0 and at <= self.spans[place][1]:
            return self.spans[place]
        return None

    def played_through(self, start: int, end: int) -> bool:
        """Whether it was there, and not paused, all the time."""
        place = bisect_right(self._starts, start) - 1
        while place >= 0 and place < len(self.spans):
            begin, until, paused = self.spans[place]
            if paused or begin > start + JOIN_MS:
                return False
            if until >= end:
                return True
            start, place = until, place + 1
        return False

    def last(self, at: int, n: int | None = None) -> Request | None:
        """The latest decision or stop up to that moment, and before the request numbered `n` if it is given."""
        place = bisect_right(self._times, at) - 1
        while place >= 0 and n is not None and self.decided[place].at == at and self.decided[place].n >= n:
            place -= 1
        return self.decided[place] if place >= 0 else None

    def admitted(self, at: int, n: int | None = None) -> Request | None:
        """That latest one, if it lets the stream play on."""
        last = self.last(at, n)
        return last if last is not None and allows(last) else None

    def pause_known_at(self, span: tuple[int, int, bool], at: int) -> int | None:
        """When the server first heard of this pause."""
        for request in self.decided[bisect_right(self._times, span[0] - 1) :]:
            if request.at > at:
                return None
            if request.state == "paused" and allows(request):
                return request.at
        return None


def stops(request: Request) -> bool:
    """Whether it tells the engine that the stream is over."""
    return request.call == "stop" or request.state in LAST_STATES


def fresh(request: Request) -> bool:
    """Whether its answer is a decision made of it."""
    return request.call in EVIDENCE and not (request.duplicate or request.degraded) and request.decision is not None


def allows(request: Request) -> bool:
    return request.decision == "allow" and not stops(request)


def lifetime(request: Request) -> int:
    """How long this evidence keeps a lease, ms."""
    return (
        TIMES.evidence.get(request.evidence or "segment", TIMES.lifetime) if request.call in BACKEND else TIMES.lifetime
    )


def yields_after(request: Request) -> int:
    """How long after this evidence the slot yields to whoever asks, ms."""
    if request.call in BACKEND:
        return lifetime(request)
    return TIMES.paused_silent if request.state == "paused" else TIMES.stale


@dataclass(frozen=True)
class Held:
    """Who else holds the slots of a household at a moment."""

    there: list[Stream]
    """They play, or have paused for five minutes at most."""
    ghosts: list[tuple[int, Stream]]
    """(last evidence, stream): gone without a word, no longer ago than the promise allows."""
    gone: list[tuple[int, Stream]]
    """Gone without a word longer ago than that; within a minute and a half."""


@dataclass
class Home:
    household: Household
    unit: str
    streams: dict[str, Stream]
    requests: list[Request]

    @property
    def limit(self) -> int:
        return self.household.limit

    @cached_property
    def by_device(self) -> dict[str, list[Stream]]:
        found: dict[str, list[Stream]] = defaultdict(list)
        for stream in self.streams.values():
            found[stream.device].append(stream)
        return found

    def superseded(self, stream: Stream, since: int, asking: Request) -> bool:
        """Whether its device has begun another session after `since`, and before this request. Where several machines say that they
        are the same device, a newcomer takes the place of one of them, and who can tell of which."""
        mine = self.by_device[stream.device]
        for other in mine:
            r = other.first
            if other is stream or r is None or not (since <= r.at and (r.at, r.n) < (asking.at, asking.n)):
                continue
            rest = [s.admitted(r.at, r.n) for s in mine if s is not stream and s is not other]
            if not any(last is not None and r.at < last.at + lifetime(last) for last in rest):
                return True
        return False

    @cached_property
    def takeovers(self) -> list[Request]:
        """Those that were granted, in order."""
        return [r for r in self.requests if r.call == "takeover" and r.decision == "allow"]

    def several(self, device: str) -> bool:
        """Whether several machines say that they are this device."""
        return len({play.machine for each in self.by_device[device] for play in each.plays}) > 1

    def rides(self, stream: Stream, request: Request) -> bool:
        """Whether it was answered on the slot of its device's newer session (docs/rules.md)."""
        newer = [
            s.begun for s in self.by_device[stream.device] if s is not stream and stream.begun < s.begun <= request.at
        ]
        return self.unit == "device" and any(request.at <= begun + 2 * TIMES.interval for begun in newer)

    def held(self, asking: Request) -> Held:
        """Just before this request: by all streams but its own and those its device leaves behind."""
        at, n = asking.at, asking.n
        found = Held([], [], [])
        for stream in self.streams.values():
            if stream.session == asking.session:
                continue
            granted = stream.admitted(at, n)
            if granted is None:
                continue
            if stream.device == asking.device and self._newer(asking, stream):
                continue
            span = stream.span(at)
            if span is not None and not span[2]:
                found.there.append(stream)
            elif span is not None:
                known = stream.pause_known_at(span, at)
                if known is None or at < known + TIMES.paused_keep:
                    found.there.append(stream)
            elif not self.superseded(stream, granted.at, asking):
                until = granted.at + yields_after(granted)
                if at < until:
                    found.ghosts.append((granted.at, stream))
                elif at < until + 90_000:
                    found.gone.append((granted.at, stream))
        found.ghosts.sort(key=lambda each: each[0])
        found.gone.sort(key=lambda each: each[0])
        return found

    def _newer(self, asking: Request, stream: Stream) -> bool:
        """A device that starts anew takes its own earlier session's place."""
        own = self.streams.get(asking.session)
        first = own.decided[0].at if own is not None and own.decided else asking.at
        return first >= asking.at - TIMES.tick and bool(stream.decided) and stream.decided[0].at <= asking.at


def homes(truth: Truth) -> dict[str, Home]:
    """All households, by account."""
    made = {}
    for account, household in truth.households.items():
        streams: dict[str, Stream] = {}
        plan = truth.run.plans.get(household.plan)
        for play in truth.plays.get(account, []):
            stream = streams.setdefault(play.session, Stream(account, play.session, play.device))
            stream.plays.append(play)
        requests = truth.requests.get(account, [])
        for request in requests:
            if not request.session and request.call in EVIDENCE:
                request.session = _session_of(streams, request)
            if not request.session:
                continue
            stream = streams.setdefault(request.session, Stream(account, request.session, request.device))
            stream.device = stream.device or request.device
            if fresh(request) or (stops(request) and not request.duplicate):
                stream.decided.append(request)
        for each in truth.lost.get(account, []):
            if each.session in streams:
                streams[each.session].lost.append(each)
        made[account] = Home(household, plan.unit if plan else "device", streams, requests)
    return made


def _session_of(streams: dict[str, Stream], request: Request) -> str:
    """The session that backend evidence without one was about: what its device had begun last."""
    begun = [
        (play.started_at, stream.session)
        for stream in streams.values()
        if stream.device == request.device
        for play in stream.plays
        if play.machine == request.machine and play.started_at <= request.at + JOIN_MS
    ]
    return max(begun)[1] if begun else ""
