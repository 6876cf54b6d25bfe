"""A server of a test's own on loopback, in the test's event loop, that leaves no connection behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[tuple[str, int]]:
    """Its host and port. At the end every connection is closed, also one that came so late that `serve` has not seen it."""
    opened: list[asyncio.WriteTransport] = []

    class Accepted(asyncio.StreamReaderProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.WriteTransport)
            opened.append(transport)
            super().connection_made(transport)

    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Accepted(asyncio.StreamReader(), serve), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await _turns(3)  # what has been accepted by now has a transport then
        for transport in opened:
            transport.abort()
        await _turns(2)


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)
