"""Runs a sink over its partitions: reads the log, hands over batches, moves the position when they have arrived.

At least once: a batch whose delivery was cut off is cut the same way again and delivered once more, under the same ids. A
receiver that is away or slow is left alone for longer and longer, and delays nobody but itself: its job fails, RQ tries it
again, and what it has not taken stays in the log or the lake. What it will never take is kept as a dead letter.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis import Redis
from redis.exceptions import RedisError
from rq import get_current_job

from engine.deadletters import fields
from engine.events import Event, is_id, order
from engine.keys import Keys
from engine.lag import number
from workers.consume import COUNT, Commit, latest
from workers.history import history
from workers.reading import START, LogReader, Undecodable, batches, read_on, within
from workers.runtime import Runtime
from workers.sinks import Rejected, Retry, Sink, build
from workers.tenure import Keeper, LostOwnership, Ownership, Work, stopping

log = logging.getLogger(__name__)

BACKOFF_S = (1, 2, 5, 10, 30, 60, 120, 300, 600)
"""Seconds a receiver is left alone after its first, second, … failure in a row; the last for all further ones."""
RETRY_AFTER_MAX_S = 3_600
"""A receiver may ask for more time than that, and is asked again nevertheless."""
_FORGET_S = 7_200


class Postponed(Exception):
    """The sink is being left alone. The RQ job fails with this and is tried again when that is over."""


class Backoff:
    """How a sink fares with one group of partitions. What its receiver asks for itself counts for all groups.

    Fields of the hash: `failures:<group>`, `until:<group>` (ms), `why:<group>`, and `until` of the receiver.
    """

    def __init__(self, client: Redis, keys: Keys, sink: str, group: int, now: Callable[[], float] = time.time) -> None:
        self._client, self._key, self._now = client, keys.backoff(sink), now
        self._failures, self._until, self._why = (f"{name}:{group}" for name in ("failures", "until", "why"))
        self._failing = True

    def wait_s(self) -> float:
        """Seconds for which the sink is to be left alone; 0 if it is not."""
        until: Any = self._client.hmget(self._key, ["until", self._until])
        # No longer than anybody may ask for, whatever stands there.
        return min(RETRY_AFTER_MAX_S, max(0.0, max(map(number, until)) / 1000 - self._now()))

    def failed(self, after_s: float | None, why: str) -> float:
        """Notes a failure; how long to leave it alone now: what the receiver asked for, at least what our own table says."""
        failures: Any = self._client.hincrby(self._key, self._failures, 1)
        wait = BACKOFF_S[min(int(failures), len(BACKOFF_S)) - 1]
        asked = min(after_s or 0.0, RETRY_AFTER_MAX_S)
        wait_s = max(float(wait), asked)
        said: Any = {self._until: int((self._now() + wait_s) * 1000), self._why: why[:500]}
        if asked:
            said["until"] = int((self._now() + asked) * 1000)
        self._client.hset(self._key, mapping=said)
        self._client.expire(self._key, int(wait_s) + _FORGET_S)
        self._failing = True
        return wait_s

    def succeeded(self) -> None:
        if self._failing:
            self._client.hdel(self._key, self._failures, self._until, self._why)
            self._failing = False


@dataclass(slots=True)
class Batch:
    """One delivery. `reached`: partition → the position once it has arrived."""

    events: Sequence[Event]
    reached: Mapping[int, str]
    undecodable: Sequence[Undecodable] = ()


class Export(Work):
    """One sink on one group of partitions."""

    def __init__(
        self, run: Runtime, group: int, ownership: Ownership, sink: type[Sink], now: Callable[[], float] = time.time
    ) -> None:
        built = build(sink, run.settings)
        assert built is not None, sink.name
        self._run, self._group, self._owner, self._sink, self._now = run, group, ownership, built, now
        self._partitions = run.partitions(group)
        self._reader = LogReader(run.log, run.keys, self._partitions, built.topics)
        self._commit = Commit(run, built.name, 0, ownership)
        self._flight = run.keys.flight(built.name)
        self._backoff = Backoff(run.log, run.keys, built.name, group, now)
        own = built.positions()
        self._own = own is not None
        self._positions = dict(own) if own is not None else self._begun()
        self._batches: Iterator[Batch] = self._interrupted()
        self._under: Batch | None = None
        self.gathers = True
        """Whether a sink may let events gather; False: it is given what there is."""

    def step(self, wait_s: float) -> int:
        """Delivers one batch; how many events arrived, 1 if a position moved without any; 0: there is nothing to do.

        Raises Postponed, and whatever the sink fails with.
        """
        if (left := self._backoff.wait_s()) > 0:
            raise self._postponed(left, "it is being left alone")
        batch = self._under = self._under or self._next(wait_s)
        if batch is None:
            return 0
        dead = self._deliver(batch.events) if batch.events else []
        dead += [(f"{p}-{id_}", payload, why) for p, id_, payload, why in batch.undecodable]
        self._arrived(batch, dead)
        self._under = None
        return max(1, len(batch.events))

    def _next(self, wait_s: float) -> Batch | None:
        batch = next(self._batches, None)
        if batch is None:
            if self.gathers and (left := self._sink.gather_s(self._partitions)) > 0:
                stopping.wait(min(left, wait_s))
                return None
            self._batches = self._read(wait_s)
            batch = next(self._batches, None)
        return batch

    def _deliver(self, events: Sequence[Event]) -> list[tuple[str, bytes, str]]:
        """The events (id, payload, why) that the receiver will never take."""
        try:
            with Keeper(self._owner):
                self._sink.deliver(events)
        except Rejected as error:
            log.warning("refused", extra={"sink": self._sink.name, "events": len(error.refused), "why": str(error)})
            self._backoff.succeeded()
            return [(event.id, event.payload, why) for event, why in error.refused]
        except Retry as error:
            if stopping.is_set():
                raise Postponed("the worker stops") from error
            raise self._postponed(self._backoff.failed(error.after_s, str(error)), str(error)) from error
        except (LostOwnership, RedisError):
            raise
        except Exception as error:
            self._postponed(self._backoff.failed(None, f"{type(error).__name__}: {error}"), str(error))
            raise
        self._backoff.succeeded()
        return []

    def _arrived(self, batch: Batch, dead: Sequence[tuple[str, bytes, str]]) -> None:
        """Commits the position. Raises LostOwnership: then the batch is delivered once more by the new owner."""
        at = int(self._now() * 1000)
        pipe = self._commit.pipeline()
        pipe.hdel(self._flight, str(self._group))
        letters = [fields(of, payload, why, at) for of, payload, why in dead]
        self._commit.execute(pipe, batch.reached, len(batch.events) + len(batch.undecodable), letters)
        self._positions |= batch.reached

    def _postponed(self, wait_s: float, why: str) -> Postponed:
        """The error to raise; RQ will try the job again when the sink may be asked again."""
        log.warning("postponed", extra={"sink": self._sink.name, "seconds": round(wait_s, 1), "why": why})
        job = get_current_job()
        if job is not None and job.retry_intervals:
            job.retry_intervals = [max(1, math.ceil(wait_s))] * len(job.retry_intervals)
        return Postponed(f"{self._sink.name}: {why}")

    def _begun(self) -> dict[int, str]:
        """Where the sink stands. A new one begins with what the log holds, not with all that the lake does."""
        positions = self._commit.positions(self._partitions)
        missing = [p for p in self._partitions if p not in positions]
        if missing:
            keys, topics = self._run.keys, self._sink.topics
            trimmed: Any = self._run.log.hmget(keys.trimmed, [str(p) for p in missing])
            first = {p: id_.decode() if is_id(id_) else START for p, id_ in zip(missing, trimmed, strict=True)}
            gone = _forgotten(self._run.log, [keys.log(p, topic) for p in missing for topic in topics])
            pipe = self._commit.pipeline()
            pipe.hset(keys.cursor(self._sink.name), "topics", ",".join(topics))
            self._commit.execute(pipe, first, gone)
            positions |= first
        return positions

    def _read(self, wait_s: float) -> Iterator[Batch]:
        """What the log holds beyond the positions, in batches; waits for something if there is nothing."""
        found = self._reader.look(self._positions, COUNT, max(1, int(wait_s * 1000)))
        if self._own:
            read_on(self._reader, self._positions, found, self._sink.batch)
        if found.behind:
            yield from self._catch_up(found.behind)
        events, size = found.events, self._sink.batch
        for start in range(0, max(1, len(events)), size):
            batch, last = events[start : start + size], start + size >= len(events)
            reached = found.ends if last else latest(batch)
            if reached:
                undecodable = [u for u in found.undecodable if within(u, reached, self._positions)]
                yield self._under_way(Batch(batch, reached, undecodable))

    def _under_way(self, batch: Batch) -> Batch:
        """Notes how a batch was cut, so that a retry by another worker sends the same one."""
        if batch.events and not self._own:
            cut = orjson.dumps({str(p): id_ for p, id_ in batch.reached.items()})
            self._run.log.hset(self._flight, str(self._group), cut.decode())
        return batch

    def _interrupted(self) -> Iterator[Batch]:
        """The batch that was under way when the last tenure ended, if it can be cut from the log as it was."""
        cut: Any = self._run.log.hget(self._flight, str(self._group))
        reached = _cut_of(cut)
        if self._own or not reached or not set(reached) <= set(self._partitions):
            return
        reader = LogReader(self._run.log, self._run.keys, list(reached), self._sink.topics)
        found = reader.look(self._positions, COUNT)
        read_on(reader, self._positions, found, self._sink.batch)
        if found.behind or any(order(found.ends.get(p, START)) < order(id_) for p, id_ in reached.items()):
            return
        events = [event for event in found.events if order(event.stream_id) <= order(reached[event.partition])]
        yield Batch(events, reached, [u for u in found.undecodable if within(u, reached, self._positions)])

    def _catch_up(self, behind: Mapping[int, str]) -> Iterator[Batch]:
        """What the log has forgotten is in the lake; without one it is lost to this sink."""
        if not self._run.settings.lake_dir:
            log.error("lost_to_sink", extra={"sink": self._sink.name, "partitions": sorted(behind)})
        after = {p: self._positions.get(p, START) for p in behind}
        events = (
            event
            for event in history(self._run.settings, self._sink.topics, after)
            if order(event.stream_id) <= order(behind[event.partition])
        )
        for batch in batches(events, self._sink.batch):
            yield Batch(batch, latest(batch))
        yield Batch([], behind)


def _cut_of(stored: bytes | None) -> dict[int, str]:
    """How a batch was cut; {} if nobody can tell."""
    try:
        found = orjson.loads(stored) if stored else {}
        return {int(p): id_ for p, id_ in found.items() if is_id(id_)}
    except (ValueError, TypeError, AttributeError):
        return {}


def _forgotten(client: Redis, streams: Sequence[str]) -> int:
    """How many entries these streams have had and no longer hold: a new sink is not behind by them."""
    with client.pipeline(transaction=False) as pipe:
        for name in streams:
            pipe.xinfo_stream(name)
        found = pipe.execute(raise_on_error=False)
    return sum(int(one["entries-added"]) - int(one["length"]) for one in found if isinstance(one, dict))
