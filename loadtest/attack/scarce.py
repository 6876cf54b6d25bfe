"""Taking all of what is scarce: event streams, and the workers' time."""

from __future__ import annotations

import asyncio
import re
import time

from loadtest.attack.base import Attack, Finding
from loadtest.attack.wires import RESET

_LAG = re.compile(rb'pulsegate_lag_seconds\{consumer="(?:resume|views)"[^}]*\} ([0-9.e+-]+)')


class EventStreams(Attack):
    name = "event-streams"
    line = "10"
    what = "one token opens streams of trending lists and keeps them"
    at_once = 2_000

    async def prepare(self) -> None:
        token = self.target.player("greedy")
        self._text = self._request(token)
        self._held: list[asyncio.StreamWriter] = []

    def _request(self, token: str) -> bytes:
        return f"GET /v1/trending/stream?kind=vod HTTP/1.1\r\nHost: loopback\r\nAuthorization: Bearer {token}\r\n\r\n".encode()

    async def fire(self, n: int) -> None:
        status, writer = await self._open(self._text)
        self.tell(status)
        if status == "200" and writer is not None:
            self._held.append(writer)
        elif writer is not None:
            writer.close()

    async def _open(self, text: bytes) -> tuple[str, asyncio.StreamWriter | None]:
        writer = None
        try:
            async with asyncio.timeout(10):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.target.port)
                writer.write(text)
                return (await reader.readline())[9:12].decode("latin-1") or "closed", writer
        except (OSError, TimeoutError):
            return RESET, writer

    async def finish(self) -> list[Finding]:
        status, mine = await self._open(self._request(self.target.player("viewer")))
        found = [
            Finding("streams held by one token", len(self._held), most=100),
            Finding("another account's stream refused", status != "200", most=0),
        ]
        for writer in [*self._held, *([mine] if mine else [])]:
            writer.close()
        return found


class Audits(Attack):
    name = "audits"
    line = "10"
    what = "audits of the last day, 60 at a time, while heartbeats of 50 accounts come"
    holds = "a service token, `read`"
    workers = True
    at_once = 110
    connections = 160

    async def prepare(self) -> None:
        self.token = self.target.service("read")
        self._players = [self.target.player(f"audited-{n}") for n in range(50)]
        self._under_way, self._lag, self._looked = 0, 0.0, 0.0

    async def fire(self, n: int) -> None:
        if n % 10 == 0 and self._under_way < 60:
            self._under_way += 1
            try:
                await self.ask("GET", f"/v1/audit/blocks?limit=1000&content=film-{n}", token=self.token)
            finally:
                self._under_way -= 1
        elif n % 10 == 1:
            await self.beat(self._players[n // 10 % 50], f"audited-{n // 10 % 50}", "device")
        elif n % 10 == 2 and time.monotonic() - self._looked > 1:
            self._looked = time.monotonic()
            await self._look()

    async def _look(self) -> None:
        answer = await self.pool.send("GET", "/metrics")
        self._lag = max([self._lag, *(float(each) for each in _LAG.findall(answer.body))])

    async def finish(self) -> list[Finding]:
        for _ in range(6):
            await self._look()
            await asyncio.sleep(1)
        return [Finding("longest lag of resume and views, s", round(self._lag, 2), most=5)]


ALL: tuple[type[Attack], ...] = (EventStreams, Audits)
