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
from workers.tenure import QUEUE


@dataclass(frozen=True, slots=True)
class Runtime:
    settings: Settings
    keys: Keys
    session: Any
    """redis-py client of the session Redis, single node or cluster."""
    rq: Redis
    queue: Queue

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        script.check(len(keys), len(args))
        return self.session.register_script(script.source)(keys=list(keys), args=list(args))


@lru_cache(maxsize=4)
def runtime(settings: Settings) -> Runtime:
    """The runtime for these settings. Raises ConfigError if RQ has no Redis it can use."""
    single: Redis = Redis.from_url(settings.redis_url)
    clustered = bool(single.info("cluster").get("cluster_enabled"))
    if clustered and not settings.rq_url:
        raise ConfigError("PULSEGATE_RQ_URL is needed: RQ cannot use a cluster", field="PULSEGATE_RQ_URL")
    session: Any = RedisCluster.from_url(settings.redis_url) if clustered else single
    rq: Redis = Redis.from_url(settings.rq_url) if settings.rq_url else single
    return Runtime(settings, Keys(settings.prefix, settings.partitions), session, rq, Queue(QUEUE, connection=rq))
