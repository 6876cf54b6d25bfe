"""The multiplexed connection against a scripted peer and a real server; the router against a cluster that moves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis
import pytest
from redis import Redis
from redis.crc import key_slot

from engine import scripts
from engine.embedded import VOLATILE, Server
from engine.errors import PulsegateError, Unavailable
from engine.keys import Keys
from engine.marks import Marks
from engine.multiplex import Address, Connection
from engine.router import Router, connect
from tests.harness import World, start_cluster
from tests.listener import Serve, listening

TIMEOUT_MS = 300
SILENT_MS = 600


@asynccontextmanager
async def peer(talk: Serve) -> AsyncIterator[Address]:
    """A server of ours on loopback that says what the test wants."""
    async with listening(talk) as address:
        yield Address(*address)


@asynccontextmanager
async def connected(address: Address, timeout_ms: int = TIMEOUT_MS) -> AsyncIterator[Connection]:
    connection = Connection(address, timeout_ms=timeout_ms, silent_ms=2 * timeout_ms, retry_ms=20)
    await asyncio.wait_for(connection.open(), 5)
    connection.settle()
    try:
        yield connection
    finally:
        await connection.close()


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


async def commands(reader: asyncio.StreamReader) -> AsyncIterator[list[bytes]]:
    """What the client sends, parsed."""
    parser = hiredis.Reader()
    while data := await reader.read(65536):
        parser.feed(data)
        while (command := parser.gets()) is not False:
            yield command


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the probe, and any other command with its last argument."""
    async for command in commands(reader):
        writer.write(
            b"+PONG\r\n" if command == [b"INFO", b"server"] else b"$%d\r\n%s\r\n" % (len(command[-1]), command[-1])
        )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_replies_find_their_calls_in_order() -> None:
    async def go() -> None:
        async with peer(echo) as address, connected(address, 15_000) as connection:
            answers = await asyncio.gather(*(connection.call("ECHO", str(n)) for n in range(5000)))
            assert answers == [str(n).encode() for n in range(5000)]

    run(go())


def test_calls_of_one_tick_leave_in_one_write() -> None:
    async def go() -> None:
        async with peer(echo) as address, connected(address) as connection:
            writes = []
            transport = connection._transport
            assert transport is not None

            class Spy:
                write = staticmethod(lambda data: (writes.append(data), transport.write(data)))
                abort = staticmethod(transport.abort)

            connection._transport = Spy()  # type: ignore[assignment]
            await asyncio.gather(*(connection.call("ECHO", str(n)) for n in range(50)))
            assert len(writes) == 1

    run(go())


def test_a_silent_peer_fails_every_call_in_time_and_opens_the_breaker() -> None:
    opened = 0

    async def silent_after_ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        await reader.read(100)
        if opened == 1:
            writer.write(b"+PONG\r\n")

    async def go() -> None:
        async with peer(silent_after_ping) as address, connected(address) as connection:
            results = await asyncio.gather(*(connection.call("GET", "x") for _ in range(10)), return_exceptions=True)
            assert all(isinstance(result, Unavailable) for result in results)
            assert connection.up, "late answers are no silence yet"
            await until(lambda: not connection.up)
            call = connection.call("GET", "x")
            assert isinstance(call.exception(), Unavailable), "at once"

    run(go())


def test_a_connection_that_breaks_fails_its_calls_and_reopens() -> None:
    connections = 0

    async def breaks_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await echo(reader, writer)
            return
        async for command in commands(reader):
            if command != [b"INFO", b"server"]:
                writer.transport.abort()
                return
            writer.write(b"+PONG\r\n")

    async def go() -> None:
        async with peer(breaks_once) as address, connected(address) as connection:
            with pytest.raises(Unavailable):
                await connection.call("GET", "x")
            await until(lambda: connection.up)
            assert connection.settled, "so short a break makes nothing run out"
            assert await connection.call("ECHO", "back") == b"back"

    run(go())


@pytest.mark.parametrize("noise", [b"@nonsense\r\n", b"+one\r\n+too many\r\n"])
def test_a_peer_that_breaks_the_protocol_is_dropped(noise: bytes) -> None:
    async def noisy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands(reader):
            writer.write(b"+PONG\r\n" if command == [b"INFO", b"server"] else noise)

    async def go() -> None:
        async with peer(noisy) as address, connected(address) as connection:
            call = connection.call("GET", "x")
            await asyncio.wait([call])
            await until(lambda: not connection.up or call.exception() is None)
            assert call.exception() is not None or call.result() == b"one"

    run(go())


def test_a_server_that_is_loading_is_not_up() -> None:
    answers = [b"-LOADING the dataset\r\n", b"+PONG\r\n"]

    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for _ in commands(reader):
            writer.write(answers.pop(0) if len(answers) > 1 else answers[0])

    async def go() -> None:
        async with peer(loading) as address, connected(address) as connection:
            assert connection.up
            assert len(answers) == 1

    run(go())


def test_a_password_is_sent_first() -> None:
    said: list[list[bytes]] = []

    async def listening(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands(reader):
            said.append(command)
            writer.write(b"+OK\r\n")

    async def go() -> None:
        async with peer(listening) as address:
            secured = Address(address.host, address.port, username="u", password="p", db=2)
            async with connected(secured):
                assert said == [[b"AUTH", b"u", b"p"], [b"SELECT", b"2"], [b"INFO", b"server"]]

    run(go())


def test_unknown_scripts_are_loaded_and_their_errors_named(single: Server) -> None:
    library: dict[str, str] = {}
    add = scripts.parse("add", "-- KEYS[1] k\n-- ARGV[1] n\nreturn redis.call('INCRBY', KEYS[1], ARGV[1])", library)
    bad = scripts.parse("bad", "-- KEYS[1] k\nreturn redis.error_reply('OOPS no')", library)

    async def go() -> None:
        client: Any = await connect(single.url)
        router = Router(single.url, client, Marks(None, Keys("pg", 16)), timeout_ms=2000, silent_ms=2000, retry_ms=20)
        await router.open()
        await router.settle()
        await client.script_flush()
        await client.delete("counter")
        answers = await asyncio.gather(*(router.run(add, ["counter"], [1]) for _ in range(20)))
        assert sorted(answers) == list(range(1, 21))
        with pytest.raises(PulsegateError, match=r"bad\.lua: OOPS no"):
            await router.run(bad, ["counter"], [])
        await router.close()
        await client.aclose()

    run(go())


def test_after_a_long_outage_nothing_is_decided_before_it_is_announced(tmp_path: Path) -> None:
    server = Server(tmp_path, VOLATILE)
    server.start()
    ping = scripts.parse("ping", "-- KEYS[1] k\nreturn 1", {})

    async def go() -> None:
        client: Any = await connect(server.url)
        router = Router(
            server.url, client, Marks(None, Keys("pg", 16)), timeout_ms=TIMEOUT_MS, silent_ms=SILENT_MS, retry_ms=20
        )
        await router.open()
        await router.settle()
        assert await router.run(ping, ["k"], []) == 1
        os.kill(server.pid, signal.SIGSTOP)
        with pytest.raises(Unavailable):
            await router.run(ping, ["k"], [])
        await until(lambda: router.away_ms() > 1100)
        os.kill(server.pid, signal.SIGCONT)
        await until(lambda: all(c.up for c in router.connections()))
        with pytest.raises(Unavailable):
            await router.run(ping, ["k"], [])
        assert router.away_ms() > 1100
        assert await router.run(ping, ["k"], [], unsettled=True) == 1
        await router.settle()
        assert router.away_ms() == 0
        assert await router.run(ping, ["k"], []) == 1
        await router.close()
        await client.aclose()

    try:
        run(go())
    finally:
        os.kill(server.pid, signal.SIGCONT)
        server.stop()


def test_a_slot_that_moves_is_followed(tmp_path: Path, prefix: str) -> None:
    """MOVED and ASK: an account's partition is migrated to another node while its player beats."""
    servers = start_cluster(tmp_path)
    clients = [Redis(port=server.port) for server in servers]
    try:
        with World(servers[0].url, prefix) as world:
            assert world.beat(limit=1)["decision"] == "allow"
            keys = world.keys.account("a")
            slot = key_slot(keys.leases.encode())
            source = next(c for c in clients if c.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))
            target = next(c for c in clients if c is not source)
            ids = {c: c.execute_command("CLUSTER", "MYID").decode() for c in clients}
            target.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
            source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
            found = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
            port = target.connection_pool.connection_kwargs["port"]
            source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *found)
            world.wait(10)
            assert world.beat(limit=1)["decision"] == "allow", "ASK"
            for client in (target, source):
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target])
            world.wait(10)
            assert world.beat(limit=1)["decision"] == "allow", "MOVED"
            assert world.beat("s2", "d2", limit=1)["decision"] == "block"
            assert world.running() == {"s1"}
    finally:
        for client in clients:
            client.close()
        for server in servers:
            server.stop()


def test_one_slow_call_fails_alone() -> None:
    """The calls behind it are answered, its own late answer goes to nobody, and the connection stays."""
    release = asyncio.Event()

    async def slow_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for command in commands(reader):
            if command[-1] == b"slow":
                writer.write(b"$4\r\n")  # it has begun to answer, and so is not silent
                await release.wait()
                writer.write(b"slow\r\n")
            else:
                writer.write(b"$%d\r\n%s\r\n" % (len(command[-1]), command[-1]))

    async def go() -> None:
        async with peer(slow_once) as address, connected(address) as connection:
            slow = connection.call("ECHO", "slow")
            await asyncio.wait([slow])
            assert isinstance(slow.exception(), Unavailable)
            behind = [connection.call("ECHO", str(n)) for n in range(5)]
            release.set()
            assert await asyncio.gather(*behind) == [b"0", b"1", b"2", b"3", b"4"]
            assert connection.up
            assert connection.settled

    run(go())


class Throws:
    """A receiver in which everything goes wrong."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _throw(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(where)

    def done(self) -> bool:
        self._throw("done")
        return False

    def set_result(self, result: Any) -> None:
        self._throw("set_result")

    def set_exception(self, exception: BaseException) -> None:
        self._throw("set_exception")


@pytest.mark.parametrize("where", ["done", "set_result"])
def test_what_a_receiver_raises_touches_no_other_call(where: str) -> None:
    async def go() -> None:
        async with peer(echo) as address, connected(address) as connection:
            before = connection.call("ECHO", "before")
            assert connection.submit(Throws(where), "ECHO", "thrown")
            after = connection.call("ECHO", "after")
            assert await asyncio.gather(before, after) == [b"before", b"after"]
            assert connection.up

    run(go())


@pytest.mark.parametrize("where", ["done", "set_exception"])
@pytest.mark.parametrize("breaks", [True, False])
def test_what_a_receiver_raises_when_it_is_told_of_a_failure_touches_no_other_call(where: str, breaks: bool) -> None:
    opened = 0

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        async for command in commands(reader):
            if command == [b"INFO", b"server"]:
                writer.write(b"+PONG\r\n")
            elif breaks:
                writer.transport.abort()

    async def go() -> None:
        async with peer(deaf) as address, connected(address) as connection:
            assert connection.submit(Throws(where), "ECHO", "thrown")
            call = connection.call("ECHO", "after")
            await asyncio.wait([call])
            assert isinstance(call.exception(), Unavailable)
            await until(lambda: opened > 1 and connection.up)

    run(go())
