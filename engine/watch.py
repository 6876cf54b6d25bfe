"""What an API process looks at now and then: outboxes above their high-water mark, what found no room in full ones,
and leases held, by rule."""

from __future__ import annotations

from collections import Counter
from typing import Any

from redis.exceptions import RedisError

from engine.errors import Unavailable
from engine.keys import Keys
from engine.metrics import Metrics
from engine.outages import Outage
from engine.settings import Settings


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
        over = (p for p in every if lengths[p] > self._high)
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
