"""What an attack is: something that can be done again and again at a steady rate, and what came of it."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import jwt

from loadtest.http1 import Answer, Pool

HEARTBEATS = "/v1/heartbeats"


@dataclass(frozen=True)
class Target:
    """What is attacked. `secret` signs tokens: an attack uses it only for those that a service would hand out."""

    base: str
    secret: str

    @property
    def port(self) -> int:
        return int(self.base.rpartition(":")[2])

    def player(self, account: str, **claims: Any) -> str:
        """A player's token, as the service's backend issues it."""
        return self.sign({"sub": account, **claims})

    def service(self, scope: str) -> str:
        """A token of the service's own backend."""
        return self.sign({"typ": "service", "scope": scope})

    def sign(self, claims: dict[str, Any]) -> str:
        now = int(time.time())
        return jwt.encode({"iat": now, "exp": now + 36_000, **claims}, self.secret, algorithm="HS256")


@dataclass(frozen=True)
class Finding:
    """Something an attack is about, counted. `most` is the goal: no more than that; None: there is none, it is only told."""

    what: str
    count: float
    of: int | None = None
    most: float | None = None

    @property
    def missed(self) -> bool:
        return self.most is not None and self.count > self.most

    def text(self) -> str:
        among = "" if self.of is None else f" of {self.of:,}"
        goal = "" if self.most is None else f" (goal {self.most:g})"
        return f"{self.what}: {self.count:,.4g}{among}{goal}"


class Attack(ABC):
    """One way to attack. An instance is one run, in one event loop."""

    name: ClassVar[str]
    line: ClassVar[str]
    """Which kind of attack, by the table in docs/security.md."""
    what: ClassVar[str]
    holds: ClassVar[str] = "a player's token"
    workers: ClassVar[bool] = False
    """Whether the background work must be there."""
    quick_times: ClassVar[bool] = False
    """A tenth of the ordinary times, so that ten seconds are ten intervals."""
    at_once: ClassVar[int] = 512
    """Under way at most; what is due meanwhile is not done, and counted."""
    connections: ClassVar[int] = 64

    def __init__(self, target: Target, rate: float, seconds: float, seed: int) -> None:
        self.target, self.rate, self.seconds = target, rate, seconds
        self.random = random.Random(seed)
        self.statuses: Counter[str] = Counter()
        self.pool = Pool(target.base, most=self.connections, timeout_s=25.0)
        self._numbers = itertools.count(int(time.time() * 1000))

    async def prepare(self) -> None:
        """What must be there before it begins; not measured."""
        return

    @abstractmethod
    async def fire(self, n: int) -> None:
        """The n-th time, from 0; called when it is due, whether or not those before have ended."""

    async def finish(self) -> list[Finding]:
        """Ends it, and says what came of it."""
        return []

    def number(self) -> int:
        """One that no call of this attack has had: `seq` of a heartbeat, part of a name."""
        return next(self._numbers)

    def tell(self, status: int | str) -> None:
        """Counts an answer."""
        self.statuses[str(status or "no answer")] += 1

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        token: str = "",
        headers: bytes = b"",
        *,
        pool: Pool | None = None,
    ) -> Answer:
        """One request over a kept connection, counted. Never raises."""
        answer = await (pool or self.pool).send(method, path, body, headers, token)
        self.tell(answer.status)
        return answer

    async def beat(self, token: str, session: str, device: str, **more: Any) -> Answer:
        """One heartbeat."""
        return await self.ask("POST", HEARTBEATS, self.beat_body(session, device, **more), token)

    def beat_body(self, session: str, device: str, **more: Any) -> bytes:
        number = self.number()
        beat = {
            "session": session, "device": device, "content": "film", "kind": "vod", "state": "playing",
            "position": number % 10**7 / 100, "seq": number, **more,
        }  # fmt: skip
        return json.dumps(beat).encode()


def allowed(answer: Answer) -> bool:
    """Whether a heartbeat was answered `allow`, by a decision or without one."""
    return answer.status == 200 and b'"decision":"allow"' in answer.body


async def together(*calls: Any) -> list[Any]:
    return list(await asyncio.gather(*calls))
