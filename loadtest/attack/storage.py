"""What one player's token can make stay in Redis, and what names inside it can stop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import ClassVar

from loadtest.attack.base import Attack, Finding

_ODD_NAMES = ("@", "@a", "a@", ":", "|", "*", "{a}", "a,b", "-", ".", "\\", "%", "\u00a7", "~", "0", "null")


class OddProviders(Attack):
    name = "odd-providers"
    line = "8"
    what = 'heartbeats of 200 accounts whose provider is called "@", and other separators'
    workers = True
    _LISTS_S: ClassVar[float] = 15.0
    """Lists come every 5 s: so long after the attack one of this time must be there."""

    async def prepare(self) -> None:
        self._tokens = [self.target.player(f"odd-{n}") for n in range(200)]

    async def fire(self, n: int) -> None:
        who = n % len(self._tokens)
        await self.beat(self._tokens[who], f"odd-{who}", f"odd-{who}", provider=_ODD_NAMES[who % len(_ODD_NAMES)])

    async def finish(self) -> list[Finding]:
        """They go on beating while the next lists are waited for."""
        ended = time.time() * 1000
        published = 0.0
        deadline = time.monotonic() + self._LISTS_S
        while published < ended and time.monotonic() < deadline:
            await asyncio.gather(*(self.fire(n) for n in range(0, len(self._tokens), 4)))
            answer = await self.ask("GET", "/v1/trending?kind=vod", token=self._tokens[0])
            published = float((json.loads(answer.body) if answer.status == 200 else {}).get("published_at") or 0)
            await asyncio.sleep(0.5)
        return [Finding(f"trending lists that did not come within {self._LISTS_S:g} s", published < ended, most=0)]


class LargeEvents(Attack):
    name = "large-events"
    line = "9"
    what = "16 events of 60 KB a request, on eight connections"
    at_once = 8
    connections = 8
    event: ClassVar[dict[str, object]] = {"type": "large_thing"}

    async def prepare(self) -> None:
        self.token = self.target.player("large")
        self._body = json.dumps(
            {"session": "large", "events": [self.event | {"data": {"x": "x" * 60_000}}] * 16}
        ).encode()

    async def fire(self, n: int) -> None:
        await self.ask("POST", "/v1/events", self._body, self.token)


class RejectedEvents(LargeEvents):
    name = "rejected-events"
    what = "the same, of a known type with a field that is wrong: rejected, and kept for a look"
    event: ClassVar[dict[str, object]] = {"type": "seek", "at": "yesterday"}


class LargeHeartbeats(Attack):
    name = "large-heartbeats"
    line = "9"
    what = "heartbeats of 60 KB of one account"

    async def prepare(self) -> None:
        self.token = self.target.player("heavy")
        self._filler = "x" * 60_000

    async def fire(self, n: int) -> None:
        await self.beat(self.token, "heavy", "heavy", more=self._filler)


class InventedContents(Attack):
    name = "invented-contents"
    line = "9"
    what = "zaps of one session to a content that nobody has heard of, every time"

    async def prepare(self) -> None:
        self.token = self.target.player("zapper")

    async def fire(self, n: int) -> None:
        await self.beat(self.token, "zapper", "zapper", content=f"invented-{self.number()}-{'x' * 90}")


class Stops(Attack):
    name = "stops"
    line = "9"
    what = "stops of a session that there is not, each with a new request id"

    async def prepare(self) -> None:
        self.token = self.target.player("stopper")

    async def fire(self, n: int) -> None:
        body = json.dumps({"request_id": f"{self.number()}-{'x' * 100}"}).encode()
        await self.ask("POST", "/v1/sessions/none/stop", body, self.token)


ALL: tuple[type[Attack], ...] = (OddProviders, LargeEvents, RejectedEvents, LargeHeartbeats, InventedContents, Stops)
