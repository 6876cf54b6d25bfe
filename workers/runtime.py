"""What every job needs, built once per worker process: clients, keys, the queue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from rq import Queue

from engine.errors import ConfigError
from engine.keys import Keys
from engine.scripts import Arg, Script
from engine.settings import Settings


@dataclass(frozen=True, slots=True)
class Runtime:
    settings: Settings
    keys: Keys
    session: Any
    """redis-py client of the session Redis, single node or cluster."""
    log: Redis
    """The log Redis: event log, projections, RQ's queues. Never a cluster."""

    @property
    def queue(self) -> Queue:
        """Where tenures wait."""
        return Queue(self.keys.queue("tenures"), connection=self.log)

    @property
    def exports(self) -> Queue:
        """Where the tenures of exports wait: their receivers may be slow, so they have workers of their own."""
        return Queue(self.keys.queue("exports"), connection=self.log)

    def queue_of(self, job: str) -> Queue:
        return self.exports if job.startswith("export-") else self.queue

    @property
    def asks(self) -> Queue:
        """What the API asks for; goes before tenures."""
        return Queue(self.keys.queue("asks"), connection=self.log)

    @property
    def clustered(self) -> bool:
        return isinstance(self.session, RedisCluster)

    def partitions(self, group: int) -> list[int]:
        return list(range(group, self.settings.partitions, self.settings.groups))

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """A script on the session Redis."""
        script.check(len(keys), len(args))
        return self.session.register_script(script.source)(keys=list(keys), args=list(args))


@lru_cache(maxsize=4)
def runtime(settings: Settings) -> Runtime:
    """The runtime for these settings. Raises ConfigError if there is no log Redis that RQ can use."""
    single: Redis = Redis.from_url(settings.redis_url)
    clustered = bool(single.info("cluster").get("cluster_enabled"))
    if clustered and not settings.log_redis_url:
        raise ConfigError(
            "PULSEGATE_LOG_REDIS_URL is needed: event log and queues cannot live on a cluster",
            field="PULSEGATE_LOG_REDIS_URL",
        )
    session: Any = RedisCluster.from_url(settings.redis_url) if clustered else single
    log: Redis = Redis.from_url(settings.log_redis_url) if settings.log_redis_url else single
    return Runtime(settings, Keys(settings.prefix, settings.partitions), session, log)
