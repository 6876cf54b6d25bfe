"""All connections of one API process: how many there may be, and how long each may take over what it does.

One timer for all, however many answers they get: a fraction of them is looked at each time, each about every two seconds.

When there are as many as may be, one that is missed least gives way to a new one: of those that never sent a whole request the one
that has been silent or slow for longest, else of the others. Only those that wait for an answer of ours stay. If all do, the new one
is a *guest*: it may ask whether the process is alive, and is answered 503 otherwise.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine.descriptors import connections_at_most
from engine.settings import Settings

log = logging.getLogger(__name__)

LOOK_S = 0.25
_PARTS = 8
_GUESTS_MAX = 64
_VICTIMS = 1_024


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
    """`now` is the loop's time as of the last look: good to a quarter of a second, and costs nothing."""

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
        self._searched_at = -1.0

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
            if self._searched_at == self.now:
                return None
            # At most once a look: a flood of new connections must not cost a search each.
            self._searched_at = self.now
            idle = [(found, id(one), one) for part in self._parts for one in part if (found := one.missed(self.now))]
            self._victims = heapq.nsmallest(_VICTIMS, idle)[::-1]
            if not idle:
                return None

    def _look(self) -> None:
        self.now = self._loop.time()
        self._turn = (self._turn + 1) % _PARTS
        for one in tuple(self._parts[self._turn]):
            try:
                one.look(self.now)
            except Exception:
                log.exception("connection")
        self._counted(self.count)
        self._timer = self._loop.call_later(LOOK_S, self._look) if self.count else None
