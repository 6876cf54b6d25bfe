"""How far each consumer and sink is behind the outboxes, for `/metrics` and `pulsegate status`.

Lag in events is what the mirror has appended to the log less what the consumer has committed; lag in seconds is the age of
the oldest event that it has not. Names come from the entry points, so whatever is installed is watched.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from redis.asyncio import Redis

from engine.events import TOPICS, is_id, order
from engine.keys import Keys

CONSUMERS, SINKS = "pulsegate.consumers", "pulsegate.sinks"
HANDLED = "handled"


@dataclass(frozen=True, slots=True)
class Lag:
    """One consumer or sink. `owners`: groups that somebody works on now."""

    name: str
    job: str
    events: int
    seconds: float
    handled: int
    dead: int
    owners: int


@dataclass(frozen=True, slots=True)
class Flow:
    """The state of the background work."""

    mirrored: dict[str, int]
    """Topic → events appended to the log ever."""
    owners: dict[str, int]
    """Sweep, mirror, maintain, trending → groups that somebody works on now."""
    bad: int
    trending_s: float | None
    """What the last publication of lists took, with the claims before it; None if there was none."""
    lags: list[Lag]
    skipped: dict[str, int]
    """Job → what it could not read in Redis and left out, ever."""


def number(stored: bytes | None) -> int:
    """0 for what is not there, and for what is no whole number."""
    try:
        return int(stored or 0)
    except ValueError:
        return 0


def names() -> dict[str, str]:
    """Name → job of every installed consumer and sink."""
    found = {entry.name: f"consume-{entry.name}" for entry in entry_points(group=CONSUMERS)}
    return found | {entry.name: f"export-{entry.name}" for entry in entry_points(group=SINKS)}


WORKS = ("sweep", "mirror", "maintain", "trending")
"""Jobs that consume nothing of the log."""


async def look(log: Redis, keys: Keys, groups: int) -> Flow:
    """The state now. A sink that nobody has configured has never handled anything and is left out. Raises redis-py's errors."""
    jobs = names()
    generations: Any = await log.hgetall(keys.generations)
    cursors = {
        name: keys.cursor(name, (number(generations.get(name.encode())) or 1) if job.startswith("consume-") else 0)
        for name, job in jobs.items()
    }
    async with log.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.mirrored)
        pipe.xlen(keys.bad)
        pipe.hmget(keys.trending_took, "claims_ms", "publication_ms")
        pipe.hgetall(keys.skipped)
        for name in jobs:
            pipe.hgetall(cursors[name])
            pipe.xlen(keys.dead(name))
        owned = [*WORKS, *jobs.values()]
        for job in owned:
            pipe.exists(*(keys.owner(job, group) for group in range(groups)))
        mirrored, bad, took, skipped, *rest = await pipe.execute()
    owners = dict(zip(owned, rest[2 * len(jobs) :], strict=True))
    lags = []
    for n, (name, job) in enumerate(jobs.items()):
        cursor, dead = rest[2 * n], rest[2 * n + 1]
        if not cursor and not owners[job]:
            continue
        seconds = await _seconds(log, keys, mirrored, cursor)
        lags.append(
            Lag(name, job, _events(mirrored, cursor), seconds, number(cursor.get(HANDLED.encode())), dead, owners[job])
        )
    trending_s = sum(map(number, took)) / 1000 if None not in took else None
    counts = {topic: number(mirrored.get(topic.encode())) for topic in TOPICS}
    left_out = {job.decode(errors="replace"): number(count) for job, count in skipped.items()}
    return Flow(counts, {job: owners[job] for job in WORKS}, bad, trending_s, lags, left_out)


async def settled(session: Any, log: Redis, keys: Keys, wanted: Sequence[str]) -> bool:
    """Whether all that the outboxes hold now is in the log, and each of these consumers and sinks has it. Raises redis-py's
    errors. `session` is a client of the session Redis, single node or cluster."""
    every = range(keys.partitions)
    async with session.pipeline(transaction=False) as pipe:
        for partition in every:
            pipe.xrevrange(keys.outbox(partition), count=1)
            pipe.llen(keys.spill(partition))
        found = await pipe.execute()
    jobs = names()
    generations: Any = await log.hgetall(keys.generations)
    async with log.pipeline(transaction=False) as pipe:
        pipe.hgetall(keys.mirrored)
        for name in wanted:
            live = (number(generations.get(name.encode())) or 1) if jobs[name].startswith("consume-") else 0
            pipe.hgetall(keys.cursor(name, live))
        mirrored, *cursors = await pipe.execute()
    tails = {b"%d" % p: found[2 * p][0][0] for p in every if found[2 * p]}
    if any(found[2 * p + 1] for p in every) or _behind(tails, mirrored):
        return False
    return not any(_behind(mirrored, cursor) for cursor in cursors)


def _behind(mirrored: Mapping[bytes, bytes], cursor: Mapping[bytes, bytes]) -> dict[int, str]:
    """Partition → position, of those where the log holds more than the consumer has."""
    found = {}
    for field, last in mirrored.items():
        if field.isdigit() and is_id(last):
            at = cursor.get(field, b"0-0").decode(errors="replace")
            at = at if is_id(at) else "0-0"
            if order(at) < order(last.decode()):
                found[int(field)] = at
    return found


def _events(mirrored: Mapping[bytes, bytes], cursor: Mapping[bytes, bytes]) -> int:
    if not _behind(mirrored, cursor):
        return 0
    topics = cursor.get(b"topics", ",".join(TOPICS).encode()).split(b",")
    return max(1, sum(number(mirrored.get(topic)) for topic in topics) - number(cursor.get(HANDLED.encode())))


async def _seconds(log: Redis, keys: Keys, mirrored: Mapping[bytes, bytes], cursor: Mapping[bytes, bytes]) -> float:
    """Age of the oldest event that waits. Events of before a restart under a lagging clock may be younger than their id."""
    behind = _behind(mirrored, cursor)
    if not behind:
        return 0.0
    topics = cursor.get(b"topics", ",".join(TOPICS).encode()).decode().split(",")
    async with log.pipeline(transaction=False) as pipe:
        for partition, at in behind.items():
            for topic in topics:
                pipe.xrange(keys.log(partition, topic), min=f"({at}", count=1)
        found = await pipe.execute(raise_on_error=False)
    ids = [entries[0][0].decode() for entries in found if entries and isinstance(entries, list)]
    oldest = min((order(id_)[0] for id_ in ids), default=None)
    return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)


def table(flow: Flow) -> str:
    """For people: `pulsegate status`."""
    lines = [f"{'':14}{'lag':>12}{'seconds':>10}{'handled':>14}{'dead':>8}{'owners':>8}"]
    lines += [
        f"{lag.name:14}{lag.events:>12,}{lag.seconds:>10.1f}{lag.handled:>14,}{lag.dead:>8,}{lag.owners:>8}"
        for lag in flow.lags
    ]
    lines += [f"{job:14}{'':>44}{'':>0}{count:>8}" for job, count in flow.owners.items()]
    total = sum(flow.mirrored.values())
    topics = ", ".join(f"{topic} {count:,}" for topic, count in flow.mirrored.items())
    trending = f"; lists took {flow.trending_s:.2f} s" if flow.trending_s is not None else ""
    if flow.skipped:
        said = ", ".join(f"{job} {count:,}" for job, count in sorted(flow.skipped.items()))
        trending += f"\nleft out, because it is not what we wrote: {said}"
    return "\n".join([*lines, f"\nmirrored {total:,} ({topics}); bad events kept {flow.bad:,}{trending}"])
