"""Planted surges and decoys: crowds of one-person households that come and go together.

A crowd gathers at a content (`BASE` viewers), and then many more come at once. A surge is news. A decoy is the same rise at the
same hour of the week as the week before: it must not be listed (docs/trending.md). What was usual a week before a *prelude* shows:
of decoys all of it, of surges the `BASE` viewers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from loadtest.simulator.catalogue import Content
from loadtest.simulator.home import Device, Home
from loadtest.simulator.player import Player
from loadtest.simulator.wire import Reply
from loadtest.simulator.world import World

SURGES, DECOYS, REGULARS = "a", "b", "c"
"""The crowds: one for the surges, one for the decoys; in the prelude these two show a decoy each, and the regulars what surges
will begin with."""
BASE, JOIN_MIN, JOIN_MAX = 52, 108, 138
"""A surge is judged from ×3 on 50 viewers on. Without a prelude, 55 would be a surprise by themselves."""
GATHER_MS = 35_000
BEFORE_MS = 75_000
"""From the gathering to the rise."""
RISE_MS = {"live": (5_000, 20_000), "vod": (10_000, 60_000)}
LASTS_MS = 240_000
LEAVE_MS = 5_000
EVERY_MS = 5 * 60_000
MOST = 4
PRELUDE_MS = 390_000
PRELUDE_STAYS_MS = 345_000
"""The engine remembers an hour's busiest five minutes."""
PRELUDE_RISE_MS = 12_000
HOUR_MS = 3_600_000
SECOND_DECOY_MS = 420_000
FIRST_HOUR_MS = 57 * 60_000
"""From a run's start, which is shortly after the full hour."""


@dataclass(frozen=True, slots=True)
class Show:
    """One crowd at one content. Times are ms; `prelude`: as it was a week before, when all come at once."""

    crowd: str
    content: Content
    gathers_at: int
    rises_at: int
    within_ms: int
    until: int
    joining: int
    decoy: bool = False
    prelude: bool = False
    first: int = 0
    """The member of the crowd that comes first."""

    @property
    def factor(self) -> float:
        return round((BASE + self.joining) / BASE, 2)

    def line(self) -> dict[str, Any]:
        return {
            "type": "surge", "at": self.rises_at, "content": self.content.id, "kind": self.content.kind, "from": self.rises_at,
            "to": self.until, "factor": self.factor, "viewers_before": BASE, "decoy": self.decoy,
            "why": "as last week at this hour" if self.decoy else "planted",
        }  # fmt: skip

    def times(self, member: int, rng: random.Random) -> tuple[int, int] | None:
        """When this member of the crowd comes and goes."""
        member -= self.first
        if not 0 <= member < BASE + self.joining:
            return None
        if self.prelude:
            come = self.gathers_at + rng.randrange(PRELUDE_RISE_MS)
        elif member < BASE:
            come = self.gathers_at + rng.randrange(GATHER_MS)
        else:
            come = self.rises_at + (0 if member == BASE else rng.randrange(self.within_ms))
        return come, self.until + rng.randrange(LEAVE_MS)


def planned(seed: int, start: int, end: int, surges: int | None, *, prelude: int | None) -> list[Show]:
    """All shows. `surges` None: as many as fit, but 4; 0: none, and no decoys. `prelude`: when it begins; None if there is none,
    and then there are no decoys either. Whatever is usual at an hour is shown for one hour, so all of them fall into the first."""
    rng = random.Random(f"{seed}:surges")
    length = min(end - start, FIRST_HOUR_MS)
    count = max(1, min(MOST, length // EVERY_MS)) if surges is None else surges
    shows = []
    for n in range(count):
        begins, over = start + n * length // count, start + (n + 1) * length // count
        show = _show(rng, SURGES, f"surge-{n + 1}", ("live", "vod")[n % 2], begins, over)
        shows.append(show)
        if prelude is not None:
            shows.append(_before(show, REGULARS, prelude, joining=0, first=n * BASE))
    if not count or prelude is None:
        return shows
    for n, kind in enumerate(("live", "vod")):
        begins = start + n * SECOND_DECOY_MS
        if begins + BEFORE_MS + 2 * RISE_MS[kind][1] > end:
            break
        decoy = _show(rng, DECOYS, f"decoy-{n + 1}", kind, begins, min(end, begins + SECOND_DECOY_MS), decoy=True)
        shows += [decoy, _before(decoy, (DECOYS, SURGES)[n], prelude, decoy.joining)]
    return shows


def _before(show: Show, crowd: str, prelude: int, joining: int, first: int = 0) -> Show:
    """The same a week before: all come at once."""
    return Show(
        crowd,
        show.content,
        prelude,
        prelude,
        PRELUDE_RISE_MS,
        prelude + PRELUDE_STAYS_MS,
        joining,
        show.decoy,
        True,
        first,
    )


def _show(rng: random.Random, crowd: str, name: str, kind: str, begins: int, over: int, *, decoy: bool = False) -> Show:
    content = Content(name, kind, name.capitalize().replace("-", " "), 0.0 if kind == "live" else 5_400.0)
    spare = max(0, over - begins - BEFORE_MS - LASTS_MS - GATHER_MS)
    gathers = begins + rng.randrange(min(spare, 60_000) + 1)
    rises = gathers + BEFORE_MS + rng.randrange(10_000)
    until = min(over - 2 * LEAVE_MS, rises + LASTS_MS)
    within, joining = rng.randrange(*RISE_MS[kind]), rng.randrange(JOIN_MIN, JOIN_MAX + 1)
    return Show(crowd, content, gathers, rises, within, until, joining, decoy)


class Member(Home):
    """Of a crowd: watches what its shows say, and nothing happens to it."""

    def __init__(self, world: World, seed: int, crowd: str, number: int, shows: list[Show]) -> None:
        super().__init__(world, seed, f"crowd-{crowd}-{number}", "solo")
        self.devices = [Device("tv", "tv", "tv")]
        self.profiles = ["profile-1"]
        self._player: Player | None = None
        self._visits = [
            (show, times) for show in shows if show.crowd == crowd and (times := show.times(number, self.rng))
        ]

    def begin(self, start: int, end: int) -> None:
        """Whatever is to happen in that part of the run."""
        for show, (come, leave) in self._visits:
            if start <= come < end:
                self.world.at(self, come, self._come, show)
                if leave < end:
                    self.world.at(self, leave, self._go)

    def _come(self, show: Show) -> None:
        self._player = Player(self, self.profiles[0], self.devices[0], self)
        self._player.begin(show.content, 0.0 if show.content.live else 600.0)

    def _go(self) -> None:
        if self._player is not None and not self._player.over:
            self._player.stop()
        self.playing.clear()

    def started(self) -> None: ...

    def blocked(self, reply: Reply) -> None: ...

    def finished(self) -> None: ...


def members(world: World, seed: int, shows: list[Show]) -> Iterator[Member]:
    """Of all crowds that have something to see."""
    for crowd in (SURGES, DECOYS, REGULARS):
        size = max((show.first + BASE + show.joining for show in shows if show.crowd == crowd), default=0)
        for number in range(size):
            yield Member(world, seed, crowd, number, shows)
