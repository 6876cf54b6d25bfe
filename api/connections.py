"""All connections of one API process: how many there may be, and how long each may take over what it does.

One timer for all, however many answers they get: a few of them are looked at each time, each about every two seconds.

When there are as many as may be, one that is missed little gives way to a new one: of a sample, those that never sent a whole request
before the others, and whoever has been silent or slow for longer before the rest. Only those that wait for an answer of ours stay. If all do, the new one
is a *guest*: it may ask whether the process is alive, and is answered 503 otherwise.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine.descriptors import connections_at_most
from engine.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 1 / 32
_PARTS = 64
_GUESTS_MAX = 64
_SEARCHED_MAX = 512
"""Connections searched at a look for those that may give way: a flood of new ones must not cost a search each."""


class Limits(NamedTuple):
    """What a connection may do."""

    connections: int
    """Of one process."""
    head_bytes: int
    fields: int
    head_s: float
    """Until a request's head is there, and until the first byte of the first."""
    body_s: float
    """Until its body is there, and until an answer is taken."""
    idle_s: float
    """Between two requests."""

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        return cls(
            connections_at_most(settings.connections_max), settings.head_max_bytes, settings.fields_max, settings.head_s,
            settings.body_s, settings.idle_s,
        )  # fmt: skip


class Connection(Protocol):
    def look(self, now: float) -> None:
        """Ends what has taken too long."""

    def missed(self, now: float) -> tuple[bool, float] | None:
        """(whether it has sent a whole request, since when it does nothing or is slow); None: it is at work."""

    def give_way(self) -> None:
        """Closes it in favour of another."""


class Connections:
    """`now` is the loop's time as of the last look: good to a few hundredths of a second, and costs nothing."""

    def __init__(self, limits: Limits, counted: Callable[[int], None]) -> None:
        self.limits = limits
        self._counted = counted
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()
        self.count = 0
        self._parts: list[set[Connection]] = [set() for _ in range(_PARTS)]
        self._entered = self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._victims: list[tuple[tuple[bool, float], int, Connection]] = []
        self._searched = 0
        self._left = _SEARCHED_MAX

    def enter(self, one: Connection) -> int:
        """Counts it; its part, to be handed to `leave`."""
        if self._timer is None:
            self.now = self._loop.time()
            self._timer = self._loop.call_later(LOOK_S, self._look)
        self.count += 1
        self._entered = (self._entered + 1) % _PARTS
        self._parts[self._entered].add(one)
        return self._entered

    def leave(self, one: Connection, part: int) -> None:
        if one in self._parts[part]:
            self._parts[part].remove(one)
            self.count -= 1

    def room(self) -> bool | None:
        """For one that has entered: True, it stays (another may have given way); False, as a guest; None, there is none."""
        if self.count <= self.limits.connections:
            return True
        victim = self._victim()
        if victim is not None:
            victim.give_way()
            return True
        return False if self.count <= self.limits.connections + _GUESTS_MAX else None

    def _victim(self) -> Connection | None:
        while True:
            while self._victims:
                known, _, one = self._victims.pop()
                if one.missed(self.now) == known:
                    return one
            if self._left <= 0:
                return None
            self._search()

    def _search(self) -> None:
        """The quarter of the next few parts that is missed least, those last that may go first."""
        found: list[tuple[tuple[bool, float], int, Connection]] = []
        for _ in range(_PARTS):
            self._searched = (self._searched + 1) % _PARTS
            part = self._parts[self._searched]
            self._left -= len(part) + 1
            found += [(known, id(one), one) for one in part if (known := one.missed(self.now))]
            if self._left <= 0:
                break
        self._victims = sorted(found)[: -(-len(found) // 4)][::-1]

    def _look(self) -> None:
        self.now = self._loop.time()
        self._left = _SEARCHED_MAX
        self._turn = (self._turn + 1) % _PARTS
        for one in tuple(self._parts[self._turn]):
            try:
                one.look(self.now)
            except Exception:
                log.exception("connection")
        if self._turn == 0 or not self.count:
            self._counted(self.count)
        self._timer = self._loop.call_later(LOOK_S, self._look) if self.count else None
