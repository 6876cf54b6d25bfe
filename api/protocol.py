"""uvicorn's HTTP protocol, except that an answer's header and body leave in one write instead of two, and that streams can
be ended.

A write is a system call and a packet, about a tenth of what an answer costs. uvicorn writes the header as soon as it
has it; here it waits for the body, at most until the event loop's next turn.

A request's `scope["state"]` has its `transport`: a stream must know when its reader takes nothing, and be able to let go of it.
When the server stops, `closing` in the lifespan's state is called, because uvicorn waits for answers under way.
"""

from __future__ import annotations

import asyncio
import functools
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """Pass it to uvicorn as `http="api.protocol:Protocol"`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Joined(transport, self.loop)))
        self.app_state = self.app_state | {"transport": self.transport}

    def shutdown(self) -> None:
        if closing := self.app_state.get("closing"):
            closing()
        super().shutdown()


class _Joined:
    """A transport that holds back an answer's header until its body is written."""

    __slots__ = ("_held", "_late", "_transport", "_write", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._write = transport.write
        self.is_closing = transport.is_closing
        self._late = _late(loop)
        self._held = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._held = data
            self._late.add(self)
            return
        self._write(data)

    def flush(self) -> None:
        data, self._held = self._held, b""
        if data and not self.is_closing():
            self._write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class _Late:
    """Those whose body was not there by the loop's next turn: one look for all that answer in one turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._holding: list[_Joined] = []

    def add(self, joined: _Joined) -> None:
        if not self._holding:
            self._loop.call_soon(self._flush)
        self._holding.append(joined)

    def _flush(self) -> None:
        holding, self._holding = self._holding, []
        for joined in holding:
            joined.flush()


_late = functools.lru_cache(maxsize=4)(_Late)
