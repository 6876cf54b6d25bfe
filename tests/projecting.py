"""Feeds consumers with events as the runtime does: in the order of the log, each batch committed with its position."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from redis import Redis

from engine.events import Event, read
from engine.keys import Keys
from engine.partitions import partition_of
from engine.settings import Settings
from tests.harness import PARTITIONS, START, World
from workers.consumer import Consumer

_ids = itertools.count(1)


def event(
    kind_of: str, t: float, *, account: str = "a", session: str = "s1", view: int = 1, started: float = 0, seq: int = -1,
    content: str = "film", kind: str = "vod", profile: str = "", device: str = "d1", watched_ms: int = 0,
    revision: int = 0, data: Any = None,
) -> Event:  # fmt: skip
    """An event as it stands in the log. `t` and `started` are seconds since the tests' START; ids count up."""
    payload = json.dumps({
        "type": kind_of, "at": START + int(t * 1000), "view": view, "started_at": START + int(started * 1000) if view else 0,
        "seq": seq, "watched_ms": watched_ms, "revision": revision, "account": account, "profile": profile, "device": device,
        "session": session, "content": content, "kind": kind, "v": 1, "data": data or {},
    }).encode()  # fmt: skip
    return read(partition_of(account, PARTITIONS), f"{START}-{next(_ids)}", payload)


class Fed:
    """A consumer on one generation of its projection, and what commits its batches."""

    def __init__(self, client: Redis, prefix: str, cls: type[Consumer], generation: int = 1, **settings: Any) -> None:
        self.client, self.settings = client, Settings(prefix=prefix, partitions=PARTITIONS, **settings)
        self.keys = Keys(prefix, PARTITIONS)
        self.space = self.keys.projection(cls.name, generation)
        self.consumer = cls(client, self.space, self.settings)
        self._cursor = self.keys.cursor(cls.name, generation)

    def feed(self, *events: Event, batch: int = 1_000_000) -> Self:
        """In batches of at most so many events."""
        for start in range(0, len(events), batch):
            self._commit(events[start : start + batch])
        return self

    def _commit(self, events: Sequence[Event]) -> None:
        with self.client.pipeline() as pipe:
            pipe.multi()
            self.consumer.handle(events, pipe)
            pipe.hset(self._cursor, mapping={str(e.partition): e.stream_id for e in events})
            pipe.execute()

    def dump(self) -> dict[str, Any]:
        return dict(self.consumer.dump())

    def erase(self, account: str) -> int:
        with self.client.pipeline() as pipe:
            pipe.multi()
            count = self.consumer.erase(account, pipe)
            pipe.execute()
        return count


class Pump:
    """Carries the outboxes of a running API to consumers, as mirror and workers do, in a thread of its own."""

    def __init__(self, *fed: Fed) -> None:
        self._fed = fed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        client, keys = self._fed[0].client, self._fed[0].keys
        streams: dict[Any, Any] = {keys.outbox(p): "0-0" for p in range(PARTITIONS)}
        partitions = {keys.outbox(p): p for p in range(PARTITIONS)}
        while not self._stop.is_set():
            found: Any = client.xread(streams, block=20)
            pairs = found.items() if isinstance(found, dict) else found
            for name, entries in pairs:
                key = name.decode()
                # redis-py wraps each stream's entries once more in some protocol versions.
                flat = entries[0] if entries and isinstance(entries[0], list) else entries
                events = [read(partitions[key], id_.decode(), fields[b"e"]) for id_, fields in flat]
                for each in self._fed:
                    each.feed(*events)
                streams[key] = flat[-1][0]


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def outbox_of(world: World, account: str = "a") -> list[Event]:
    """What the engine itself has written about an account so far."""

    async def entries() -> Any:
        return await world.client.xrange(world.keys.account(account).outbox)

    partition = partition_of(account, PARTITIONS)
    events = [read(partition, id_.decode(), fields[b"e"]) for id_, fields in world.run(entries())]
    return [each for each in events if each.account == account]
