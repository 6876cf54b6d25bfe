"""A whole run: the population, the clock it lives by, what is observed meanwhile, and the end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import orjson

from loadtest.http1 import Answer
from loadtest.simulator import curves, surges
from loadtest.simulator.catalogue import Catalogue
from loadtest.simulator.households import Household
from loadtest.simulator.observe import TRENDING_EVERY_MS, observe
from loadtest.simulator.plans import PLANS
from loadtest.simulator.truth import VERSION, Truth
from loadtest.simulator.view import View
from loadtest.simulator.wire import Signer
from loadtest.simulator.world import Sender, Told, World

TICK_MS = 250
STEP_MS = 1_000
"""The clock never moves further at once while somebody may watch."""
SAMPLE_EVERY_MS = 30_000
HOUSEHOLDS = 200
MONDAY_MS = 2_209_075_200_000
"""2040-01-02 00:00 UTC. A run is in the week after it, so that there is a week before for the prelude."""
INTO_HOUR_MS = 60_000
"""A run begins so long after the full hour; the clock jumps to the hour itself."""
HOURS = range(7, 23)
SETTLE_S = 300.0
CLOCK_ATTEMPTS = 3


class RunError(Exception):
    """The engine does not do what a run needs."""


@dataclass(frozen=True, slots=True)
class Options:
    """`start` ms, 0: drawn from the seed, or now. `surges` None: as many as fit. `only`: an account."""

    seed: int
    minutes: float
    households: int = HOUSEHOLDS
    surges: int | None = None
    start: int = 0
    virtual: bool = True
    only: str = ""

    @property
    def length_ms(self) -> int:
        return int(self.minutes * 60_000) // STEP_MS * STEP_MS

    def begins(self) -> int:
        if self.start:
            return self.start
        if not self.virtual:
            return int(time.time() * 1000) // TICK_MS * TICK_MS + STEP_MS
        day, hour = self.seed * 3 % 7, HOURS[self.seed * 5 % len(HOURS)]
        return MONDAY_MS + curves.WEEK_MS + day * curves.DAY_MS + hour * surges.HOUR_MS + INTO_HOUR_MS


class Clock(Protocol):
    async def move(self, now: int) -> int:
        """Goes on to that moment; the moment it really is, ms."""


class Virtual:
    """The deployment's own, which moves when it is told to."""

    def __init__(self, sender: Sender, token: str) -> None:
        self._sender, self._token = sender, token

    async def move(self, now: int) -> int:
        """Raises RunError."""
        for _ in range(CLOCK_ATTEMPTS):
            answer = await self._sender.send("POST", "/v1/clock", orjson.dumps({"now": now}), token=self._token)
            if answer.status == 200:
                return now
            if answer.status != 503:
                break
        raise RunError(f"the clock could not be moved to {now}: {_tell(answer)}")

    async def settle(self) -> None:
        """Waits until everything accepted is in the projections. Raises RunError."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            answer = await self._sender.send("GET", "/v1/clock", token=self._token)
            if answer.status != 200:
                raise RunError(f"GET /v1/clock: {_tell(answer)}")
            if orjson.loads(answer.body)["settled"]:
                return
            if time.monotonic() > deadline:
                raise RunError(f"the projections had not caught up after {SETTLE_S:g} s")
            await asyncio.sleep(0.1)


class Wall:
    """Real time."""

    async def move(self, now: int) -> int:
        await asyncio.sleep(max(0.0, now / 1000 - time.time()))
        return max(now, int(time.time() * 1000))


class Run:
    """One run against one sender. `told` is shown every request (`--verbose`)."""

    def __init__(self, options: Options, sender: Sender, truth: Truth, secret: str, told: Told | None = None) -> None:
        self.options, self._sender, self._truth = options, sender, truth
        self._signer = Signer(secret)
        self.start = options.begins()
        self.end = self.start + options.length_ms
        self._prelude = self.start - self.start % surges.HOUR_MS - curves.WEEK_MS if options.virtual else None
        self.shows = surges.planned(options.seed, self.start, self.end, options.surges, prelude=self._prelude)
        self._catalogue = Catalogue(options.seed, sorted({show.content for show in self.shows}, key=lambda c: c.id))
        self._world = World(sender, truth, self._signer, self.start, told)
        wanted = options.only
        every = (self._household(n) for n in range(1, options.households + 1) if wanted in ("", f"household-{n}"))
        self.households = list(every)
        self.members = [
            member for member in surges.members(self._world, options.seed, self.shows) if wanted in ("", member.account)
        ]
        self._clock: Clock = Virtual(sender, self._signer.service) if options.virtual else Wall()

    def _household(self, number: int) -> Household:
        return Household(self._world, self.options.seed, number, self._catalogue)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """When anything happens."""
        shown = self._prelude is not None and any(show.prelude for show in self.shows)
        prelude = [(self._prelude, self._prelude + surges.PRELUDE_MS)] if shown and self._prelude is not None else []
        return [*prelude, (self.start, self.end)]

    async def whole(self) -> None:
        """Raises RunError, ObserveError."""
        await self._ready()
        self._head()
        *before, (start, end) = self.parts
        for begin, until in before:
            if self.members:
                await self._part(begin, until, observed=False)
        if self.options.virtual:
            # A jump: nobody watches. Then the engine has a while to see that all is well.
            for now in range(start - INTO_HOUR_MS, start, STEP_MS):
                await self._clock.move(now)
        self._world.now = start
        for house in self.households:
            house.begin()
        await self._part(start, end, observed=True)
        for home in (*self.households, *self.members):
            home.end()
        self._truth.write({"type": "end", "at": self._world.now, "counts": dict(sorted(self._truth.counts.items()))})
        if isinstance(self._clock, Virtual):
            await self._clock.settle()

    async def _part(self, start: int, end: int, *, observed: bool) -> None:
        world = self._world
        now = world.now = await self._clock.move(start)
        for member in self.members:
            member.begin(start, end)
        look = start + TRENDING_EVERY_MS
        while now < end:
            due = min(now + STEP_MS, end, look, world.next_due or end)
            due += -(due - start) % TICK_MS
            now = await self._clock.move(max(due, now + TICK_MS))
            await world.tick(now)
            if now >= look:
                if observed:
                    await self._look(now, sampled=(look - start) % SAMPLE_EVERY_MS == 0)
                look += TRENDING_EVERY_MS

    async def _look(self, now: int, *, sampled: bool) -> None:
        contents = [content.id for content in self._catalogue.all] if sampled else []
        if sampled:
            self._truth.write(self._sample(now))
        self._truth.write(await observe(self._sender, self._signer.service, now, contents=contents))

    def _sample(self, now: int) -> dict[str, Any]:
        viewers: Counter[str] = Counter()
        admitted: Counter[str] = Counter()
        accounts: dict[str, set[str]] = defaultdict(set)
        for account, view in self._views():
            content = view.content.id
            if view.state == "playing":
                viewers[content] += 1
                accounts[content].add(account)
            admitted[content] += view.admitted and view.counts
        return {
            "type": "sample", "at": now, "viewers": dict(viewers), "admitted": dict(+admitted),
            "accounts": {content: len(some) for content, some in accounts.items()},
        }  # fmt: skip

    def _views(self) -> Iterator[tuple[str, View]]:
        for home in (*self.households, *self.members):
            for view in home.views:
                yield home.account, view

    async def _ready(self) -> None:
        """Raises RunError if this deployment will not do."""
        send, token = self._sender.send, self._signer.service
        answer = await send("GET", "/readyz")
        if answer.status != 200:
            raise RunError(f"the engine does not answer: {_tell(answer)}")
        answer = await send("GET", "/v1/clock", token=token)
        if self.options.virtual:
            if answer.status == 404:
                raise RunError(
                    "--time virtual: the engine lives in real time (start it with PULSEGATE_VIRTUAL_CLOCK=1)"
                )
            if answer.status != 200:
                raise RunError(f"GET /v1/clock: {_tell(answer)}")
            clock = orjson.loads(answer.body)["now"] or 0
            first = min(self.parts[0][0], self.start - INTO_HOUR_MS)
            if clock > first:
                raise RunError(f"--start: the engine's clock is beyond it already ({clock} > {first}): use a fresh one")
            await self._clock.move(first)
        elif answer.status == 200:
            raise RunError("--time real: the engine's clock is virtual")
        said = orjson.dumps([content.said() for content in self._catalogue.all])
        answer = await send("POST", "/v1/contents", said, token=token)
        if answer.status != 200:
            raise RunError(f"POST /v1/contents: {_tell(answer)}")

    def _head(self) -> None:
        write, world = self._truth.write, self._world
        world.now = self.parts[0][0]
        options = self.options
        write({
            "type": "run", "at": world.now, "seed": options.seed, "start": self.start, "parts": self.parts,
            "options": asdict(options), "plans": {name: asdict(plan) for name, plan in PLANS.items()},
            "tick_ms": TICK_MS, "version": VERSION,
        })  # fmt: skip
        for home in (*self.households, *self.members):
            write(home.line())
        for show in self.shows:
            if not show.prelude and not options.only:
                write(show.line())


def _tell(answer: Answer) -> str:
    text = answer.body[:300].decode(errors="replace")
    return f"{answer.status} {text}" if answer.status else text or "no answer"
