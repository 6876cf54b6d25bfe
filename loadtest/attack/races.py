"""Everything an account may do, all at once: never may more streams run than were paid for."""

from __future__ import annotations

import asyncio
import json
from typing import ClassVar

from loadtest.attack.base import Attack, Finding, allowed


class ParallelStarts(Attack):
    """A race is 12 requests, so that it takes place with every twelfth call."""

    name = "races"
    line = "races"
    what = "twelve devices of an account start at once; then stops, zaps, takeovers and starts, all at once"
    each: ClassVar[int] = 24
    connections = 128

    async def prepare(self) -> None:
        self._over = self._races = self._allowed = self._running_over = 0

    async def fire(self, n: int) -> None:
        if n % self.each:
            return
        paid = self.random.randint(1, 3)
        account = f"race-{self.number()}"
        token = self.target.player(account, max_streams=paid)
        answers = await asyncio.gather(*(self.beat(token, f"s{i}", f"d{i}") for i in range(12)))
        real = [answer for answer in answers if b'"degraded":true' not in answer.body]
        admitted = sum(allowed(answer) for answer in real)
        self._races += 1
        self._allowed += admitted
        self._over += admitted > paid
        await asyncio.gather(*(self._something(token, i) for i in range(11)))
        listed = await self.ask("GET", f"/v1/accounts/{account}/sessions", token=token)
        if listed.status == 200:
            running = [each for each in json.loads(listed.body)["items"] if each["rules"]]
            self._running_over += len(running) > paid

    async def _something(self, token: str, i: int) -> None:
        which = self.random.randrange(4)
        if which == 0:
            await self.ask("POST", f"/v1/sessions/s{i}/stop", token=token)
        elif which == 1:
            await self.beat(token, f"s{i}", f"d{i}", content="another")
        elif which == 2:
            body = json.dumps({"stop": "oldest", "device": f"d{i}", "content": "film", "kind": "vod"}).encode()
            await self.ask("POST", f"/v1/sessions/s{i}/takeover", body, token)
        else:
            await self.beat(token, f"t{i}", f"d{i}")

    async def finish(self) -> list[Finding]:
        return [
            Finding("races that admitted more than was paid for", self._over, self._races, most=0),
            Finding("races after which more ran", self._running_over, self._races, most=0),
        ]


ALL: tuple[type[Attack], ...] = (ParallelStarts,)
