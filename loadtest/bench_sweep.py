"""What a call of the sweep costs Redis, by how many accounts it looks at: those that have vanished, and those that live.

Also the crowds that are made for it: sessions whose leases end when one wants them to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.bench_replay import LIFETIME_MS, Captured, Monitor, Replay
from loadtest.bench_rig import MEMORY_ONLY, PARTITIONS, BenchError, Place, Spread, Valkey, valkey
from loadtest.bench_table import Sheet

BATCHES = (10, 25, 50, 100, 250, 500)
_EACH = 500
"""Accounts in a partition, about: one call of the largest batch."""
_TICK_MS = 250
"""Deadlines are rounded down to these."""
_SHORT_MS = 8_000
_CHUNK = 20_000


class Crowd(Replay):
    """Sessions with a lifetime of their own each: `ttl_ms` says it, at the moment a session beats; at most 999,999."""

    def __init__(self, server: Valkey, captured: Captured, content: Callable[[int], int] = lambda _: 1) -> None:
        super().__init__(server, captured, content=content)
        lifetime = b"\r\n%b\r\n" % LIFETIME_MS.encode()
        if any(template.count(lifetime) != 1 for template in self._templates):
            raise BenchError("the captured call has no lifetime of its own")
        self._templates = [template.replace(lifetime, b"\r\n%(ttl)b\r\n") for template in self._templates]
        self.ttl_ms: Callable[[int], int] = lambda _: int(LIFETIME_MS)

    def _values(self, n: int, position: float) -> dict[bytes, bytes]:
        return super()._values(n, position) | {b"ttl": b"%06d" % self.ttl_ms(n)}


def script_name(server: Valkey, sha: str) -> str:
    """What a script calls itself in its first line; its sha where it or the server does not say."""
    try:
        source = server.client.execute_command("SCRIPT", "SHOW", sha)
    except Exception:
        return sha[:8]
    text = source.decode() if isinstance(source, bytes) else str(source)
    name, colon, _ = text.removeprefix("-- ").partition(":")
    return name if colon and name.isidentifier() else sha[:8]


def capture_sweep(server: Valkey) -> tuple[list[bytes], bytes]:
    """The next call of the sweep that a worker makes, and the script's text."""
    with Monitor(server.port) as monitor:
        for _ in range(1_000):
            argv = monitor.call(b":outbox")
            if script_name(server, argv[1].decode()) == "sweep":
                break
        else:
            raise BenchError("no worker sweeps")
    source: bytes = server.client.execute_command("SCRIPT", "SHOW", argv[1].decode())
    return argv, source


@dataclass
class Cost:
    """µs of one call of a batch, and of one account of it; a figure for each partition."""

    call_us: list[float] = field(default_factory=list)
    account_us: list[float] = field(default_factory=list)


def sweep_cost(
    place: Place, captured: Captured, sweep: Sequence[bytes], source: bytes, *, each: int = _EACH
) -> dict[str, dict[int, Cost]]:
    """'ended' and 'alive' → batch → cost. Raises BenchError if a sweep ends what lives, or the other way round."""
    found = {}
    for kind in ("ended", "alive"):
        with valkey(place, place.mine, MEMORY_ONLY) as server:
            server.know_outboxes(captured.outboxes())
            for text in (captured.source, source):
                server.client.script_load(text)
            crowd = Crowd(server, captured)
            _fill(server, crowd, each * PARTITIONS, alive=kind == "alive")
            crowd.close()
            found[kind] = _sweep(server, captured.tags, sweep, alive=kind == "alive")
    return found


def _fill(server: Valkey, crowd: Crowd, count: int, *, alive: bool) -> None:
    """Sessions that are all due, and over, or have beaten again since that was noted."""
    for start in range(0, count, _CHUNK):
        part = range(start, min(start + _CHUNK, count))
        # On a machine that stands still for longer than this, the second beats find their leases over, which is told below.
        crowd.ttl_ms = lambda _: _SHORT_MS if alive else 1
        crowd.beat(part)
        if alive:
            crowd.ttl_ms = lambda _: int(LIFETIME_MS)
            crowd.beat(part)
        server.empty_outboxes()
    time.sleep(((_SHORT_MS if alive else 0) + 2 * _TICK_MS) / 1000)


def _sweep(server: Valkey, tags: Sequence[bytes], sweep: Sequence[bytes], *, alive: bool) -> dict[int, Cost]:
    """Partition by partition, batches of each size in turns."""
    costs = {batch: Cost() for batch in BATCHES}
    key, outbox = sweep[3], sweep[4]
    tag_then = key[key.index(b"{") + 1 : key.index(b"}")]
    for number, tag in enumerate(tags):
        batch = BATCHES[number % len(BATCHES)]
        keys = [name.replace(tag_then, tag) for name in (key, outbox)]
        server.reset()
        calls = looked = ended = 0
        while True:
            reply: Any = server.client.execute_command("EVALSHA", sweep[1], 2, *keys, b"", batch, *sweep[7:])
            ended, looked, calls = ended + int(reply[0]), looked + int(reply[1]), calls + 1
            if reply[1] < batch:
                break
        if ended != (0 if alive else looked):
            raise BenchError(f"a sweep ended {ended} of {looked} views that {'live' if alive else 'are over'}")
        _, micros = server.calls()["evalsha"]
        if looked:
            costs[batch].account_us.append(micros * calls / looked)
            costs[batch].call_us.append(micros * calls / looked * min(batch, looked))
        server.client.delete(outbox.replace(tag_then, tag))
    return costs


def sheet(costs: dict[str, dict[int, Cost]]) -> Sheet:
    """A line for each size of batch."""

    def cell(kind: str, batch: int, name: str) -> str:
        values = getattr(costs[kind][batch], name)
        return Spread(tuple(v / 1000 if name == "call_us" else v for v in values)).text(2 if name == "call_us" else 1)

    return Sheet(
        ("accounts a call", "ms a call, all ended", "µs a view ended", "ms a call, all alive", "µs an account alive"),
        tuple(
            (
                str(batch),
                *(cell(kind, batch, name) for kind in ("ended", "alive") for name in ("call_us", "account_us")),
            )
            for batch in BATCHES
        ),
    )
