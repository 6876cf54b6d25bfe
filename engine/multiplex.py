"""The hot path's Redis client: one connection per process and node, shared by all requests.

Commands are packed by hiredis and leave in one write per event-loop tick; replies come back in order and are
matched to a queue of receivers. One timer per connection enforces the deadline of every call, so a call costs no
timer of its own. This is the one place where our own client pays: 2 µs of CPU a command against 34 µs (see
docs/decisions/002-multiplexed-connection.md). Everything else uses redis-py.

A call that is not answered in time fails alone (`Unavailable`), and its late reply is thrown away: one slow script is no
outage, and nobody else's calls fail for it. Nor do they for what a receiver raises. A connection that breaks, or is silent for
`silent_ms` while calls wait, fails all its calls at once and is the breaker: while it
is down every call fails immediately, and one probe at a time (`INFO`) tries to open it again. One that was down for
long, or comes back to another run of the server, is unsettled: leases have run out meanwhile through no fault of the players, and the
server may have forgotten what it wrote last. Nothing is decided on it until the outage has been announced
(`engine/outages.py`) and ids cannot be used twice (`engine/marks.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import hiredis

from engine.errors import Unavailable
from engine.scripts import Arg, Receiver, Script

log = logging.getLogger(__name__)

# Shorter than this no lease can have run out because of it.
_BRIEF_S = 1.0

_pack = cast("Callable[[tuple[Arg, ...]], bytes]", hiredis.pack_command)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is, and what it wants to hear first."""

    host: str
    port: int
    path: str = ""
    username: str = ""
    password: str = ""
    db: int = 0
    ssl: bool = False

    def hello(self) -> list[tuple[str, ...]]:
        """Commands to send on a new connection; the last tells which run of the server answers."""
        commands: list[tuple[str, ...]] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.db:
            commands.append(("SELECT", str(self.db)))
        return [*commands, ("INFO", "server")]


class Connection(asyncio.Protocol):
    """One multiplexed connection that keeps itself open. `run` never waits for a connection: it fails at once."""

    def __init__(self, address: Address, *, timeout_ms: int, silent_ms: int, retry_ms: int) -> None:
        self.address = address
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self.up = False
        self.settled = False
        self.down_since: float | None = self._now()
        self._timeout, self._silent = timeout_ms / 1000, max(silent_ms, timeout_ms) / 1000
        self._retry = retry_ms / 1000
        self._transport: asyncio.WriteTransport | None = None
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        self._waiting: deque[tuple[float, Receiver]] = deque()
        self._late = 0  # of those, at the head: told already that there is no answer
        self._heard_at = self._now()
        self._outgoing: list[bytes] = []
        self._timer: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._run = ""

    # opening and closing

    def open(self) -> asyncio.Task[None]:
        """Starts opening; the task ends when the connection is up or closed for good."""
        if self._opening is None or self._opening.done():
            self._opening = self._loop.create_task(self._open())
        return self._opening

    async def _open(self) -> None:
        while not self._closed and not self.up:
            try:
                async with asyncio.timeout(max(self._timeout, 0.05)):
                    await self._connect()
                    for command in self.address.hello():
                        reply = await self._send(_pack(command))
                        if isinstance(reply, hiredis.ReplyError):
                            raise Unavailable(str(reply))
            except (OSError, TimeoutError, Unavailable) as error:
                self._drop(f"cannot open: {error or type(error).__name__}")
                await asyncio.sleep(self._retry)
            else:
                self.up = True
                brief = self._now() - (self.down_since or 0) < _BRIEF_S
                run, self._run = self._run, _run_id(reply)
                self.settled = self.settled and brief and run == self._run
                if self.settled:
                    self.down_since = None

    def settle(self) -> None:
        """The outage that ended with this connection is known to all by now."""
        if self.up:
            self.settled, self.down_since = True, None

    async def _connect(self) -> None:
        a = self.address
        if a.path:
            await self._loop.create_unix_connection(lambda: self, a.path)
        else:
            await self._loop.create_connection(lambda: self, a.host, a.port, ssl=True if a.ssl else None)

    async def close(self) -> None:
        self._closed = True
        if self._opening is not None:
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        self._drop("closed")

    def _drop(self, why: str) -> None:
        was_up, self.up = self.up, False
        if was_up and self.down_since is None:
            self.down_since = self._waiting[0][0] if self._waiting else self._now()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        waiting, self._waiting = self._waiting, deque()
        late, self._late = self._late, 0
        self._outgoing.clear()
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        for _, receiver in islice(waiting, late, None):
            _fail(receiver, Unavailable(f"session Redis: {why}"))
        if was_up and not self._closed:
            log.warning("redis_down", extra={"node": f"{self.address.host}:{self.address.port}", "why": why})
            self.open()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._heard_at = self._now()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._drop(str(exc or "connection lost"))

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._now()
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        while True:
            try:
                if (reply := reader.gets()) is Ellipsis:
                    return
                _, receiver = waiting.popleft()
            except (hiredis.ProtocolError, IndexError) as error:
                self._drop(f"protocol error: {error}")
                return
            if self._late:
                self._late -= 1
                continue
            try:
                if not receiver.done():
                    receiver.set_result(reply)
            except Exception:
                log.exception("receiver")
            if self._reader is not reader:
                return  # dropped meanwhile

    # calls

    def _send(self, packed: bytes) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        if self._transport is None:
            future.set_exception(Unavailable("session Redis is away"))
        else:
            self._queue(packed, future)
        return future

    def _queue(self, packed: bytes, receiver: Receiver) -> None:
        self._waiting.append((self._now(), receiver))
        if not self._outgoing:
            self._loop.call_soon(self._flush)
            if self._timer is None:
                self._timer = self._loop.call_later(self._timeout / 8, self._check_deadline)
        self._outgoing.append(packed)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _check_deadline(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        now = self._now()
        if now - max(self._waiting[0][0], self._heard_at) > self._silent:
            self._drop("silent")
            return
        for sent_at, receiver in list(islice(self._waiting, self._late, None)):
            if now - sent_at <= self._timeout:
                break
            self._late += 1
            _fail(receiver, Unavailable("session Redis: no answer in time"))
        if self._waiting:
            self._timer = self._loop.call_later(self._timeout / 8, self._check_deadline)

    def call(self, *command: Arg) -> asyncio.Future[Any]:
        """One command. The future holds the reply (errors as `hiredis.ReplyError` values) or raises Unavailable."""
        if not self.up:
            future = self._loop.create_future()
            future.set_exception(Unavailable("session Redis is away"))
            return future
        return self._send(_pack(command))

    def submit(self, receiver: Receiver, *command: Arg) -> bool:
        """One command whose reply goes to `receiver`; False if the connection is not up."""
        if self._transport is None or not self.up:
            return False
        self._queue(_pack(command), receiver)
        return True

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """One script call; loads the script when the server does not know it. Errors are values, as in `call`."""
        command = ("EVALSHA", script.sha, len(keys), *keys, *args)
        reply = await self.call(*command)
        if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
            await self.call("SCRIPT", "LOAD", script.source)
            reply = await self.call(*command)
        return reply


def _fail(receiver: Receiver, error: Unavailable) -> None:
    try:
        if not receiver.done():
            receiver.set_exception(error)
    except Exception:
        log.exception("receiver")


def _run_id(info: object) -> str:
    """The `run_id` line of `INFO server`: changes whenever the server starts anew."""
    text = info if isinstance(info, bytes) else b""
    return next((line[7:].decode() for line in text.splitlines() if line.startswith(b"run_id:")), "")
