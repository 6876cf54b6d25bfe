"""redis-py clients, for commands and background work: of the session Redis, single node or cluster, and of the log Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from engine.embedded import url_of
from engine.errors import ConfigError, LayoutMismatch, PulsegateError, Unavailable
from engine.keys import Keys
from engine.scripts import Arg, Script
from engine.settings import Settings

TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Clients:
    settings: Settings
    keys: Keys
    session: Any
    """redis-py client of the session Redis, single node or cluster."""
    log: Redis
    """Event log, projections, RQ's queues. Never a cluster."""

    @classmethod
    def of(cls, settings: Settings, **options: Any) -> Self:
        """Built from the settings; `options` are redis-py's. Raises ConfigError if there is no log Redis to use, and
        redis-py's errors."""
        single: Redis = Redis.from_url(settings.redis_url, **options)
        clustered = bool(single.info("cluster").get("cluster_enabled"))
        if clustered and not settings.log_redis_url:
            raise ConfigError(
                "PULSEGATE_LOG_REDIS_URL is needed: event log and queues cannot live on a cluster",
                field="PULSEGATE_LOG_REDIS_URL",
            )
        session: Any = RedisCluster.from_url(settings.redis_url, **options) if clustered else single
        log: Redis = Redis.from_url(settings.log_redis_url, **options) if settings.log_redis_url else single
        return cls(settings, Keys(settings.prefix, settings.partitions), session, log)

    @property
    def clustered(self) -> bool:
        return isinstance(self.session, RedisCluster)

    def close(self) -> None:
        self.session.close()
        self.log.close()

    def call(self, script: Script, keys: Sequence[str], args: Sequence[Arg]) -> Any:
        """A script on the session Redis. Raises redis-py's errors."""
        script.check(len(keys), len(args))
        return self.session.register_script(script.source)(keys=list(keys), args=list(args))


@contextlib.contextmanager
def connected(settings: Settings, data: Path | None = None) -> Iterator[Clients]:
    """Clients for the deployment; `data` is the directory of a `pulsegate run` whose embedded server is meant.

    Raises ConfigError if there is no Redis to use, LayoutMismatch if this is another deployment's, Unavailable for
    redis-py's errors, also those of the body.
    """
    settings = located(settings, data)
    options: dict[str, Any] = {"socket_timeout": TIMEOUT_S, "socket_connect_timeout": TIMEOUT_S}
    try:
        with contextlib.closing(Clients.of(settings, **options)) as clients:
            _check_layout(clients.session, clients.keys)
            yield clients
    except RedisError as error:
        raise Unavailable(f"Redis: {error}") from None


def located(settings: Settings, data: Path | None) -> Settings:
    """Settings that say where Redis is: as they do already, else the servers of a `pulsegate run`. Raises ConfigError."""
    if not settings.lake_dir and data is not None and (data / "lake").is_dir():
        settings = replace(settings, lake_dir=str((data / "lake").resolve()))
    if not settings.redis_url:
        return replace(settings, redis_url=_embedded(data, "redis", "PULSEGATE_REDIS_URL"))
    if not settings.log_redis_url and data is not None and (data / "queues" / "port").exists():
        return replace(settings, log_redis_url=_embedded(data, "queues", "PULSEGATE_LOG_REDIS_URL"))
    return settings


def _embedded(data: Path | None, name: str, variable: str) -> str:
    try:
        if data is None:
            raise FileNotFoundError
        return url_of(data / name)
    except (OSError, ValueError):
        raise ConfigError(f"set {variable}, or --data to the directory of a `pulsegate run`", field=variable) from None


def _check_layout(session: Any, keys: Keys) -> None:
    found = session.hget(keys.layout, "partitions")
    if found is None:
        raise PulsegateError(f"there is no deployment with prefix {keys.prefix!r} in this Redis", code="layout")
    if int(found) != keys.partitions:
        raise LayoutMismatch(f"{keys.layout} says partitions {int(found)}, not {keys.partitions}", field="partitions")
