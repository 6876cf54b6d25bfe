"""Runs a consumer over its partitions: reads the log, gives it batches, commits what it writes with its position.

The commit is one transaction that also watches the ownership, so each event counts once, whichever worker dies when.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from redis.client import Pipeline
from redis.exceptions import WatchError

from engine import keeping
from engine.deadletters import fields
from engine.events import Event, order
from engine.lag import HANDLED, number
from workers.consumer import Consumer, DeadLetter
from workers.history import history
from workers.reading import Ahead, LogReader, Reading, batches, read_on, within
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership, Work, stopping
from workers.troubles import Troubles

COUNT = 1_000
"""Entries read of each stream at a time."""
CATCH_UP_S = 5.0
"""So long one step reads from the lake: opening it again costs less than that, and somebody may wait for the worker."""


class Commit:
    """The end of a batch: writes, dead letters and positions, all or nothing, if the owner is still the owner."""

    def __init__(self, run: Runtime, consumer: str, generation: int, ownership: Ownership) -> None:
        self._log, self._keys, self._owner = run.log, run.keys, ownership
        self._consumer, self._cursor = consumer, run.keys.cursor(consumer, generation)
        self._troubles = Troubles(run.log, run.keys, consumer)
        self._dead, self._lake = (run.settings.dead_max, run.settings.dead_max_bytes), bool(run.settings.lake_dir)

    def begin(self, topics: Sequence[str]) -> None:
        """Notes what the consumer reads. What the log has forgotten before it came counts as handled, unless it will have it
        from the lake."""
        if self._log.hsetnx(self._cursor, "topics", ",".join(topics)) and not self._lake:
            counts: Any = self._log.hmget(self._keys.mirrored, list(topics))
            with self._log.pipeline(transaction=False) as pipe:
                for partition in range(self._keys.partitions):
                    for topic in topics:
                        pipe.xlen(self._keys.log(partition, topic))
                held = sum(n for n in pipe.execute(raise_on_error=False) if isinstance(n, int))
            self._log.hset(self._cursor, HANDLED, max(0, sum(map(number, counts)) - held))

    def positions(self, partitions: Sequence[int]) -> dict[int, str]:
        found: Any = self._log.hmget(self._cursor, [str(p) for p in partitions])
        return {p: id_.decode(errors="replace") for p, id_ in zip(partitions, found, strict=True) if id_ is not None}

    def pipeline(self) -> Pipeline:
        """A transaction under way. Raises LostOwnership."""
        pipe = self._log.pipeline()
        self._watch(pipe)
        return pipe

    def _watch(self, pipe: Pipeline) -> None:
        pipe.watch(self._owner.key)
        if pipe.get(self._owner.key) != self._owner.token.encode():
            pipe.reset()
            raise LostOwnership(self._owner.key)
        pipe.multi()

    def execute(
        self, pipe: Pipeline, reached: Mapping[int, str], count: int, dead: Sequence[Mapping[Any, Any]] = ()
    ) -> None:
        """`count` events are done with, up to the ids `reached`. Raises LostOwnership; nothing was written then."""
        for letter in dead:
            pipe.execute_command(*keeping.command(self._keys.dead(self._consumer), letter, *self._dead))
        if reached:
            pipe.hset(self._cursor, mapping={str(p): id_ for p, id_ in reached.items()})
        if count:
            pipe.hincrby(self._cursor, HANDLED, count)
        commands = list(pipe.command_stack)
        try:
            while True:
                try:
                    # A command on a key of another type has changed nothing; the rest is committed, and counts.
                    self._troubles.check(pipe.execute(raise_on_error=False), "keys of a projection")
                    return
                except WatchError:
                    # Another's by now; or only renewed, which touches the key as well.
                    self._watch(pipe)
                    pipe.command_stack.extend(commands)
        finally:
            pipe.reset()


class Consume(Work):
    """One consumer on one group of partitions."""

    def __init__(self, run: Runtime, group: int, ownership: Ownership, cls: type[Consumer]) -> None:
        self._run = run
        partitions = run.partitions(group)
        generation = live_generation(run, cls.name)
        self._consumer = cls(run.log, run.keys.projection(cls.name, generation), run.settings)
        self._reader = Ahead(LogReader(run.log, run.keys, partitions, cls.topics))
        self._commit = Commit(run, cls.name, generation, ownership)
        self._owner = ownership
        self._commit.begin(cls.topics)
        self._positions = self._commit.positions(partitions)
        self._few, self._read_at = False, 0.0
        self.gathers = True
        """Whether events may gather; False: each round takes what there is."""

    def step(self, wait_s: float) -> int:
        if self.gathers and self._few and (left := self._read_at + self._consumer.gather_s - time.monotonic()) > 0:
            stopping.wait(min(left, wait_s))
            if left > wait_s:
                return 0
        self._read_at = time.monotonic()
        found = self._reader.look(self._positions, COUNT, max(1, int(wait_s * 1000)))
        read_on(self._reader, self._positions, found, self._consumer.few)
        done = self._catch_up(found) if found.behind else 0
        if found.ends:
            self._apply(found)
        done += len(found.events)
        self._few = done < self._consumer.few
        return done

    def close(self) -> None:
        self._reader.close()

    def _apply(self, found: Reading) -> None:
        """Commits what was read, in batches; the last one moves the positions to the reading's ends."""
        events = found.events
        size = self._consumer.batch
        for start in range(0, max(1, len(events)), size):
            batch, last = events[start : start + size], start + size >= len(events)
            reached = found.ends if last else latest(batch)
            bad = [entry for entry in found.undecodable if within(entry, reached, self._positions)]
            now = int(time.time() * 1000)
            self._commit_batch(
                batch, reached, [fields(f"{p}-{id_}", payload, why, now) for p, id_, payload, why in bad]
            )
            self._owner.renew()

    def _commit_batch(
        self, batch: Sequence[Event], reached: Mapping[int, str], undecodable: Sequence[Mapping[Any, Any]] = ()
    ) -> None:
        pipe = self._commit.pipeline()
        found = handle(self._consumer, batch, pipe)
        self._commit.execute(pipe, reached, len(batch) + len(undecodable), [*found, *undecodable])
        self._positions |= reached

    def _catch_up(self, found: Reading) -> int:
        """What the log has forgotten is in the lake; how many events that were. A step's worth of it: the tenure may be over."""
        after = {p: self._positions.get(p, "0-0") for p in found.behind}
        done, until = 0, time.monotonic() + CATCH_UP_S
        missed = (
            event
            for event in history(self._run.settings, self._consumer.topics, after)
            if order(event.stream_id) <= order(found.behind[event.partition])
        )
        for batch in batches(missed, self._consumer.batch):
            self._commit_batch(batch, latest(batch))
            self._owner.renew()
            done += len(batch)
            if stopping.is_set() or time.monotonic() > until:
                return done
        self._commit_batch([], found.behind)
        return done


def handle(consumer: Consumer, events: Sequence[Event], pipe: Pipeline) -> list[dict[str, Any]]:
    """Lets the consumer handle a batch; what it cannot handle is left out and returned as dead letters."""
    dead: list[dict[str, Any]] = []
    rest = list(events)
    while rest:
        queued = len(pipe.command_stack)
        try:
            consumer.handle(rest, pipe)
        except DeadLetter as letter:
            # What it queued for this batch so far is taken back; the batch is tried again without the event.
            del pipe.command_stack[queued:]
            dead.append(fields(letter.event.id, letter.event.payload, str(letter), int(time.time() * 1000)))
            rest = [event for event in rest if event is not letter.event]
        else:
            break
    return dead


def latest(events: Sequence[Event]) -> dict[int, str]:
    """The last id of each partition in a batch, which holds each partition's events in order."""
    return {event.partition: event.stream_id for event in events}


def live_generation(run: Runtime, projection: str) -> int:
    found: Any = run.log.hget(run.keys.generations, projection)
    return number(found) or 1
