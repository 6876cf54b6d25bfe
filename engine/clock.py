"""The clock of a deployment: the Redis server's own, or, for simulations, a virtual one that moves only when it is told to.

Scripts get `now()` as their first argument: `''` tells them to ask the server. In virtual mode (`PULSEGATE_VIRTUAL_CLOCK`) they get
the virtual time, and whatever a deployment does by the clock is done when the clock moves past it (`api/clock.py`,
`workers/virtual.py`), as often as in real time (`EVERY_MS`). Times are ms since the epoch.
"""

from __future__ import annotations

import time

from msgspec import Struct

from engine.errors import Conflict
from engine.scripts import Arg
from engine.wire import Millis

EVERY_MS = {"announce": 1_000, "sweep": 750, "claim": 2_500, "publish": 5_000}
"""What is due how often, and what goes first at the same moment: the API's announcement, then the workers' `Sweep`, and `Trending`'s
claims and publications. It is due at the multiples, so who was started anew goes on in step."""
JUMP_MS = 600_000
"""A step longer than this is not filled: everything is done once, at its end. To the engine that is an outage of its own."""

Due = tuple[int, str]
"""When, and which of EVERY_MS."""


class ClockSet(Struct):
    """`POST /v1/clock`."""

    now: Millis


class Clock:
    """Real time."""

    virtual = False

    def now(self) -> Arg:
        """What scripts are told."""
        return ""

    def ms(self) -> int:
        return int(time.time() * 1000)

    def seconds(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        """Seconds, for what is repeated or forgotten after a while."""
        return time.monotonic()


class VirtualClock(Clock):
    """Stands still between two `set`s; 0 until the first."""

    virtual = True

    def __init__(self) -> None:
        self._ms = 0

    def now(self) -> Arg:
        """Raises Conflict while it was never set: nothing can be dated."""
        if not self._ms:
            raise Conflict("the virtual clock was never set: POST /v1/clock", code="clock_unset")
        return self._ms

    def ms(self) -> int:
        return self._ms

    def seconds(self) -> float:
        return self._ms / 1000

    def monotonic(self) -> float:
        return self._ms / 1000

    def set(self, ms: int) -> None:
        self._ms = ms


def due(after: int, until: int) -> list[Due]:
    """All that is due after one moment, and at the other at the latest, in its order. A first step (`after` 0) and a jump are not
    filled: everything once, at `until`."""
    if not after or until - after > JUMP_MS:
        return [(until, name) for name in EVERY_MS]
    found = [
        (at, name) for name, every in EVERY_MS.items() for at in range(after - after % every + every, until + 1, every)
    ]
    return sorted(found, key=lambda each: each[0])
