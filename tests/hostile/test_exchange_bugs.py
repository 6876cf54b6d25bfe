"""A connection alone, without a process around it: what goes wrong in one request stays in it, and what waits is bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from api.connections import Connections, Limits
from api.exchange import Door, Exchange
from api.heartbeats import Heartbeats
from api.http import Cors
from api.protocol import Protocol
from engine.errors import AccountBusy
from engine.settings import Settings
from engine.tokens import Claims
from tests.hostile.wires import HEALTH, heartbeat, request

CLAIMS = Claims(account="ann", expires_at=2**53)


class Transport(asyncio.Transport):
    """Of a peer that does as it is told, but for what `write` raises."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = self.paused = self.aborted = False
        self.error: Exception | None = None

    def write(self, data: Any) -> None:
        if self.error is not None:
            raise self.error
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def write_eof(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Stage:
    """One connection with a token that everybody knows, an application that answers nothing, and decisions that wait to be told."""

    def __init__(self) -> None:
        self.told: list[Callable[[Any], None]] = []
        self.asked: list[str] = []
        self.counted: list[int] = []
        self.busy = False
        seen = SimpleNamespace(beating={("ann", "s"): 0.0})
        services: Any = SimpleNamespace(
            settings=Settings(),
            tokens=SimpleNamespace(cached=lambda token: CLAIMS if token == "ey" else None),
            decisions=SimpleNamespace(submit=self._submit, quotas=SimpleNamespace(check_busy=self._check_busy)),
            visitors=seen,
            cors=Cors(("*",)),
            metrics=SimpleNamespace(answered=lambda route, status, seconds: self.counted.append(status)),
        )
        self.heartbeats = Heartbeats(services)
        self.transport = Transport()
        self.connections = Connections(Limits.of(Settings()), lambda count: None)
        door = Door(
            self.heartbeats.known, self.heartbeats.begin, self._route, 65_536, self.connections, lambda status: None
        )
        config = Config(self._route, log_config=None, interface="asgi3", proxy_headers=False)
        config.load()
        self.protocol = Protocol(config, ServerState(), {"door": door})
        self.protocol.connection_made(self.transport)

    def _submit(self, claims: Claims, beat: Any, body: bytes, tell: Callable[[Any], None]) -> bool:
        self.told.append(tell)
        return True

    def _check_busy(self, account: str) -> None:
        if self.busy:
            raise AccountBusy("busy")

    async def _route(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.protocol.connection_lost(None)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def staged(play: Callable[[Stage], Any]) -> None:
    async def run() -> None:
        stage = Stage()
        try:
            result = play(stage)
            if asyncio.iscoroutine(result):
                await result
        finally:
            await stage.close()

    asyncio.run(run())


def test_a_burst_of_refusals_is_answered_a_few_a_turn_whatever_becomes_of_one() -> None:
    class Asked:
        def __init__(self, number: int) -> None:
            self.claims, self.started, self._number = CLAIMS, 0.0, number

        def refuse(self, error: Exception, cors: Cors) -> None:
            if self._number == 3:
                raise RuntimeError
            answered.append(self._number)

        def fail(self, error: Exception) -> None:
            answered.append(self._number)

    async def play(stage: Stage) -> None:
        stage.busy = True
        for number in range(40):
            assert stage.heartbeats.begin(cast(Any, Asked(number)))
        turns = []
        while len(answered) < 40:
            turns.append(len(answered))
            await asyncio.sleep(0)
        assert answered == list(range(40))
        assert turns[0] == 0
        assert max(b - a for a, b in pairwise([*turns, 40])) < 20
        assert stage.counted == [429] * 40

    answered: list[int] = []
    staged(play)


class Broken:
    """Cannot be made JSON, nor be looked into."""


BROKEN: list[Any] = [{"decision": Broken()}, {"degraded": {1}}, Broken(), {1: 2}]


@pytest.mark.parametrize("decision", BROKEN, ids=range(len(BROKEN)))
def test_a_bug_ends_that_request_only(decision: Any) -> None:
    def play(stage: Stage) -> None:
        stage.protocol.data_received(heartbeat("ey"))
        stage.told[0](decision)
        stage.protocol.data_received(heartbeat("ey"))
        stage.told[1]({"decision": "allow"})
        first, second = stage.transport.written.split(b"HTTP/1.1 ")[1:]
        assert first.startswith(b"500 ")
        assert b'"internal"' in first
        assert stage.counted == [500, 200]
        assert second.startswith(b"200 ")
        assert not stage.transport.closing

    staged(play)


@pytest.mark.parametrize("how", ["closed", "aborted", "lost", "error", "closed behind another"])
@pytest.mark.parametrize("decision", [{"decision": "allow"}, None, Broken()], ids=["allow", "unknown", "broken"])
def test_nothing_reaches_whoever_tells(how: str, decision: Any) -> None:
    async def play(stage: Stage) -> None:
        protocol, transport = stage.protocol, stage.transport
        protocol.data_received(heartbeat("ey") + (HEALTH if "behind" in how else b""))
        if how == "error":
            transport.error = RuntimeError("the handler is closed")
        elif how == "lost":
            transport.error = RuntimeError("the handler is closed")
            transport.close()
            protocol.connection_lost(ConnectionResetError())
        else:
            transport.error = RuntimeError("the handler is closed")
            transport.abort() if how == "aborted" else transport.close()
        for tell in stage.told:
            tell(decision)
        await asyncio.sleep(0)

    staged(play)


def test_requests_that_wait_are_few() -> None:
    """However many come at once: the rest is neither parsed nor read."""

    async def play(stage: Stage) -> None:
        small = request("GET", "/", host="Host:")
        for _ in range(50):
            if not stage.transport.paused:
                stage.protocol.data_received(small * 5_000)
            await asyncio.sleep(0)
        assert stage.transport.paused
        assert len(stage.protocol.pipeline) < 500
        assert len(stage.asked) == 1

    staged(play)


def test_answers_that_nobody_takes_are_few() -> None:
    """A peer that sends heartbeats and does not read: when the transport is full, its heartbeats wait like all requests."""

    async def play(stage: Stage) -> None:
        stage.protocol.data_received(heartbeat("ey"))
        stage.told[0]({"decision": "allow"})
        stage.protocol.pause_writing()
        stage.protocol.data_received(heartbeat("ey"))
        await asyncio.sleep(0)
        assert len(stage.told) == 1
        assert stage.asked == ["/v1/heartbeats"]

    staged(play)


def test_a_heartbeat_byte_by_byte() -> None:
    def play(stage: Stage) -> None:
        for byte in heartbeat("ey", title="x" * 500):
            stage.protocol.data_received(bytes([byte]))
        assert len(stage.told) == 1
        stage.told[0]({"decision": "allow"})
        assert stage.transport.written.startswith(b"HTTP/1.1 200 ")

    staged(play)


def test_a_token_that_nobody_knows_is_no_exchange() -> None:
    async def play(stage: Stage) -> None:
        stage.protocol.data_received(heartbeat("eyes")[:-5])
        await asyncio.sleep(0)
        assert stage.asked == ["/v1/heartbeats"]

    staged(play)


def test_what_is_no_token_is_nobodys() -> None:
    def play(stage: Stage) -> None:
        assert [stage.heartbeats.known(line) for line in (None, b"", b"Basic x", b"Bearer ey\xff")] == [None] * 4

    staged(play)


def test_a_failing_route_is_answered() -> None:
    async def play(stage: Stage) -> None:
        async def route(scope: Any, receive: Any, send: Any) -> None:
            raise RuntimeError("a bug")

        exchange = Exchange(stage.protocol, route, CLAIMS, [], {})
        exchange.hand_over()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert stage.transport.written.startswith(b"HTTP/1.1 500 ")

    staged(play)
