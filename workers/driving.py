"""Drives a consumer as the runtime does, over a Redis of its own in memory: for consumers' tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fakeredis
import orjson

from engine.events import Event, order, read
from engine.keys import Keys
from engine.settings import Settings
from workers.consume import handle, latest
from workers.consumer import Consumer


def event(n: int, *, partition: int = 0, **fields: Any) -> Event:
    """The n-th event of a partition, from 1."""
    whole = {"type": "heartbeat", "at": n, "account": "ann", "data": {}} | fields
    return read(partition, f"{n}-0", orjson.dumps(whole))


class Driver:
    """`handle` commits a batch; events at or below the position are left out, as they are when a worker goes on."""

    def __init__(self, cls: type[Consumer], settings: Settings | None = None) -> None:
        self.client = fakeredis.FakeRedis(version=(7, 2))
        settings = settings or Settings()
        self.consumer = cls(self.client, Keys(settings.prefix, settings.partitions).projection(cls.name, 1), settings)
        self.positions: dict[int, str] = {}
        self.dead: list[dict[str, Any]] = []

    def handle(self, events: Sequence[Event]) -> None:
        new = [e for e in events if order(e.stream_id) > order(self.positions.get(e.partition, "0-0"))]
        with self.client.pipeline(transaction=True) as pipe:
            self.dead += handle(self.consumer, new, pipe)
            pipe.execute()
        self.positions |= latest(new)
