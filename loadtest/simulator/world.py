"""Time, events and requests: what all households share.

Time moves in ticks, and everything happens at a tick: what is due by it happens at its time, so that what the players say, what the
server's clock shows, and what is written as the truth are the same to the millisecond. Requests of one tick are in flight together,
but only one of each household: the order in which an account's requests reach the server is part of the truth. Answers are
handled in the order of the requests, so a run depends on nothing but its seed and the answers.
"""

from __future__ import annotations

import heapq
import itertools
import random
from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from loadtest.http1 import Answer
from loadtest.simulator.network import Link
from loadtest.simulator.truth import Truth
from loadtest.simulator.wire import Reply, Request, Signer

TOO_LATE_MS = 2_000
"""A player waits so long for an answer before it sends again."""

Told = Callable[[Request, Reply, int], None]


class Sender(Protocol):
    """`loadtest.http1.Pool`, or whatever answers in its place."""

    def send(
        self, method: str, path: str, body: bytes = b"", headers: bytes = b"", token: str = ""
    ) -> Future[Answer]: ...


class Home(Protocol):
    """What a household is to the world: its requests wait here, its events happen one after the other."""

    rng: random.Random
    link: Link
    requests: deque[Request]
    asked: int


class World:
    """`now` is ms; `told` is shown every request with its answer (`--verbose`)."""

    def __init__(self, sender: Sender, truth: Truth, signer: Signer, now: int, told: Told | None = None) -> None:
        self.sender, self.truth, self.signer, self.now = sender, truth, signer, now
        self._told = told
        self._events: list[tuple[int, int, Any, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._asking: dict[int, Home] = {}

    def at(self, home: Home, due: int, what: Callable[..., None], *args: Any) -> None:
        """Will happen at the first tick from `due` (ms) on."""
        heapq.heappush(self._events, (due, next(self._numbers), home, what, args))

    @property
    def next_due(self) -> int | None:
        return self._events[0][0] if self._events else None

    def deliver(self, home: Home, request: Request, *, surely: bool = False) -> None:
        """Sends it over the household's link, whatever becomes of it there."""
        request.sent_at = self.now
        fate = home.link.fate(home.rng)
        if surely:
            self.ask(home, request)
            return
        if fate.lost:
            self.truth.counts["lost"] += 1
            self.truth.write(request.line("lost", self.now))
            return
        request.lost_answer = fate.answer_lost
        if fate.delay_ms:
            self.at(home, self.now + fate.delay_ms, self.ask, home, request.again(late=True))
        else:
            self.ask(home, request)
        if fate.repeat_ms:
            self.at(home, self.now + fate.repeat_ms, self.ask, home, request.again(repeated=True))

    def ask(self, home: Home, request: Request) -> None:
        """Reaches the server in this tick."""
        if not request.sent_at:
            request.sent_at = self.now
        home.requests.append(request)
        self._asking[id(home)] = home

    async def tick(self, now: int) -> None:
        """Everything that is due by `now` happens at `now`, with its requests, their answers, and what follows at once."""
        self.now = now
        while True:
            self._happen()
            homes = list(self._asking.values())
            if not homes:
                return
            batch = [(home, home.requests.popleft()) for home in homes]
            self._asking = {id(home): home for home in homes if home.requests}
            futures = [self._send(request) for _, request in batch]
            for (home, request), future in zip(batch, futures, strict=True):
                self._answered(home, request, await future)

    def _happen(self) -> None:
        events, asking = self._events, self._asking
        held = []
        while events and events[0][0] <= self.now:
            event = heapq.heappop(events)
            if id(event[2]) in asking:
                held.append(event)  # first the answer
                continue
            event[3](*event[4])
        for event in held:
            heapq.heappush(events, event)

    def _send(self, request: Request) -> Future[Answer]:
        return self.sender.send(request.method, request.path, request.body, request.headers, request.token)

    def _answered(self, home: Home, request: Request, answer: Answer) -> None:
        reply = Reply.of(request, answer)
        home.asked, counts = home.asked + 1, self.truth.counts
        counts[f"call {request.call}"] += 1
        counts[f"answer {reply.decision or reply.status}"] += 1
        counts["failed"] += answer.status == 0 or answer.status >= 500
        counts["degraded"] += bool(reply.said.get("degraded"))
        self.truth.write(
            request.line("request", self.now) | {"n": home.asked, "lost_answer": request.lost_answer} | reply.fields()
        )
        if self._told is not None:
            self._told(request, reply, self.now)
        if reply.decision == "allow" and request.delivered is not None and not reply.said.get("duplicate"):
            request.delivered(request)
        too_late = request.late and self.now - request.sent_at >= TOO_LATE_MS
        if request.then is not None and not (request.lost_answer or request.repeated or too_late):
            request.then(request, reply)
