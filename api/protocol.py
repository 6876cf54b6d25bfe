"""uvicorn's HTTP protocol, which trusts nobody.

It was uvicorn's; what is left of that is how an ASGI application is called. Ours are:

- heartbeats are answered without ASGI (`api/exchange.py`), and every answer leaves in one write (`api/joined.py`);
- heads and trailers are bounded, and judged (`api/head.py`); what is sent by pieces costs its length;
- every wait is bounded (`api/bounded.py`), and so is the number of connections (`api/connections.py`);
- requests that wait for an answer on the same connection are few: the rest is not read, or not parsed, until they have theirs;
- whatever is wrong with a request is said after the answers to those before it, and then the connection ends, but not before the
  peer had a chance to read that;
- a peer that has said all it wants to say (`shutdown(SHUT_WR)`) is still answered, if that does not take seconds.

A request's `scope["state"]` has its `transport`: a stream must know when its reader takes nothing, and be able to let go of it.
When the server stops, `closing` in the lifespan's state is called, because uvicorn waits for answers under way.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import Any, NoReturn, cast
from urllib.parse import unquote

import httptools
from starlette.types import Message
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from api.bounded import BODY, HEAD, NO_MORE, NOTHING, Bounded, text_of
from api.exchange import HEARTBEATS, Exchange
from api.head import BAD, FULL, LARGE, OURS, Refusal, size, wrong
from api.http import RawHeaders
from api.joined import Joined
from engine.tokens import Claims

log = logging.getLogger(__name__)

_LENGTH_DIGITS = 9
_SLICE = 8 * 1024
"""Bytes parsed before it is looked whether requests wait: so many small ones may be in it."""
_DISCARDED = 2 * 2**20
"""Bytes of what nobody reads, after which a peer that goes on sending is cut off."""
_LONG = 256 * 1024
"""Bytes of a body from which it is not worth reading when its request is refused."""
_UNUSUAL = frozenset([b"expect", b"transfer-encoding", b"upgrade"])
_PROBES = (b"/healthz", b"/readyz")


class _Stop(Exception):
    """Stops the parser; what to answer is known by then."""


class Protocol(Bounded):
    """Pass it to uvicorn as `http="api.protocol:Protocol"`."""

    _exchange: Exchange | None = None
    """The heartbeat whose body is being read."""
    _unseen = 0
    """Bytes since the parser made something of them: a head, a piece of a body, the end of a request."""
    _rest = b""
    """What has come and is not parsed: others wait to be answered."""
    _final = b""
    _discarded = 0

    # the connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.leave(self, self._part)
        self._rest, self._reading = b"", NO_MORE
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether there is something to write yet."""
        self._ended_at = self._all.now
        if self._reading == BODY and not self._rest:
            self._abandon()
            self._reading = NO_MORE
        if not self._answering() or self._running.response_started:
            return False
        if not self._rest:
            self.cycle.keep_alive = False
        return True

    def shutdown(self) -> None:
        if closing := self.app_state.get("closing"):
            closing()
        if self._answering():
            self.cycle.keep_alive = False
        else:
            self.transport.close()

    # what comes

    def data_received(self, data: bytes) -> None:
        if self._reading == NO_MORE:
            self._discarded += len(data)
            if self._discarded > _DISCARDED:
                self.transport.abort()
        elif self._rest or self.pipeline:
            self._rest += data
            self.flow.pause_reading()
        elif len(data) > _SLICE:
            self._rest = data
            self._go_on()
        else:
            self._feed(data)

    def _go_on(self) -> None:
        """Parses what has come, unless requests wait to be answered."""
        rest, place = self._rest, 0
        while place < len(rest) and not self.pipeline and self._reading != NO_MORE:
            self._feed(rest[place : place + _SLICE])
            place += _SLICE
        if self._reading == NO_MORE:
            return
        self._rest = rest[place:]
        if self._rest or self.pipeline:
            self.flow.pause_reading()
        elif self._ended_at is None:
            self.flow.resume_reading()
        elif not self._answering():
            self.transport.close()
        else:
            self.cycle.keep_alive = False

    def _feed(self, data: bytes) -> None:
        self._unseen += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    # Nobody here speaks anything else, so what follows is HTTP.
                    data = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            if self._reading != NO_MORE:
                self._refuse(self._judged(error))
        if self._unseen > self._head_bytes and self._reading != NO_MORE:
            self._refuse(LARGE)

    def _judged(self, error: httptools.HttpParserError) -> Refusal:
        bug = error.__context__
        if not isinstance(error, httptools.HttpParserCallbackError) or bug is None:
            return BAD
        log.error("bug", exc_info=bug)
        return OURS

    def on_message_begin(self) -> None:
        # The scope is made when it is known that somebody reads it.
        self.url = b""
        self.headers = []
        self._reading = HEAD
        self._since = self._all.now

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        headers, self.headers = self.headers, []  # what follows the body is no header of it
        found = dict(headers)
        seen, self._unseen = self._unseen, 0
        if len(headers) > self._fields or (seen > self._head_bytes and size(self.url, headers) > self._head_bytes):
            self._stop(LARGE)
        if self.url == HEARTBEATS and len(found) == len(headers):
            claims = self._exchanged(found)
            if claims is not None:
                exchange = Exchange(self, self._door.route, claims, headers, found)
                self._exchange = self.cycle = self._running = cast(Any, exchange)
                self._reading = BODY
                return
        parser = self.parser
        method, version, upgrade = parser.get_method(), parser.get_http_version(), parser.should_upgrade()
        if refusal := wrong(method, version, headers, found, upgrade):
            self._stop(refusal)
        if self._guest and self.url not in _PROBES:
            self._stop(FULL)
        self._begin(method, version, headers, found)
        self._reading = BODY

    def _exchanged(self, found: dict[bytes, bytes]) -> Claims | None:
        """Whose heartbeat it is, if it can be an exchange: HTTP asks for nothing more than one knows, nobody waits, the body is not too
        long, and the token was seen before."""
        parser, door, length = self.parser, self._door, found.get(b"content-length", b"")
        running = self._running
        if (
            (running is not None and not running.response_complete)
            or self._guest
            or not _UNUSUAL.isdisjoint(found)
            or b"host" not in found
            or parser.get_method() != b"POST"
            # Without saying so, no other version of HTTP keeps a connection.
            or not parser.should_keep_alive()
            or (b"connection" in found and parser.get_http_version() != "1.1")
            or self.flow.write_paused
            or not length.isdigit()
            or len(length) > _LENGTH_DIGITS
            or int(length) > door.body_max
        ):
            return None
        return door.known(found.get(b"authorization"))

    def _begin(self, method: bytes, version: str, headers: RawHeaders, found: dict[bytes, bytes]) -> None:
        """Calls the application, or has the request wait for those before it."""
        try:
            url = httptools.parse_url(self.url)
        except httptools.HttpParserInvalidURLError:
            self._stop(BAD)
        path = url.path or b"/"
        scope: Any = {
            "type": "http", "asgi": {"version": self.asgi_version, "spec_version": "2.3"}, "http_version": version,
            "server": self.server, "client": self.client, "scheme": self.scheme, "method": method.decode(),
            "root_path": self.root_path, "path": unquote(path.decode()) if b"%" in path else path.decode(), "raw_path": path,
            "query_string": url.query or b"", "headers": headers, "state": self.app_state.copy(),
        }  # fmt: skip
        length = found.get(b"content-length", b"0").strip()
        long = b"transfer-encoding" in found or len(length) > _LENGTH_DIGITS or int(length) > _LONG
        expects = found.get(b"expect", b"").lower() == b"100-continue"
        keep_alive = version == "1.1" and not self._guest and self.parser.should_keep_alive()
        cycle = self.cycle = _Cycle(self, scope, keep_alive=keep_alive, expects=expects, long=long)
        if self._answering():
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))
        else:
            self._running = cycle
            self._start_asgi_task(cycle, self.app)

    def on_body(self, body: bytes) -> None:
        self._unseen = 0
        if self._exchange is not None:
            self._exchange.parts.append(body)
            return
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._unseen = 0
        self._reading = NOTHING
        self._asked = True
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            self.cycle.more_body = False
            self.cycle.message_event.set()
            return
        exchange.started = perf_counter()
        parts = exchange.parts
        exchange.body = parts[0] if len(parts) == 1 else b"".join(parts)
        try:
            if not self._door.begin(exchange):
                exchange.hand_over()
        except Exception as error:
            exchange.fail(error)

    # what goes

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._since = self._all.now
        if self.transport.is_closing():
            return
        if self.pipeline:
            self._running, app = self.pipeline.pop()
            self._start_asgi_task(self._running, app)
            if self.pipeline or self._reading == NO_MORE:
                return
        elif self._reading == NO_MORE:
            self._end()
            return
        elif cast(Joined, self.transport).unread:
            self._reading = NO_MORE
            self._end()
            return
        if self._rest:
            self.loop.call_soon(self._go_on)
        elif self._ended_at is None:
            self.flow.resume_reading()
        elif not self._answering():
            self.transport.close()

    def _stop(self, refusal: Refusal) -> NoReturn:
        """For the parser's calls."""
        self._refuse(refusal)
        raise _Stop

    def _refuse(self, refusal: Refusal) -> None:
        """Says this after the answers to what came before, and reads nothing more."""
        self._door.refused(refusal.status)
        self._final = text_of(refusal)
        if self._reading == BODY:
            self._abandon()
        self._reading, self._rest, self._since = NO_MORE, b"", self._all.now
        if not self._answering():
            self._end()

    def _abandon(self) -> None:
        """The request whose body is being read will not be whole; if something was answered to it, nothing more will be."""
        newest: Any = self.cycle
        self._exchange = None
        if newest is not self._running:
            self.pipeline.popleft()
            return
        if newest.response_started or newest.response_complete:
            self._final = b""
        newest.disconnected = newest.response_complete = True
        newest.message_event.set()

    def _end(self) -> None:
        """Says what is left to say, and lets the peer read it: to close with something unread would throw it away."""
        self.transport.write(self._final)
        self._final = b""
        if self._ended_at is not None:
            self.transport.close()
        else:
            cast(Joined, self.transport).write_eof()
            self.flow.resume_reading()


class _Cycle(RequestResponseCycle):
    """uvicorn's, which ends the connection with an answer given before a long body, or one that was promised, has come."""

    def __init__(self, protocol: Protocol, scope: Any, *, keep_alive: bool, expects: bool, long: bool) -> None:
        super().__init__(
            scope=scope, transport=protocol.transport, flow=protocol.flow, logger=protocol.logger,
            access_logger=protocol.access_logger, access_log=protocol.access_log,
            default_headers=protocol.server_state.default_headers, message_event=asyncio.Event(), expect_100_continue=expects,
            keep_alive=keep_alive, on_response=protocol.on_response_complete,
        )  # fmt: skip
        self._long = long

    async def send(self, message: Message) -> None:  # type: ignore[override]
        if not self.response_started and self.more_body and (self._long or self.waiting_for_100_continue):
            self.keep_alive = False
            cast(Joined, self.transport).unread = True
        await super().send(cast(Any, message))
