"""What an API process looks at now and then: outboxes above their high-water mark, what found no room in full ones,
leases held, by rule, and how much memory Redis has left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError

from engine.errors import Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.outages import Outage
from engine.settings import Settings

log = logging.getLogger(__name__)


class Backlog:
    """Thins plain heartbeats in partitions whose outbox is too long; lifecycle events always go in."""

    def __init__(self, client: Any, keys: Keys, settings: Settings, metrics: Metrics, outage: Outage) -> None:
        self._client = client
        self._keys = keys
        self._high = settings.outbox_high
        self._metrics = metrics
        self._outage = outage
        self.spilling: list[int] = []
        """Partitions with events that found the outbox full."""

    async def look(self) -> None:
        """One look over all partitions, in one pipeline. Raises Unavailable."""
        every = range(self._keys.partitions)
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for partition in every:
                    pipe.xlen(self._keys.outbox(partition))
                for partition in every:
                    pipe.hgetall(self._keys.held(partition))
                for partition in every:
                    pipe.get(self._keys.lost(partition))
                for partition in every:
                    pipe.llen(self._keys.spill(partition))
                replies = await pipe.execute()
        except RedisError as error:
            raise Unavailable(f"session Redis: {error}") from None
        count = len(every)
        lengths, leases, lost, spilled = (replies[n * count : (n + 1) * count] for n in range(4))
        self.spilling = [p for p in every if spilled[p]]
        over = (p for p in every if lengths[p] > self._high or self._outage.full)
        self._outage.thin = frozenset(self._keys.outbox(p).removesuffix(":outbox") for p in over)
        held: Counter[str] = Counter()
        for rules in leases:
            for rule, count in rules.items():
                held[rule.decode()] += int(count)
        for rule, total in held.items():
            self._metrics.leases.labels(rule).set(total)
        self._metrics.outbox.set(sum(lengths))
        self._metrics.lost.set(sum(int(found or 0) for found in lost))
        self._metrics.thinned.set(len(self._outage.thin))


class Memory:
    """Sees `maxmemory` come before it is there: above `high` (a share) only decisions write.

    `clients` are redis-py's asyncio clients by what they are for, None where there is none. Without a `maxmemory` the machine's
    memory is the bound.
    """

    def __init__(self, clients: Mapping[str, Any], high: float, metrics: Metrics, outage: Outage) -> None:
        self._clients = {name: client for name, client in clients.items() if client is not None}
        self._high, self._metrics, self._outage = high, metrics, outage
        self._shares: dict[str, float] = {}

    async def look(self) -> None:
        """Of one that does not answer what was known last holds."""
        for name, client in self._clients.items():
            try:
                self._shares[name] = max(map(memory_share, await _memory(client)))
            except (RedisError, OSError) as error:
                log.debug("memory", extra={"redis": name, "why": str(error)})
                continue
            self._metrics.memory.labels(name).set(self._shares[name])
        full = any(share > self._high for share in self._shares.values())
        if full != self._outage.full:
            said = {name: round(share, 3) for name, share in self._shares.items()}
            log.log(logging.ERROR if full else logging.INFO, "memory_high" if full else "memory_ok", extra=said)
        self._outage.full = full
        self._metrics.memory_high.set(1 if full else 0)


async def _memory(client: Any) -> list[dict[str, Any]]:
    if isinstance(client, RedisCluster):
        return list((await client.info("memory", target_nodes=RedisCluster.PRIMARIES)).values())
    return [await client.info("memory")]


def memory_share(info: Mapping[str, Any]) -> float:
    """How much of its memory a server uses, by its `INFO memory`."""
    most = info.get("maxmemory") or info.get("total_system_memory")
    return float(info["used_memory"] / most) if most else 0.0
