"""Connections that hurt whoever serves them: one odd packet, bodies and heads without end, many that say nothing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar, cast

from loadtest.attack.base import HEARTBEATS, Attack, Finding
from loadtest.attack.wires import RESET, post, talk


class OnePacket(Attack):
    name = "one-packet"
    line = "5"
    what = "a good heartbeat, GET /healthz and a NUL line in one write"

    async def prepare(self) -> None:
        self.token = self.target.player("packet")

    async def fire(self, n: int) -> None:
        beat = post(HEARTBEATS, self.token, self.beat_body("packet", "packet"))
        reply = await talk(self.target, [beat + b"GET /healthz HTTP/1.1\r\nHost: loopback\r\n\r\n" + b"\0\r\n\r\n"])
        self.tell(reply.said)


class Brackets(Attack):
    name = "brackets"
    line = "6"
    what = "1 MiB of `[],` to /v1/events, on eight connections"
    holds = "nothing"
    at_once = 8
    connections = 8
    body: ClassVar[bytes] = b"[],"

    async def prepare(self) -> None:
        times = 2**20 // len(self.body)
        self._text = self.body * times

    async def fire(self, n: int) -> None:
        await self.ask("POST", "/v1/events", self._text)


class Quotes(Brackets):
    name = "quotes"
    what = 'the same with `["[",`, so that what is nested must be told from what is quoted'
    body = b'["[",'


class _Piecemeal(asyncio.Protocol):
    """A connection that is fed piece by piece and counts what it is told."""

    def __init__(self, attack: Endless) -> None:
        self._attack = attack
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._attack.open_now.add(self)
        if not self._attack.reads:
            self.transport.pause_reading()
        self.transport.write(self._attack.opening)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1."):
            self._attack.tell(data[9:12].decode("latin-1"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._attack.open_now.discard(self)


class Endless(Attack):
    """Requests that never end, on some connections: each call feeds the next one another piece. One that ended is opened anew."""

    opening: ClassVar[bytes] = b"GET /healthz HTTP/1.1\r\nHost: loopback\r\n"
    piece: ClassVar[bytes]
    several: ClassVar[int]
    reads: ClassVar[bool] = True
    holds = "nothing"

    async def prepare(self) -> None:
        self.opened = self.sent = 0
        self.open_now: set[_Piecemeal] = set()
        self._fed: list[_Piecemeal | None] = [None] * self.several

    async def fire(self, n: int) -> None:
        fed = self._fed[n % self.several]
        if fed is None or fed.transport is None:
            try:
                async with asyncio.timeout(5):
                    _, fed = await asyncio.get_running_loop().create_connection(
                        lambda: _Piecemeal(self), "127.0.0.1", self.target.port
                    )
            except (OSError, TimeoutError):
                self.tell(RESET)
                return
            self._fed[n % self.several] = fed
            self.opened += 1
        transport = fed.transport
        if transport is not None and transport.get_write_buffer_size() < 2**20:
            transport.write(self.piece)
            self.sent += len(self.piece)

    async def finish(self) -> list[Finding]:
        found = [
            Finding("connections opened", self.opened),
            Finding("of them ended by the server", self.opened - len(self.open_now)),
            Finding("MB sent", self.sent / 1e6),
        ]
        # One that took long to open may have been followed by another in its place.
        for fed in self.open_now:
            if fed.transport is not None:
                fed.transport.abort()
        return found


class ManyFields(Endless):
    name = "many-header-lines"
    line = "6"
    what = "heads of ever more lines, 16 KB a time, on 32 connections"
    piece = b"X-Line: and another one, as long as one may expect\r\n" * 315
    several = 32


class LongField(Endless):
    name = "long-header-line"
    line = "6"
    what = "heads with one line that never ends, 16 KB a time, on four connections"
    opening = Endless.opening + b"X-Long: "
    piece = b"x" * 16_384
    several = 4


class DrippedHead(Endless):
    name = "dripped-head"
    line = "6"
    what = "heads byte by byte, on as many connections as the rate: a byte a second each"
    opening = Endless.opening + b"X-Long: "
    piece = b"x"
    several = 500


class SlowBody(DrippedHead):
    name = "slow-body"
    line = "slow clients"
    what = "bodies byte by byte after a whole head, a byte a second each"
    opening = b"POST /v1/heartbeats HTTP/1.1\r\nHost: loopback\r\nContent-Length: 4096\r\n\r\n"


class SlowReader(Endless):
    name = "slow-reader"
    line = "slow clients"
    what = "ever more requests for /openapi.json on 16 connections, whose answers nobody reads"
    opening = b""
    piece = b"GET /openapi.json HTTP/1.1\r\nHost: loopback\r\n\r\n"
    several = 16
    reads = False


class _Silent(asyncio.Protocol):
    def __init__(self, attack: IdleConnections, first: bytes) -> None:
        self._attack, self._first = attack, first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._attack.open_now += 1
        if self._first:
            self.transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"HTTP/1."):
            self._attack.tell(data[9:12].decode("latin-1"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._attack.open_now -= 1


class IdleConnections(Attack):
    name = "idle-connections"
    line = "7"
    what = "a new connection every time; half of them say nothing, half ask for /healthz once; none is closed"
    holds = "nothing"
    at_once = 2_000

    async def prepare(self) -> None:
        self.open_now = self.opened = 0
        self._held: list[_Silent] = []

    async def fire(self, n: int) -> None:
        first = b"GET /healthz HTTP/1.1\r\nHost: loopback\r\n\r\n" if n % 2 else b""
        try:
            async with asyncio.timeout(5):
                _, held = await asyncio.get_running_loop().create_connection(
                    lambda: _Silent(self, first), "127.0.0.1", self.target.port
                )
        except (OSError, TimeoutError):
            self.tell(RESET)
            return
        self.opened += 1
        self._held.append(held)

    async def finish(self) -> list[Finding]:
        found = [Finding("connections opened", self.opened), Finding("of them open at the end", self.open_now)]
        for held in self._held:
            with contextlib.suppress(RuntimeError):
                held.transport.abort()
        return found


ALL: tuple[type[Attack], ...] = (
    OnePacket, Brackets, Quotes, ManyFields, LongField, DrippedHead, IdleConnections, SlowBody, SlowReader,
)  # fmt: skip
