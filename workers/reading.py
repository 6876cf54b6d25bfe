"""Reads the event log for consumers and exports: both topics of each partition, merged into one order.

Order within a partition is the order of the ids, across topics: a view's `view_start` comes before its first heartbeat.
So where Redis cut one topic's answer short, the other is delivered only as far. One `XREAD` reads all streams, hence all
of them as of one moment; a position may thus move to the last id seen of either topic, or to what the mirror had
written before, even if the topics read here hold nothing that young.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec
from redis import Redis

from engine.events import TOPICS, Event, order, read
from engine.keys import Keys

READ_MAX = 80_000
"""Entries of all streams in one answer, at most."""
MUCH = 5_000
"""Events in one answer after which the next one is asked for at once."""
READ_MAX_BYTES = 64 * 2**20
"""An answer with more payload than this makes the next one smaller."""
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
        self._fields = [str(p) for p in self._partitions]
        self._streams = {keys.log(p, topic).encode(): p for p in self._partitions for topic in topics}
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
        ids = [positions.get(p, START) for p in self._streams.values()]
        return bool(self._client.execute_command("XREAD", "COUNT", 1, "BLOCK", block_ms, "STREAMS", *self._names, *ids))

    def _look(self, positions: Mapping[int, str], count: int) -> Reading:
        count = min(count, self._count_max)
        ids = [positions.get(p, START) for p in self._streams.values()]
        # In this order: all that was mirrored before the reading is in it, all that was trimmed before it is noted after it.
        pipe = self._client.pipeline(transaction=False)
        pipe.hmget(self._mirrored, self._fields)
        pipe.execute_command("XREAD", "COUNT", count, "STREAMS", *self._names, *ids)
        pipe.hmget(self._trimmed, self._fields)
        mirrored, answer, trimmed = pipe.execute()
        found = Reading()
        for partition, id_ in zip(self._partitions, trimmed, strict=True):
            if id_ and order(id_.decode()) > order(positions.get(partition, START)):
                found.behind[partition] = id_.decode()
        topics = self._by_partition(answer)
        for partition, seen in zip(self._partitions, mirrored, strict=True):
            if partition in found.behind:
                continue
            entries, cut = _merge(topics.get(partition, ()), count)
            found.size += _decode(partition, entries, found)
            found.more = found.more or cut
            end = entries[-1][0].decode() if entries else ""
            if seen and not cut and order(seen.decode()) > order(end or positions.get(partition, START)):
                end = seen.decode()
            if end:
                found.ends[partition] = end
        self._adapt(found.size)
        return found

    def _by_partition(self, answer: Any) -> dict[int, list[Entries]]:
        topics: dict[int, list[Entries]] = {}
        pairs = answer.items() if isinstance(answer, dict) else answer or ()
        for name, entries in pairs:
            topics.setdefault(self._streams[name], []).append(entries)
        return topics

    def _adapt(self, size: int) -> None:
        """Payloads are between 250 bytes and 64 KB: how many fit into memory shows only when they are here."""
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
    while found.more and not found.behind and len(found.events) < enough and found.size < READ_MAX_BYTES:
        further = reader.look({**positions, **found.ends})
        if further.behind:
            return  # the next reading meets it again
        found.events += further.events
        found.undecodable += further.undecodable
        found.ends |= further.ends
        found.size += further.size
        found.more = further.more


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
