"""Reads the event log for consumers and exports: both topics of each partition, merged into one order.

Order within a partition is the order of the ids, across topics: a view's `view_start` comes before its first heartbeat.
So where Redis cut one topic's answer short, the other is delivered only as far. One `XREAD` reads all streams, hence all
of them as of one moment; a position may thus move to the last id seen of either topic, or to what the mirror had
written before, even if the topics read here hold nothing that young.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import ResponseError

from engine.events import TOPICS, Event, is_id, order, read
from engine.keys import Keys
from workers.troubles import ASIDE_S, Troubles, own

READ_MAX = 80_000
"""Entries of all streams in one answer, at most."""
MUCH = 5_000
"""Events in one answer after which the next one is asked for at once."""
READ_MAX_BYTES = 16 * 2**20
"""Payload in memory: with so much, nothing further is read until it is done with. What a sink or consumer makes of it takes a few
times as much."""
LARGE_COUNT = 8
"""Entries of a stream in one answer while an event of more than 2 KB is ahead (`lua/mirror.lua` notes that): with events of 1 MB,
the largest there are, 16 MB of a partition. All others are read by `READ_MAX`, so an answer with them has at most 160 MB, and 32 MB
with events of 400 bytes."""
LARGE_READS = 1_000
"""Such answers in one reading: what is left comes with the next, for whoever reads must renew its ownership meanwhile."""
READ_ON_S = 1.5
"""So long a reading goes on for more: well below `OWNER_MS`."""
START = "0-0"

Undecodable = tuple[int, str, bytes, str]
"""Partition, stream id, payload, why."""
Entries = Sequence[Any]


@dataclass(slots=True)
class Reading:
    """What the log holds beyond the positions. `bool` tells whether any position moves."""

    events: list[Event] = field(default_factory=list)
    """Those of a partition in the order of their ids."""
    undecodable: list[Undecodable] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    """Partition → where its position stands once `events` and `undecodable` are done with."""
    behind: dict[int, str] = field(default_factory=dict)
    """Partition → the id up to which the log was trimmed, beyond the position. Of these partitions nothing was read: what
    the log has forgotten is in the lake."""
    more: bool = False
    """Some stream holds more than was asked for at once."""
    size: int = 0
    """Bytes of payload."""

    def __bool__(self) -> bool:
        return bool(self.ends or self.behind)

    def absorb(self, further: Reading) -> None:
        """What was read after this."""
        self.events += further.events
        self.undecodable += further.undecodable
        self.ends |= further.ends
        self.behind |= further.behind
        self.size += further.size


class Behind(Exception):
    """The log no longer holds what follows these positions. `trimmed`: partition → up to which id."""

    def __init__(self, trimmed: Mapping[int, str]) -> None:
        super().__init__(f"the log was trimmed beyond the position of partitions {', '.join(map(str, trimmed))}")
        self.trimmed = dict(trimmed)


class LogReader:
    """Reads `topics` of `partitions`. Positions are stream ids, exclusive; a partition without one begins at the start."""

    def __init__(self, client: Redis, keys: Keys, partitions: Sequence[int], topics: Sequence[str] = TOPICS) -> None:
        # A client of its own on the same connections: redis-py's own parsing of streams would cost as much as the rest.
        self._client: Any = type(client)(connection_pool=client.connection_pool)
        self._client.set_response_callback("XREAD", lambda answer, **_: answer)
        self._partitions = sorted(partitions)
        self._topics = {p: [keys.log(p, topic).encode() for topic in topics] for p in self._partitions}
        self._streams = {name: p for p, names in self._topics.items() for name in names}
        self._troubles = Troubles(client, keys, "log")
        self._aside: dict[int, float] = {}
        self._turn = 0
        self._names = list(self._streams)
        self._mirrored, self._trimmed = keys.mirrored, keys.trimmed
        self._count_max = max(1, READ_MAX // max(1, len(self._names)))

    def read(
        self, positions: Mapping[int, str], count: int = 1_000, block_ms: int = 0
    ) -> tuple[list[Event], list[Undecodable]]:
        """The events beyond `positions`, and what could not be decoded. Raises Behind, and redis-py's errors."""
        found = self.look(positions, count, block_ms)
        if found.behind:
            raise Behind(found.behind)
        return found.events, found.undecodable

    def look(self, positions: Mapping[int, str], count: int = 1_000, block_ms: int = 0) -> Reading:
        """At most `count` entries of each stream. If there are none, waits for the first, at most `block_ms`.

        Raises redis-py's errors.
        """
        if not self._partitions:
            return Reading()
        found = self._look(positions, count)
        if not found and block_ms > 0 and self._wait(positions, block_ms):
            found = self._look(positions, count)
        return found

    def _wait(self, positions: Mapping[int, str], block_ms: int) -> bool:
        """Whether something came. What woke us is read anew: Redis 7.0 answers with that one stream only, and its
        partition's other topic may hold an earlier id."""
        names = [name for p in self._sound(positions) for name in self._topics[p]]
        if not names:
            return False
        ids = [positions.get(self._streams[name], START) for name in names]
        return bool(self._client.execute_command("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *names, *ids))

    def _look(self, positions: Mapping[int, str], count: int) -> Reading:
        found = Reading()
        sound = self._sound(positions)
        large = self._with_large(sound, positions)
        self._fetch([p for p in sound if p not in large], positions, min(count, self._count_max), found)
        self._adapt(found.size)
        # Not always the same ones first: there may be no room for all of them.
        self._turn += 1
        start, reads = self._turn % max(1, len(large)), LARGE_READS
        for partition in large[start:] + large[:start]:
            reads -= self._fetch_large(partition, positions, min(count, reads * LARGE_COUNT), found)
        return found

    def _sound(self, positions: Mapping[int, str]) -> list[int]:
        """The partitions that can be read. One whose streams are none of ours, or whose position is no id, is left out for a while."""
        now = time.monotonic()
        for partition in [p for p, until in self._aside.items() if until <= now]:
            del self._aside[partition]
        for partition in self._partitions:
            if partition in positions and partition not in self._aside and not is_id(positions[partition]):
                self._leave_out(partition, f"its position is {positions[partition]!r}")
        return [p for p in self._partitions if p not in self._aside]

    def _leave_out(self, partition: int, why: object) -> None:
        self._aside[partition] = time.monotonic() + ASIDE_S
        self._troubles.note(f"log of partition {partition}", why)

    def _with_large(self, partitions: Sequence[int], positions: Mapping[int, str]) -> list[int]:
        """Those with a large event ahead."""
        if not partitions:
            return []
        marks = self._client.hmget(self._mirrored, [f"large:{p}" for p in partitions])
        return [
            p
            for p, mark in zip(partitions, marks, strict=True)
            if is_id(mark) and order(mark.decode()) > order(positions.get(p, START))
        ]

    def _fetch_large(self, partition: int, positions: Mapping[int, str], count: int, found: Reading) -> int:
        """As many as `count`, a few at a time, as long as there is room; how many answers that took."""
        reads = 0
        at, left = {partition: positions.get(partition, START)}, count
        while left > 0 and found.size < READ_MAX_BYTES:
            part = Reading()
            self._fetch([partition], at, min(left, LARGE_COUNT), part)
            found.absorb(part)
            reads += 1
            if not part.more:
                return reads
            at, left = dict(part.ends), left - LARGE_COUNT
        found.more = True
        return reads

    def _fetch(self, partitions: Sequence[int], positions: Mapping[int, str], count: int, found: Reading) -> None:
        """At most `count` entries of each stream, all in one answer."""
        names = [name for p in partitions for name in self._topics[p]]
        if not names:
            return None
        ids, fields = [positions.get(self._streams[name], START) for name in names], [str(p) for p in partitions]
        # In this order: all that was mirrored before the reading is in it, all that was trimmed before it is noted after it.
        pipe = self._client.pipeline(transaction=False)
        pipe.hmget(self._mirrored, fields)
        pipe.execute_command("XREAD", "COUNT", count, "STREAMS", *names, *ids)
        pipe.hmget(self._trimmed, fields)
        mirrored, answer, trimmed = pipe.execute(raise_on_error=False)
        for each in (mirrored, answer, trimmed):
            if isinstance(each, ResponseError) and each is answer and own(each) and self._find_wrong(partitions):
                return self._fetch([p for p in partitions if p not in self._aside], positions, count, found)
            if isinstance(each, Exception):
                raise each
        for partition, id_ in zip(partitions, trimmed, strict=True):
            if is_id(id_) and order(id_.decode()) > order(positions.get(partition, START)):
                found.behind[partition] = id_.decode()
        topics = self._by_partition(answer)
        for partition, seen in zip(partitions, mirrored, strict=True):
            if partition in found.behind:
                continue
            entries, cut = _merge(topics.get(partition, ()), count)
            found.size += _decode(partition, entries, found)
            found.more = found.more or cut
            end = entries[-1][0].decode() if entries else ""
            if is_id(seen) and not cut and order(seen.decode()) > order(end or positions.get(partition, START)):
                end = seen.decode()
            if end:
                found.ends[partition] = end
        return None

    def _find_wrong(self, partitions: Sequence[int]) -> bool:
        """Leaves out the partitions whose keys are no streams; whether there are any."""
        names = [name for p in partitions for name in self._topics[p]]
        pipe = self._client.pipeline(transaction=False)
        for name in names:
            pipe.type(name)
        wrong = {}
        for name, kind in zip(names, pipe.execute(), strict=True):
            if kind not in (b"stream", b"none"):
                wrong[self._streams[name]] = f"{name.decode()} is a {kind.decode()}"
        for partition, why in wrong.items():
            self._leave_out(partition, why)
        return bool(wrong)

    def _by_partition(self, answer: Any) -> dict[int, list[Entries]]:
        topics: dict[int, list[Entries]] = {}
        pairs = answer.items() if isinstance(answer, dict) else answer or ()
        for name, entries in pairs:
            topics.setdefault(self._streams[name], []).append(entries)
        return topics

    def _adapt(self, size: int) -> None:
        """Payloads are between 250 bytes and 2 KB: how many fit into memory shows only when they are here."""
        most = max(1, READ_MAX // len(self._names))
        self._count_max = max(1, self._count_max // 4) if size > READ_MAX_BYTES else min(most, self._count_max * 2)


class Ahead:
    """Reads on while its user works on what it was given: the log server is asked while this process computes, and the other
    way round. Only after much was found, so that what comes slowly is read when it is wanted."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._next: tuple[dict[int, str], Future[Reading]] | None = None

    def look(self, positions: Mapping[int, str], count: int = 1_000, block_ms: int = 0) -> Reading:
        """As `LogReader.look`."""
        found = self._fetched(positions) or self._reader.look(positions, count, block_ms)
        if len(found.events) >= MUCH and not found.behind:
            after = {**positions, **found.ends}
            self._next = after, self._thread.submit(self._reader.look, after, count)
        return found

    def _fetched(self, positions: Mapping[int, str]) -> Reading | None:
        """What was read ahead, if it begins at these positions and is not nothing."""
        if self._next is None:
            return None
        (after, reading), self._next = self._next, None
        found = reading.result()
        return found if found and after == positions else None

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


def read_on(reader: LogReader | Ahead, positions: Mapping[int, str], found: Reading, enough: int) -> None:
    """Goes on until there are `enough` events, or no more. Many streams are read at once, so a busy one is given out little by little:
    whoever lets events gather in between would fall behind for ever."""
    until = time.monotonic() + READ_ON_S
    while (
        found.more
        and not found.behind
        and len(found.events) < enough
        and found.size < READ_MAX_BYTES
        and time.monotonic() < until
    ):
        further = reader.look({**positions, **found.ends})
        if further.behind:
            return  # the next reading meets it again
        found.absorb(further)
        found.more = further.more


def batches(events: Iterable[Event], most: int) -> Iterator[list[Event]]:
    """Lists of at most so many events, or of `READ_MAX_BYTES`, one event more or less; as they come."""
    batch: list[Event] = []
    size = 0
    for event in events:
        batch.append(event)
        size += len(event.payload)
        if len(batch) >= most or size >= READ_MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _merge(topics: Sequence[Entries], count: int) -> tuple[Entries, bool]:
    """One partition's entries in order, as far as all its topics reach; and whether a topic goes on beyond that."""
    cut = [order(entries[-1][0].decode()) for entries in topics if len(entries) >= count]
    if len(topics) < 2:
        return (topics[0] if topics else ()), bool(cut)
    merged = sorted((entry for entries in topics for entry in entries), key=_id_of)
    if cut:
        end = min(cut)
        while _id_of(merged[-1]) > end:
            merged.pop()
    return merged, bool(cut)


def _id_of(entry: Any) -> tuple[int, int]:
    ms, _, seq = entry[0].partition(b"-")
    return int(ms), int(seq)


def _decode(partition: int, entries: Entries, into: Reading) -> int:
    """Bytes of payload decoded."""
    size = 0
    add = into.events.append
    for id_, fields in entries:
        payload = _payload(fields)
        size += len(payload)
        try:
            add(read(partition, id_.decode(), payload))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            into.undecodable.append((partition, id_.decode(), payload, str(error)))
    return size


def _payload(fields: Any) -> bytes:
    """The entry's one field `e`; b'' if it is none of ours."""
    if isinstance(fields, dict):
        return bytes(fields.get(b"e", b""))
    return fields[1] if fields and fields[0] == b"e" else b""


def within(entry: Undecodable, reached: Mapping[int, str], positions: Mapping[int, str]) -> bool:
    """Whether a position that moves from `positions` to `reached` passes this entry."""
    partition, id_ = entry[0], order(entry[1])
    return order(positions.get(partition, START)) < id_ <= order(reached.get(partition, START))
