"""Events that found their outbox full, kept on an API process's disk until there is room (design section 11).

Plain heartbeats are thinned long before; what remains must not be lost, and must not fill Redis either. A script that finds
an outbox at `outbox_max` leaves its events in the partition's `spill` list. An API process takes them from there to its disk,
and tells them again once the outbox is below its high-water mark. Whoever dies in between leaves an event in two places
rather than in none; `lua/track.lua` lets it in once. Told late, they come after younger ones: each carries its own time,
and consumers are used to that (docs/consumers.md).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from redis.exceptions import RedisError

from engine import scripts
from engine.errors import Unavailable
from engine.keys import Keys
from engine.scripts import Executor
from engine.spool import Spool

log = logging.getLogger(__name__)

BATCH = 1_000
"""Events taken at a time."""


class Spill:
    """Takes spilled events to `spool`'s disk and, by `tell`, back. Without a disk they wait in Redis, the newest of them."""

    def __init__(
        self, client: Any, executor: Executor, keys: Keys, spool: Spool, tell: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._client, self._executor, self._keys = client, executor, keys
        self._spool, self._tell = spool, tell
        self._unspill = scripts.load("unspill")

    async def take(self, partitions: Iterable[int]) -> None:
        """Brings what these partitions have spilled to disk, then takes it out of Redis. Raises Unavailable."""
        if not self._spool.keeps:
            return
        try:
            for partition in partitions:
                key = self._keys.spill(partition)
                while events := await self._client.lrange(key, 0, BATCH - 1):
                    if not all(self._spool.put({"event": event.decode()}) for event in events):
                        return
                    await self._spool.sync()
                    await self._executor.run(self._unspill, [key], [events[0], len(events)])
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        except OSError as error:
            log.warning("spill", extra={"why": str(error)})

    async def give_back(self) -> None:
        """Tells the events again, oldest first, as long as there is room for them."""
        if self._spool.waiting:
            await self._spool.drain(lambda entry: self._tell(entry["event"]))
