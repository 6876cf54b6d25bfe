"""Somebody else: players of other accounts that beat at a steady rate, in a process of their own.

    python -m loadtest.attack.bystander

reads one step a line, `{"base": "http://127.0.0.1:8080", "secret": "…", "rate": 50, "seconds": 10}`, and prints what came of it. All
but one must be allowed; that one is a second device of an account that has paid for one, and must be refused every time. One of the
others opens a connection for each heartbeat, as a player that starts does. Latency counts from when a heartbeat was due.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import uvloop

from loadtest.attack.base import HEARTBEATS, Target
from loadtest.attack.wires import post, talk
from loadtest.capacity.crowd import heartbeat
from loadtest.capacity.generator import percentile
from loadtest.capacity.ticker import Ticker
from loadtest.http1 import Answer, Pool

_PAYING = 8
_HEALTH_S = 0.02
_PATIENCE_S = 10.0


@dataclass
class Seen:
    """One step. Latencies in ms from when it was due; those without an answer have waited until the end."""

    beats: int = 0
    degraded: int = 0
    let_in: int = 0
    """Heartbeats of the one over its limit that were answered `allow`."""
    refused: int = 0
    """Heartbeats of the others that were answered `block`."""
    unanswered: int = 0
    """No answer in time, or one that is no decision."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    stall_ms: float = 0.0
    """The longest that `/healthz` took, which is answered without Redis, asked every 20 ms."""
    odd: str = ""
    """The first answer that was none of those expected."""

    @property
    def wrong(self) -> int:
        return self.let_in + self.refused


@dataclass
class _Stream:
    token: str
    name: str
    blocked: bool = False
    fresh: bool = False
    seq: itertools.count[int] = field(default_factory=itertools.count)

    def body(self) -> bytes:
        number = next(self.seq)
        return heartbeat(f"{self.name}-session", f"{self.name}-device", "title", number, 600.0 + number)


class Bystander:
    """Use it in one event loop."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._pool = Pool(target.base, most=32, timeout_s=_PATIENCE_S)
        self._health = Pool(target.base, most=1, timeout_s=_PATIENCE_S)
        full = target.player("full", max_streams=1)
        self._streams = [_Stream(target.player(f"paying-{n}"), f"paying-{n}") for n in range(_PAYING)]
        self._streams[0].fresh = True
        self._streams += [_Stream(full, "first"), _Stream(full, "second", blocked=True)]
        self._known = False
        self._seen = Seen()
        self._waits: list[float] = []
        self._pending: set[asyncio.Task[None]] = set()

    async def step(self, rate: float, seconds: float) -> Seen:
        if not self._known:
            for stream in self._streams:
                await self._pool.send("POST", HEARTBEATS, stream.body(), token=stream.token)
            self._known = True
        self._seen, self._waits = Seen(), []
        began = time.perf_counter()
        dues = ((began + n / rate, stream) for n, stream in enumerate(itertools.cycle(self._streams)))
        probes = asyncio.create_task(self._probe(began + seconds))
        await self._send_all(dues, began + seconds)
        if self._pending:
            await asyncio.wait(self._pending, timeout=_PATIENCE_S + 1)
        await probes
        return self._summed()

    async def _send_all(self, moments: Iterator[tuple[float, _Stream]], end: float) -> None:
        due, stream = next(moments)

        def send_due() -> float | None:
            nonlocal due, stream
            while due <= time.perf_counter():
                if due >= end:
                    return None
                task = asyncio.create_task(self._beat(stream, due))
                self._pending.add(task)
                task.add_done_callback(self._pending.discard)
                due, stream = next(moments)
            return due

        await Ticker(send_due).done

    async def _beat(self, stream: _Stream, due: float) -> None:
        if stream.fresh:
            text = post(HEARTBEATS, stream.token, stream.body())
            reply = await talk(self._target, [text], answers=1, wait_s=_PATIENCE_S)
            answer = (
                Answer(reply.statuses[0], reply.bodies[0]) if reply.statuses else Answer(0, str(reply.said).encode())
            )
        else:
            answer = await self._pool.send("POST", HEARTBEATS, stream.body(), token=stream.token)
        self._waits.append(time.perf_counter() - due)
        self._judge(stream, answer)

    def _judge(self, stream: _Stream, answer: Answer) -> None:
        seen = self._seen
        seen.beats += 1
        said_block, said_allow = b'"decision":"block"' in answer.body, b'"decision":"allow"' in answer.body
        degraded = b'"degraded":true' in answer.body
        seen.degraded += degraded
        if answer.status != 200 or not (said_block or said_allow):
            seen.unanswered += 1
        elif stream.blocked and said_allow:
            seen.let_in += 1
        elif not stream.blocked and said_block:
            seen.refused += 1
        elif not degraded:
            return
        seen.odd = seen.odd or f"{stream.name}: {answer.status} {answer.body[:200].decode(errors='replace')}"

    async def _probe(self, end: float) -> None:
        while time.perf_counter() < end:
            asked = time.perf_counter()
            await self._health.send("GET", "/healthz")
            took = time.perf_counter() - asked
            self._seen.stall_ms = max(self._seen.stall_ms, took * 1000)
            await asyncio.sleep(max(0.0, _HEALTH_S - took))

    def _summed(self) -> Seen:
        seen, ordered = self._seen, sorted(self._waits)
        seen.p50_ms, seen.p99_ms, seen.max_ms = (
            round(percentile(ordered, share) * 1000, 2) for share in (0.5, 0.99, 1.0)
        )
        seen.stall_ms = round(seen.stall_ms, 1)
        return seen


async def _serve() -> None:
    loop, lines = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    bystander: Bystander | None = None
    while line := await lines.readline():
        asked = json.loads(line)
        bystander = bystander or Bystander(Target(asked["base"], asked["secret"]))
        print(json.dumps(asdict(await bystander.step(asked["rate"], asked["seconds"]))), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve())
