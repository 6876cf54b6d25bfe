"""Watching more than was paid for: accounts that have paid for one stream, and fetch segments for several through the edge.

What counts is how many segments were let through that the paid stream does not explain, once the first intervals are over: until then the
rules themselves let stragglers, and what may be a zap, ride along.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import ClassVar

from loadtest.attack.base import Attack, Finding, Target, allowed

_CYCLE_S = 2.5
_SHARED = 0.15
"""What one device may share costs ten times its time (docs/rules.md), and what is under way when the credit is used up."""

Step = Callable[[], Awaitable[None]]


class Home:
    """One account with one paid stream."""

    def __init__(self, target: Target, name: str, devices: int) -> None:
        self.tokens = {
            device: target.player(name, max_streams=1, device=device) for device in (f"d{n}" for n in range(devices))
        }
        self.turn = asyncio.Lock()
        self.script: Iterator[Step] = iter(())
        self.passed: Counter[str] = Counter()
        """Device → segments let through since the cycle began."""
        self.plays = False
        """Whether the last heartbeat was allowed."""


class Fetching(Attack):
    """Homes that go through a script, step by step, each step when the one before was answered."""

    quick_times = True
    devices: ClassVar[int] = 1
    steps: ClassVar[int]
    """Requests of one cycle of the script."""
    explained_s: ClassVar[float] = 3.0
    """From its beginning; three intervals."""
    granted: ClassVar[float] = 0.0
    """Share of the segments that the rules grant beyond the paid stream."""

    async def prepare(self) -> None:
        count = max(1, round(self.rate * _CYCLE_S / self.steps))
        self.homes = [Home(self.target, f"home-{n}", self.devices) for n in range(count)]
        for home in self.homes:
            home.script = self._forever(home)
        self.began = time.perf_counter()
        self.asked = self.passed = self.beyond = 0

    async def fire(self, n: int) -> None:
        if n == 0:
            self.began = time.perf_counter()
        home = self.homes[n % len(self.homes)]
        async with home.turn:
            await next(home.script)()

    async def finish(self) -> list[Finding]:
        for home in self.homes:
            self.close_cycle(home)
        return [
            Finding("segments beyond the paid stream", self.beyond, self.asked, most=round(self.granted * self.asked)),
            Finding("segments let through", self.passed, self.asked),
        ]

    def _forever(self, home: Home) -> Iterator[Step]:
        while True:
            yield from self.cycle(home)
            self.close_cycle(home)

    @abstractmethod
    def cycle(self, home: Home) -> Iterator[Step]: ...

    def close_cycle(self, home: Home) -> None:
        """Of all devices that fetched in a cycle one may have been the paid one."""
        self.beyond += home.passed.total() - max(home.passed.values(), default=0)
        home.passed.clear()

    def beating(self, home: Home, device: str, session: str, content: str, state: str = "playing") -> Step:
        async def step() -> None:
            answer = await self.beat(home.tokens[device], session, device, content=content, state=state)
            home.plays = allowed(answer)

        return step

    def stopping(self, home: Home, device: str, session: str) -> Step:
        async def step() -> None:
            await self.ask("POST", f"/v1/sessions/{session}/stop", token=home.tokens[device])

        return step

    def fetching(self, home: Home, device: str, content: str, *, besides: bool = False) -> Step:
        """`besides`: the paid stream is what the player plays, so nothing that is fetched is."""

        async def step() -> None:
            headers = f"X-Original-URI: /vod/{content}/{self.number()}.ts\r\n".encode()
            plays = home.plays
            answer = await self.ask("GET", "/v1/edge/authorize", token=home.tokens[device], headers=headers)
            if time.perf_counter() - self.began < self.explained_s:
                return
            self.asked += 1
            if answer.status == 204:
                self.passed += 1
                if besides:
                    self.beyond += plays
                else:
                    home.passed[device] += 1

        return step


class StartStopFetch(Fetching):
    name = "start-stop-fetch"
    line = "1"
    what = "three devices each start, stop, and fetch what they have stopped, again and again"
    devices = 3
    steps = 21

    def leave(self, home: Home, device: str, session: str, content: str) -> Step:
        return self.stopping(home, device, session)

    def cycle(self, home: Home) -> Iterator[Step]:
        for device in home.tokens:
            session, content = f"s{self.number()}", f"film-{device}"
            yield self.beating(home, device, session, content)
            yield self.leave(home, device, session, content)
        for _ in range(5):
            for device in home.tokens:
                yield self.fetching(home, device, f"film-{device}")


class StartEndFetch(StartStopFetch):
    name = "start-end-fetch"
    what = "the same, but the player says `error` or `ended` instead of stopping"

    def leave(self, home: Home, device: str, session: str, content: str) -> Step:
        state = "error" if self.number() % 2 else "ended"
        return self.beating(home, device, session, content, state)


class ZapFetch(Fetching):
    name = "zap-fetch"
    line = "1"
    what = "a player zaps between two films in one session; a box of the same device fetches the one left"
    steps = 12
    explained_s = 6.0
    granted = _SHARED

    def cycle(self, home: Home) -> Iterator[Step]:
        yield self.beating(home, "d0", "zapper", "film-a")
        yield self.beating(home, "d0", "zapper", "film-b")
        for _ in range(5):
            yield self.fetching(home, "d0", "film-a", besides=True)
            yield self.beating(home, "d0", "zapper", "film-b")


class SupersedeFetch(Fetching):
    name = "supersede-fetch"
    line = "1"
    what = "two sessions of one device take each other's place; a box fetches what the superseded one played"
    steps = 12
    explained_s = 6.0
    granted = _SHARED

    def cycle(self, home: Home) -> Iterator[Step]:
        left, right = f"a{self.number()}", f"b{self.number()}"
        yield self.beating(home, "d0", left, "film-a")
        yield self.beating(home, "d0", right, "film-b")
        for _ in range(5):
            yield self.fetching(home, "d0", "film-a", besides=True)
            yield self.beating(home, "d0", right, "film-b")


class ForgedName(Fetching):
    name = "forged-name"
    line = "2"
    what = "a player calls its session what the engine calls the box's; they play different films on one device"
    steps = 10
    box: ClassVar[str] = "film-box"

    def session(self) -> str:
        return "~" + hashlib.blake2b(f"d0\t{self.box}".encode(), digest_size=12).hexdigest()

    def cycle(self, home: Home) -> Iterator[Step]:
        for _ in range(5):
            yield self.beating(home, "d0", self.session(), "film-player")
            yield self.fetching(home, "d0", self.box, besides=True)


class OrdinaryName(ForgedName):
    name = "ordinary-name"
    what = "the same with an ordinary name, to compare with"

    def session(self) -> str:
        return "ordinary"


class RefusedBurst(Attack):
    """300 at once, as often as the rate allows."""

    name = "refused-burst"
    line = "3"
    what = "300 heartbeats at once of an account that is at its limit"
    connections = 400
    burst: ClassVar[int] = 300

    async def prepare(self) -> None:
        self.token = self.target.player("burst", max_streams=1)
        self.let_in = self.sent = 0
        await self.beat(self.token, "holder", "holder")

    async def fire(self, n: int) -> None:
        if n % self.burst:
            return
        await self.beat(self.token, "holder", "holder")
        calls = [self.beat(self.token, f"more-{i}", f"device-{i}") for i in range(self.burst)]
        for answer in await asyncio.gather(*calls):
            self.sent += 1
            self.let_in += allowed(answer)

    async def finish(self) -> list[Finding]:
        return [Finding("heartbeats over the limit that were allowed", self.let_in, self.sent, most=0)]


class RefusedSteady(Attack):
    name = "refused-steady"
    line = "3"
    what = "an account that is at its limit beats with a new session and device every time"

    async def prepare(self) -> None:
        self.token = self.target.player("steady", max_streams=1)
        self.let_in = self.sent = 0
        await self.beat(self.token, "holder", "holder")

    async def fire(self, n: int) -> None:
        # The stream that holds the slot goes on, or the slot would be free in the end.
        if n % 250 == 0:
            await self.beat(self.token, "holder", "holder")
            return
        self.sent += 1
        self.let_in += allowed(await self.beat(self.token, f"more-{n}", f"device-{n}"))

    async def finish(self) -> list[Finding]:
        return [Finding("heartbeats over the limit that were allowed", self.let_in, self.sent, most=0)]


class GrownSet(Attack):
    name = "grown-account"
    line = "3"
    what = "one account with max_streams 1000 starts a new device with every heartbeat"
    claims: ClassVar[dict[str, object]] = {"max_streams": 1000}
    stated: ClassVar[dict[str, object]] = {}
    """More of what a heartbeat says."""

    async def prepare(self) -> None:
        self.token = self.target.player("grown", **self.claims)

    async def fire(self, n: int) -> None:
        await self.beat(self.token, f"grown-{n}", f"device-{n}", **self.stated)

    async def finish(self) -> list[Finding]:
        answer = await self.ask("GET", "/v1/accounts/grown/sessions", token=self.token)
        return [Finding("streams of the account at the end", answer.body.count(b'"session":'))]


class NoRule(GrownSet):
    name = "grown-without-rule"
    what = "one account whose plan's rules match nothing it plays starts a new device with every heartbeat"
    claims: ClassVar[dict[str, object]] = {"plan": "narrow"}
    # A provider that nobody states matches every rule that selects on one.
    stated: ClassVar[dict[str, object]] = {"provider": "league-two"}


class FullOfEnded(Attack):
    """All that one account can make a decision read, again and again."""

    name = "full-account"
    line = "3"
    what = "an account that remembers as much as it may pauses, goes on, is refused and fetches at the edge, in turns"
    _ended: ClassVar[int] = 100

    async def prepare(self) -> None:
        self.token = self.target.player("full-account", max_streams=1)
        for n in range(self._ended):
            await self.beat(self.token, f"ended-{n}", "one-device")
            await self.ask("POST", f"/v1/sessions/ended-{n}/stop", token=self.token)
        self.let_in = self.sent = 0
        await self.beat(self.token, "holder", "holder")

    async def fire(self, n: int) -> None:
        if n % 2:
            await self.beat(self.token, "holder", "holder", state="paused" if n % 4 == 1 else "playing")
        elif n % 4:
            self.sent += 1
            self.let_in += allowed(await self.beat(self.token, "refused", "one-device"))
        else:
            headers = f"X-Original-URI: /vod/film/{n}.ts\r\n".encode()
            await self.ask("GET", "/v1/edge/authorize", token=self.token, headers=headers)

    async def finish(self) -> list[Finding]:
        return [Finding("heartbeats over the limit that were allowed", self.let_in, self.sent, most=0)]


ALL: tuple[type[Attack], ...] = (
    StartStopFetch, StartEndFetch, ZapFetch, SupersedeFetch, ForgedName, OrdinaryName, RefusedBurst, RefusedSteady, GrownSet, NoRule, FullOfEnded,
)  # fmt: skip
