"""An open loop of heartbeats: so many a second, whether or not the answers keep up.

    python -m loadtest.bench_players PORT PER_SECOND SECONDS WARM_UP

A viewer beats every ten seconds, so there are ten times as many viewers as heartbeats a second. Prints one JSON line about what
was due after WARM_UP seconds.
Asyncio on plain sockets, because an HTTP client would cost more than what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from typing import Any

import orjson

from loadtest.bench_events import account_of, heartbeat
from loadtest.bench_load import token

CONNECTIONS = 64
INTERVAL_S = 10
_TICK_S = 0.005


class Sender(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd, self._got = crowd, b""
        self._transport: Any = None
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, separator, body = self._got.partition(b"\r\n\r\n")
        if separator:
            start = head.lower().index(b"content-length:") + 15
            if len(body) >= int(head[start : (head + b"\r\n").index(b"\r\n", start)]):
                self._got = b""
                self._crowd.answered(self, head, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.lost()


class Crowd:
    """All viewers, and what they were answered. Latency counts from when a heartbeat was due."""

    def __init__(self, port: int, per_s: int) -> None:
        self._port, self._per_s = port, per_s
        self._count = per_s * INTERVAL_S
        self._heads: list[bytes] = []
        # In turn, so that none is idle for so long that the server closes it.
        self._idle: deque[Sender] = deque()
        self._waiting: deque[tuple[bytes, float]] = deque()
        self.sent = self.failed = 0
        self.latencies: list[float] = []
        self._counts_from = 0.0
        self.said = ""
        """The first answer that was wrong."""

    async def run(self, seconds: float, warm_up: float) -> None:
        loop = asyncio.get_running_loop()
        # Tokens take longer to sign than heartbeats to send, so that is done before the clock starts.
        self._heads = [
            f"POST /v1/heartbeats HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token(account_of(n))}\r\n"
            "Content-Type: application/json\r\nContent-Length: ".encode()
            for n in range(self._count)
        ]
        for _ in range(CONNECTIONS):
            _, sender = await loop.create_connection(lambda: Sender(self), "127.0.0.1", self._port)
            self._idle.append(sender)
        print("ready", flush=True)
        began = time.perf_counter()
        self._counts_from = began + warm_up
        while (passed := time.perf_counter() - began) < seconds:
            while self.sent < passed * self._per_s:
                self._send(began + self.sent / self._per_s)
            await asyncio.sleep(_TICK_S)
        while len(self._idle) < CONNECTIONS and not self.failed:
            await asyncio.sleep(_TICK_S)

    def _send(self, due: float) -> None:
        seq, viewer = divmod(self.sent, self._count)
        session, device = f"5e551000-0000-4000-8000-{viewer:012x}", f"{viewer:016x}"
        body = orjson.dumps(heartbeat(session, device, f"title-{viewer % 2_000:05d}", seq, 600.5 + seq * INTERVAL_S))
        request = b"%b%d\r\n\r\n%b" % (self._heads[viewer], len(body), body)
        self.sent += 1
        if self._idle:
            self._idle.popleft().send(request, due)
        else:
            self._waiting.append((request, due))

    def lost(self) -> None:
        """A connection was closed by the other side."""
        self.failed += 1
        self.said = self.said or "a connection was closed"

    def answered(self, sender: Sender, head: bytes, body: bytes) -> None:
        if sender.due >= self._counts_from:
            self.latencies.append(time.perf_counter() - sender.due)
        if not head.startswith(b"HTTP/1.1 200") or b'"decision":"allow"' not in body or b'"degraded":true' in body:
            self.failed += 1
            self.said = self.said or (head.partition(b"\r\n")[0] + b" " + body).decode()
        if self._waiting:
            sender.send(*self._waiting.popleft())
        else:
            self._idle.append(sender)


def main(words: list[str]) -> int:
    port, per_s, seconds, warm_up = int(words[0]), int(words[1]), float(words[2]), float(words[3])
    crowd = Crowd(port, per_s)
    asyncio.run(crowd.run(seconds, warm_up))
    latencies = sorted(crowd.latencies)
    print(json.dumps({
        "sent": crowd.sent, "failed": crowd.failed, "said": crowd.said, "per_s": len(latencies) / (seconds - warm_up), "p50_ms": 1000 * latencies[len(latencies) // 2],
        "p99_ms": 1000 * latencies[len(latencies) * 99 // 100],
    }), flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
