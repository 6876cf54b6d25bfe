"""The background work's parts over real servers, driven step by step: a `Plant`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import orjson
from redis.asyncio import Redis as AsyncRedis

from engine import lag
from engine.events import TOPICS
from engine.settings import Settings
from tests.harness import PARTITIONS
from workers.consume import Consume
from workers.runtime import Runtime
from workers.tenure import Ownership, Work


def plant(session_url: str, log_url: str, prefix: str, **settings: Any) -> Runtime:
    """A runtime as a worker builds it; the session Redis may be a cluster."""
    found = Settings(redis_url=session_url, log_redis_url=log_url, prefix=prefix, partitions=PARTITIONS, **settings)
    return Runtime.of(found)


def owner(run: Runtime, job: str, group: int = 0) -> Ownership:
    ownership = Ownership(run, job, group)
    assert ownership.acquire()
    return ownership


def put(run: Runtime, partition: int, type_: str, /, **fields: Any) -> str:
    """One event in an outbox; its id."""
    event = {"type": type_, "at": 1, "view": 1, "account": "ann", "session": "s", "data": {}} | fields
    found: Any = run.session.xadd(run.keys.outbox(partition), {"e": orjson.dumps(event)})
    return str(found.decode())


def ids(entries: Iterable[Any]) -> list[str]:
    return [id_.decode() for id_, _ in entries]


def outbox_ids(run: Runtime, partition: int) -> list[str]:
    return ids(run.session.xrange(run.keys.outbox(partition)))


def log_ids(run: Runtime, partition: int, *topics: str) -> list[str]:
    return sorted(
        (id_ for topic in topics or TOPICS for id_ in ids(run.log.xrange(run.keys.log(partition, topic)))),
        key=lambda id_: tuple(map(int, id_.split("-"))),
    )


def drain(work: Work) -> int:
    """Steps until there is nothing to do; how much was done."""
    if isinstance(work, Consume):
        work.gathers = False
    done = 0
    while step := work.step(0.01):
        done += step
    return done


def look(run: Runtime) -> lag.Flow:
    """The state of the background work, as `pulsegate status` asks for it."""

    async def ask() -> lag.Flow:
        async with AsyncRedis.from_url(run.settings.log_redis_url) as client:
            return await lag.look(client, run.keys, run.settings.groups)

    return asyncio.run(ask())
