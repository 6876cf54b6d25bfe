"""The mirror: carries every outbox into the event log, in batches, under the same ids, and trims what the log has on disk.

Exactly once: a script on the log Redis appends a batch and notes how far it came in one step, and refuses a batch
that does not begin there (`lua/mirror.lua`). Nothing lost: an outbox is trimmed only behind what `WAITAOF` says has reached
the log's disk, so whatever a crashed log has forgotten is mirrored once more.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from engine import scripts
from engine.events import EVENTS, HEARTBEATS, PLAIN, is_id, order
from workers.disk import disk_of
from workers.line import Line
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership, Work, stopping
from workers.troubles import ASIDE_S, Troubles, own

log = logging.getLogger(__name__)

BATCH = 1_000
"""Events of one partition appended in one script call: about 2 ms in which the log Redis does nothing else."""
BATCH_BYTES = 2**20
"""Or so many bytes of them, one event more or less."""
TOGETHER = 4 * BATCH
"""Events sent in one write. The next write leaves before the last one's answer is there: reading, packing and appending
overlap, and `after` lets nothing in that does not follow (lua/mirror.lua)."""
GATHER_S = 0.04
"""While little comes, events gather so long: a round costs as much for ten events as for a hundred."""
FEW = 1_000
"""What counts as little, of one round."""
READ = 100_000
"""Events read in one go, over all partitions, where they are small."""
READ_BYTES = 32 * 2**20
"""Bytes that an answer should have at most. How large events are shows only when they are here, so a tenure begins with few
(`READ_FIRST` of each outbox) and reads more as long as they stay small."""
READ_FIRST = 16
CLUSTER_POLL_S = 0.1
"""A cluster cannot block on the outboxes of many slots, so they are asked this often."""
TRIM_EVERY_S = 0.5

_PLAIN_HEADS = tuple(b'{"type":"%b"' % name.encode() for name in sorted(PLAIN))

Entry = tuple[bytes, dict[bytes, bytes]]
"""Stream id, and its one field: `e`, JSON."""
Call = tuple[int, bytes, Sequence[Entry]]
"""Partition, the id before its first entry, and the entries."""


class Mirror(Work):
    """Mirrors one group of partitions."""

    def __init__(self, run: Runtime, group: int, ownership: Ownership) -> None:
        self._run, self._owner = run, ownership
        self._partitions = run.partitions(group)
        self._outboxes = {run.keys.outbox(p).encode(): p for p in self._partitions}
        self._script = scripts.load("mirror")
        self._line = Line(run.log)
        self._under_way: deque[Sequence[Call]] = deque()
        self._servers = ("", "")
        self._positions: dict[int, bytes] = {}
        self._trimmed: dict[int, bytes] = {}
        self._disk = disk_of(run, group)
        self._trim_at = self._look_at = self._read_at = 0.0
        self._few = False
        self._count = READ_FIRST
        self._troubles = Troubles(run.log, run.keys, "mirror")
        self._aside: dict[int, float] = {}
        """Partition → until when it is left out, because its outbox or its log cannot be read or written."""

    def step(self, wait_s: float) -> int:
        if self._few and (left := self._read_at + GATHER_S - time.monotonic()) > 0:
            stopping.wait(min(left, wait_s))
        self._take_back()
        self._meet_servers()
        self._read_at = time.monotonic()
        try:
            done, found = self._carry(wait_s)
        except NoScriptError:
            self._start_over()
            return 0
        except BaseException:
            self._start_over()
            raise
        self._few = found < FEW
        self._disk.reached(self._positions)
        if time.monotonic() >= self._trim_at:
            self._trim_at = time.monotonic() + TRIM_EVERY_S
            self._trim()
        return done

    def _carry(self, wait_s: float) -> tuple[int, int]:
        """Brings to the log what the outboxes hold; how many events were appended, and how many found."""
        done = found = waiting = 0
        calls: list[Call] = []
        for partition, entries in self._read(wait_s):
            after = self._positions.get(partition, b"")
            for batch, size in _cut(entries):
                calls.append((partition, after, batch))
                after, found = batch[-1][0], found + len(batch)
                waiting += max(len(batch), size * BATCH // BATCH_BYTES)
                if waiting >= TOGETHER:
                    done += self._send(calls)
                    self._owner.renew()
                    calls, waiting = [], 0
        if calls:
            done += self._send(calls)
        while self._under_way:
            done += self._receive()
        self._line.close()
        return done, found

    def _read(self, wait_s: float) -> Iterator[tuple[int, Sequence[Entry]]]:
        """What each outbox holds beyond its position; waits for something if there is nothing."""
        count = min(self._count, max(100, READ // len(self._partitions)))
        places = [(key, self._positions.get(p, b"0-0")) for key, p in self._outboxes.items() if p not in self._aside]
        if self._run.clustered or not places:
            found = self._ranges(places, count)
            if not found:
                stopping.wait(min(wait_s, CLUSTER_POLL_S))
        else:
            block = max(1, int(wait_s * 1000))
            keys, ids = [key for key, _ in places], [after for _, after in places]
            try:
                answer = self._run.session.execute_command(
                    "XREAD", "COUNT", count, "BLOCK", block, "STREAMS", *keys, *ids
                )
                found = dict(answer)
            except ResponseError as error:
                if not own(error):
                    raise
                # One key that is no stream fails them all.
                found = self._ranges(places, count)
        self._adapt(found, count)
        for key, entries in found.items():
            yield self._outboxes[key], entries

    def _ranges(self, places: Sequence[tuple[bytes, bytes]], count: int) -> dict[bytes, Sequence[Entry]]:
        """The same, outbox by outbox. One that cannot be read is left out for a while."""
        found: dict[bytes, Sequence[Entry]] = {}
        with self._run.session.pipeline(**({} if self._run.clustered else {"transaction": False})) as pipe:
            for key, after in places:
                pipe.execute_command("XRANGE", key, b"(" + after, "+", "COUNT", count)
            for (key, _), entries in zip(places, pipe.execute(raise_on_error=False), strict=True):
                if isinstance(entries, Exception):
                    if not own(entries):
                        raise entries
                    self._leave_out(self._outboxes[key], "outbox", entries)
                elif entries:
                    found[key] = entries
        return found

    def _adapt(self, found: Mapping[bytes, Sequence[Entry]], count: int) -> None:
        """How many of each outbox are read the next time."""
        size = sum(len(payload(fields)) for entries in found.values() for _, fields in entries)
        if size > READ_BYTES:
            self._count = max(1, count // 4)
        elif size < READ_BYTES // 4:
            self._count = min(READ, 4 * count)

    def _leave_out(self, partition: int, what: str, why: object) -> None:
        self._aside[partition] = time.monotonic() + ASIDE_S
        self._troubles.note(f"{what} of partition {partition}", why)

    def _take_back(self) -> None:
        """Partitions whose time is over are tried again, from where the log is now."""
        now = time.monotonic()
        if due := [p for p, until in self._aside.items() if until <= now]:
            for partition in due:
                del self._aside[partition]
            self._servers, self._look_at = ("", ""), 0.0

    def _send(self, calls: Sequence[Call]) -> int:
        """One script call each, in one write; how many events those before it turn out to have appended."""
        keys, commands = self._run.keys, []
        for partition, after, entries in calls:
            names = [keys.log(partition, HEARTBEATS), keys.log(partition, EVENTS), keys.mirrored, self._owner.key]
            args: list[Any] = [self._owner.token, partition, after]
            for id_, fields in entries:
                said = payload(fields)
                args += (1 if said.startswith(_PLAIN_HEADS) else 2, id_, said)
            commands.append(("EVALSHA", self._script.sha, len(names), *names, *args))
        self._line.send(commands)
        self._under_way.append(calls)
        return self._receive() if len(self._under_way) > 1 else 0

    def _receive(self) -> int:
        """The answers to the oldest write; how many events were appended. Where a call fails, those after it
        of its partition do not begin where the log ends, and are refused: nothing is left out."""
        calls, done = self._under_way.popleft(), 0
        for call, answer in zip(calls, self._line.answers(len(calls)), strict=True):
            if isinstance(answer, Exception):
                if not own(answer):
                    raise answer
                self._leave_out(call[0], "log", answer)
                continue
            done += self._appended(call[0], call[2], *answer)
        return done

    def _start_over(self) -> None:
        """What is under way may have been appended or not: the log says how far it came, and knows the script again."""
        self._line.close()
        self._under_way.clear()
        self._servers, self._look_at = ("", ""), 0.0

    def _appended(self, partition: int, entries: Sequence[Entry], code: int, mirrored: bytes = b"") -> int:
        if code == -1:
            raise LostOwnership(self._owner.key)
        if code == -2:
            if partition not in self._aside:  # else what follows a call that failed
                log.warning("mirrored_elsewhere", extra={"partition": partition, "mirrored": repr(mirrored)})
            self._place(partition, mirrored)
            return 0
        self._positions[partition] = entries[-1][0]
        return code

    def _place(self, partition: int, mirrored: bytes) -> None:
        """The log says how far it has this partition."""
        self._positions.pop(partition, None)
        if is_id(mirrored):
            self._positions[partition] = mirrored
        elif mirrored:
            self._leave_out(partition, "position", repr(mirrored))

    def _trim(self) -> None:
        """Takes from the outboxes what the log has on disk."""
        durable = self._disk.durable
        due = {p: durable[p] for p in self._partitions if p in durable and self._trimmed.get(p) != durable[p]}
        if not due:
            return
        with self._run.session.pipeline(**({} if self._run.clustered else {"transaction": False})) as pipe:
            for partition, id_ in due.items():
                ms, seq = order(id_.decode())
                pipe.xtrim(self._run.keys.outbox(partition), minid=f"{ms}-{seq + 1}", approximate=False)
            for (partition, _), answer in zip(due.items(), pipe.execute(raise_on_error=False), strict=True):
                if isinstance(answer, Exception):
                    if not own(answer):
                        raise answer
                    self._leave_out(partition, "outbox", answer)
        self._trimmed.update(due)

    def _meet_servers(self) -> None:
        """After a new run of a server: the log may have forgotten what it had last, and an outbox its last ids.

        No outbox may go on below what the log has of it. The API sees to that before it decides anything; this is for
        an API that could not ask the log.
        """
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + 1
        servers = _run_ids(self._run.session), _run_ids(self._run.log)
        if servers != self._servers:
            self._servers = servers
            self._run.log.script_load(self._script.source)
            found: Any = self._run.log.hgetall(self._run.keys.mirrored)
            for partition in self._partitions:
                self._place(partition, found.get(b"%d" % partition, b""))
            script = scripts.load("raise")
            for partition, id_ in self._positions.items():
                try:
                    self._run.call(script, [self._run.keys.outbox(partition)], [id_])
                except ResponseError as error:
                    if not own(error):
                        raise
                    self._leave_out(partition, "outbox", error)


def payload(fields: Mapping[bytes, bytes]) -> bytes:
    """An entry's JSON. One that has none goes on as nothing, which no consumer can read: it becomes a dead letter there."""
    return fields.get(b"e", b"")


def _cut(entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], int]]:
    """In batches, each with its bytes."""
    start = size = 0
    for end, (_, fields) in enumerate(entries, 1):
        size += len(payload(fields))
        if end - start >= BATCH or size >= BATCH_BYTES or end == len(entries):
            yield entries[start:end], size
            start, size = end, 0


def _run_ids(session: Any) -> str:
    """The runs of all session servers, as one string. Raises redis-py's errors."""
    info = (
        session.info("server")
        if not hasattr(session, "get_primaries")
        else session.info("server", target_nodes="primaries")
    )
    runs = [info] if "run_id" in info else list(info.values())
    return ",".join(sorted(str(run["run_id"]) for run in runs))
