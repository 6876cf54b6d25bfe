"""Memory is bounded by bytes, not by counts: a backlog of the largest events there may be, and what is held of it at a time."""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.embedded import Server
from engine.keys import Keys
from tests.harness import PARTITIONS
from tests.pipeline import drain, log_ids, owner, plant, put
from tests.servers import ROOT
from workers import mirror, reading
from workers.consume import Consume
from workers.consumer import load
from workers.export import Export
from workers.lake import LakeSink
from workers.mirror import Mirror
from workers.reading import READ_MAX_BYTES, LogReader, Reading, batches
from workers.runtime import Runtime
from workers.sinks import Sink, build

MB = 2**20
LARGE = "x" * (MB - 200)
ROOM = READ_MAX_BYTES + 2 * reading.LARGE_COUNT * MB
"""What one reading may hold: the budget, and the answer that spends it."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that goes with the test, and what it held."""
    server = Server(tmp_path / "redis", {"save": ""})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def run(own: Server, prefix: str, tmp_path: Path) -> Iterator[Runtime]:
    built = plant(own.url, own.url, prefix, lake_dir=str(tmp_path / "lake"))
    yield built
    built.close()


def backlog(run: Runtime, count: int, *, small: int = 200) -> int:
    """So many large events among small ones, mirrored; how many there are in all."""
    fill = {"data": {"fill": LARGE}}
    for n in range(small):
        put(run, n % PARTITIONS, "heartbeat")
    for n in range(count):
        put(run, n % 3, "custom", **fill)
    for n in range(small):
        put(run, n % PARTITIONS, "pause")
    carry(run)
    return count + 2 * small


def carry(run: Runtime) -> None:
    ownership = owner(run, "mirror")
    work = Mirror(run, 0, ownership)
    drain(work)
    work._disk.close()
    work._disk.join(5)
    ownership.release()


class Largest:
    """The most bytes of payload that one reading had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        fetch = LogReader._look

        def counted(reader: LogReader, *args: Any) -> Reading:
            found = fetch(reader, *args)
            self.bytes = max(self.bytes, sum(len(event.payload) for event in found.events))
            return found

        monkeypatch.setattr(LogReader, "_look", counted)


def test_a_reading_holds_no_more_than_its_budget(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    count, largest = backlog(run, 150), Largest(monkeypatch)
    reader = LogReader(run.log, run.keys, range(PARTITIONS))
    positions: dict[int, str] = {}
    seen: list[str] = []
    while found := reader.look(positions):
        reading.read_on(reader, positions, found, 10**6)
        assert found.size <= ROOM
        seen += [event.id for event in found.events]
        positions |= found.ends
    assert len(seen) == len(set(seen)) == count
    for partition in range(PARTITIONS):
        mine = [id_.partition("-")[2] for id_ in seen if id_.startswith(f"{partition}-")]
        assert mine == log_ids(run, partition)
    assert largest.bytes <= ROOM


def test_nor_after_a_long_time_of_small_ones(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader has learned that much fits, and is wrong."""
    reader = LogReader(run.log, run.keys, range(PARTITIONS))
    positions: dict[int, str] = {}
    for _ in range(20):
        backlog(run, 0, small=50)
        positions |= reader.look(positions).ends
    count, largest = backlog(run, 100), Largest(monkeypatch)
    seen = 0
    while found := reader.look(positions):
        seen += len(found.events)
        positions |= found.ends
    assert seen == count
    assert largest.bytes <= ROOM


def test_many_partitions_with_large_ones_take_turns(run: Runtime) -> None:
    for _ in range(5):
        for partition in range(PARTITIONS):
            put(run, partition, "custom", data={"fill": LARGE})
    carry(run)
    reader = LogReader(run.log, run.keys, range(PARTITIONS))
    positions: dict[int, str] = {}
    rounds = 0
    while found := reader.look(positions):
        assert found.size <= ROOM
        positions |= found.ends
        rounds += 1
    assert rounds <= 5 * PARTITIONS * MB // READ_MAX_BYTES + 2
    assert all(positions[p] == log_ids(run, p)[-1] for p in range(PARTITIONS))


def test_small_ones_before_a_large_one_are_read_bit_by_bit(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reading takes only so long, whatever is ahead; the next goes on with other partitions first."""
    for partition in range(4):
        for _ in range(60):
            put(run, partition, "pause")
        put(run, partition, "custom", data={"fill": LARGE})
    carry(run)
    monkeypatch.setattr("workers.reading.LARGE_READS", 3)
    reader = LogReader(run.log, run.keys, range(PARTITIONS))
    positions: dict[int, str] = {}
    seen = 0
    while found := reader.look(positions):
        assert len(found.events) <= 3 * reading.LARGE_COUNT
        seen += len(found.events)
        positions |= found.ends
    assert seen == 4 * 61
    assert all(positions[p] == log_ids(run, p)[-1] for p in range(4))


def test_what_a_sink_and_a_consumer_are_given(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    count = backlog(run, 120)
    given: list[int] = []

    class Counting(Sink):
        name = "counting"
        batch = 100_000

        @classmethod
        def from_settings(cls, settings: Any) -> Counting:
            return cls()

        def deliver(self, events: Any) -> None:
            given.append(sum(len(event.payload) for event in events))
            self.events = getattr(self, "events", 0) + len(events)

    work = Export(run, 0, owner(run, "export-counting"), Counting)
    drain(work)
    sink: Any = build(Counting, run.settings)
    assert sink.events == count
    assert max(given) <= ROOM

    handled: list[int] = []
    views = load("views")
    handle = views.handle
    monkeypatch.setattr(
        views, "handle", lambda self, events, pipe: (handled.append(sum(len(e.payload) for e in events)), handle(self, events, pipe))[1]
    )  # fmt: skip
    consume = Consume(run, 0, owner(run, "consume-views"), views)
    drain(consume)
    consume.close()
    assert max(handled) <= ROOM


def test_what_comes_from_the_lake_comes_in_pieces(run: Runtime) -> None:
    count = backlog(run, 100)
    work = Export(run, 0, owner(run, "export-lake"), LakeSink)
    work.gathers = False
    drain(work)
    lake: Any = build(LakeSink, run.settings)
    found = list(batches(lake._lake.read(), 10**6))
    assert sum(map(len, found)) == count
    assert max(sum(len(event.payload) for event in batch) for batch in found) <= READ_MAX_BYTES + MB


def test_the_mirror_sends_and_reads_by_bytes(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    read: list[int] = []
    send, adapt = Mirror._send, Mirror._adapt

    def counted(self: Mirror, calls: Any) -> int:
        sent.append(sum(len(fields[b"e"]) for _, _, entries in calls for _, fields in entries))
        return send(self, calls)

    def noted(self: Mirror, found: Any, count: int) -> None:
        read.append(sum(len(fields[b"e"]) for entries in found.values() for _, fields in entries))
        adapt(self, found, count)

    monkeypatch.setattr(Mirror, "_send", counted)
    monkeypatch.setattr(Mirror, "_adapt", noted)
    assert backlog(run, 200) == sum(len(log_ids(run, p)) for p in range(PARTITIONS))
    assert max(sent) <= 8 * mirror.BATCH_BYTES
    assert max(read) <= 2 * mirror.READ_BYTES


@pytest.mark.timeout(120)
def test_the_lake_s_exporter_stays_small(run: Runtime) -> None:
    """400 MB wait; the process that carries them takes a part of that."""
    fill = random.Random(7).randbytes(3 * MB // 8).hex()
    for n in range(530):
        put(run, n % 3, "custom", data={"fill": fill})
    carry(run)
    env = os.environ | run.settings.to_env() | {"PYTHONPATH": str(ROOT)}
    code = "from tests.hostile.test_exporter_bytes import child; child()"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    before, after, events = map(int, done.stdout.split())
    assert events == 530
    assert after - before < 300 * MB, f"{(after - before) / MB:.0f} MB more"


def child() -> None:
    """Exports all there is to the lake, and says how large it was before and at most, and how many events there are."""
    from engine.settings import Settings

    run = Runtime.of(Settings.from_env(os.environ))
    ownership = owner(run, "export-lake")
    work = Export(run, 0, ownership, LakeSink)
    work.gathers = False
    before = _peak()
    while work.step(0.01):
        ownership.renew()
    print(before, _peak(), run.log.hget(Keys(run.settings.prefix, PARTITIONS).cursor("lake"), "handled").decode())  # type: ignore[union-attr]


def _peak() -> int:
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found * 1024


def test_events_are_large_as_the_mirror_says(run: Runtime) -> None:
    """What the reader relies on."""
    put(run, 0, "custom", data={"fill": "x" * 3_000})
    last = put(run, 0, "custom", data={"fill": "x" * 3_000})
    put(run, 0, "custom", data={"fill": "x"})
    put(run, 1, "custom", data={"fill": "x"})
    carry(run)
    marks: Any = run.log.hmget(run.keys.mirrored, ["large:0", "large:1"])
    assert marks == [last.encode(), None]
