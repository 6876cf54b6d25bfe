"""The lake: every event once, byte for byte, whatever is killed when."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

from engine.events import EVENTS, HEARTBEATS, Event, order, read
from engine.lake import Conflict, Lake, files, scan
from engine.lake.layout import HOUR, table
from engine.lake.manifest import KEEP_ROOTS
from engine.partitions import partition_of
from engine.settings import Settings
from tests.harness import PARTITIONS, World
from workers.lake import LakeSink
from workers.sinks import sinks

T0 = 1_760_000_400_000
AtStep = Callable[..., None]
ACCOUNTS = ("ann", "bob", "cid", "dan")


class Clock:
    """The real time, moved ahead."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return int(time.time() * 1000) + self.ahead


def event(n: int, partition: int = 0, *, at: int | None = None, type: str = "heartbeat", **fields: Any) -> Event:
    """The n-th event of a partition, a second after the one before; partitions belong to one account each."""
    whole = {
        "type": type, "at": T0 + n * 1000 if at is None else at, "view": 1, "started_at": T0, "seq": n, "watched_ms": n,
        "account": ACCOUNTS[partition % 4], "profile": "", "device": "tv", "session": f"s{partition}", "content": "film",
        "kind": "vod", "v": 1, "data": {"position": n / 10, "state": "playing"},
    }  # fmt: skip
    return read(partition, f"{T0 + n * 1000}-{n % 3}", orjson.dumps(whole | fields))


def some(numbers: Iterable[int], partitions: Iterable[int] = range(4)) -> list[Event]:
    """Both topics and, beyond 3,600 of them, several hours."""
    return [event(n, p, type="view_start" if n % 7 < 3 else "heartbeat") for n in numbers for p in partitions]


def ids(events: Iterable[Event]) -> list[str]:
    return [e.id for e in events]


def same(found: Iterable[Event], wanted: Iterable[Event]) -> bool:
    """Whether they are the same events, each once, those of a partition in order; all fields and every byte."""
    by_order = sorted(wanted, key=lambda e: (e.partition, order(e.stream_id)))
    listed = list(found)
    in_order = sorted(listed, key=lambda e: e.partition)  # stable: keeps the order within each
    return in_order == by_order and [e.payload for e in in_order] == [e.payload for e in by_order]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lake(tmp_path: Path, clock: Clock) -> Lake:
    return Lake(tmp_path / "lake", clock=clock)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> AtStep:
    """Does something before a change to the disk: the next one of that name, or a later one."""

    def arm(step: str, do: Callable[[], object], skip: int = 0) -> None:
        left = [skip]

        def hook(name: str) -> None:
            if name == step:
                left[0] -= 1
            if name == step and left[0] < 0:
                monkeypatch.setattr(files, "checkpoint", lambda _: None)
                do()

        monkeypatch.setattr(files, "checkpoint", hook)

    return arm


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "PIECE", 50)


# what goes in comes out


def test_events_come_back_byte_for_byte_in_order(lake: Lake) -> None:
    events = some(range(0, 8000, 40))
    for start in range(0, len(events), 100):
        assert lake.append(events[start : start + 100]) == 100
    assert same(lake.read(), events)
    assert lake.positions() == {p: events[-4 + p].stream_id for p in range(4)}
    folders = {str(path.parent).rpartition("lake/")[2] for topic in (HEARTBEATS, EVENTS) for path in lake.files(topic)}
    assert folders == {f"{topic}/date=2025-10-09/hour={h:02}" for topic in (HEARTBEATS, EVENTS) for h in (9, 10, 11)}


ODD: list[bytes] = [
    b'{"type":"heartbeat","at":1,"account":"a"}',
    b'{ "account":"a", "type":"heartbeat", "at":1, "data": {"x" : 1e3 } , "unknown":[1,2] }',
    b'{"type":"x","at":5,"view":0,"started_at":0,"account":"a\\"b\\\\","profile":"","device":"\xc3\xa9","session":"s\\/t","content":"c","kind":"vod","v":1,"data":"\\ud83d\\ude00"}',
    b'{"type":"x","at":5,"view":0,"started_at":0,"event_id":"e1","account":"a","profile":"","device":"d","session":"s","content":"c","kind":"","v":1,"data":null}',
    b'{"type":"x","at":5,"view":0,"started_at":0,"revision":0,"account":"a","profile":"","device":"d","session":"s","content":"c","kind":"","v":1,"data":[]}',
    b'{"type":"x","at":5,"view":0,"started_at":0,"seq":0,"watched_ms":0,"account":"a","profile":"","device":"d","session":"s","content":"c","kind":"","v":1,"data":{"a":1,"a":2}}',
    b'{"type":"x","at":99999999999999999999999,"seq":-99999999999999999999999,"account":"a","data":1}',
    b'{"type":"x","at":-5,"account":"a","v":4294967296,"data":{"deep":[[[[[[]]]]]]}}',
    b'{"type":"x","at":1800000000000,"account":"a","data":"\xff\xfe"}',
    b'{"type":"x","at":1800000000000,"account":"a","data":"}\\u0000,\\"data\\":"}',
]


def test_odd_payloads_are_kept_as_they_are(lake: Lake) -> None:
    events = [read(0, f"{n}-0", payload) for n, payload in enumerate(ODD, 1)]
    assert lake.append(events) == len(ODD)
    assert same(lake.read(), events)
    lake.compact(older_than_ms=0)
    assert same(lake.read(), events)


def test_what_our_own_scripts_write_needs_no_second_copy(prefix: str) -> None:
    with World("fake", prefix) as world:
        world.beat()
        world.wait(10)
        world.beat(events=[{"type": "seek"}])
        world.wait(60)
        world.sweep()
        world.beat()
        world.signal()
        world.stop()
        key = world.keys.outbox(partition_of("a", PARTITIONS))
        found = [read(0, id_.decode(), fields[b"e"]) for id_, fields in world.run(world.client.xrange(key))]
    assert {e.type for e in found} >= {"view_start", "heartbeat", "seek", "view_end", "view_reopen"}
    rows = table(found, [order(e.stream_id) for e in found])
    assert [p for p in rows["payload"].to_pylist() if p] == []


def test_filters(lake: Lake, small_pieces: None) -> None:
    events = some(range(0, 9000, 30))
    lake.append(events[:500])
    lake.append(events[500:])

    def check(wanted: Callable[[Event], bool], **asked: Any) -> None:
        assert same(lake.read(**asked), filter(wanted, events)), asked

    start, middle = T0 + 1000_000, T0 + 4000_000
    after = {p: f"{start}-{p}" for p in range(4)}
    check(lambda e: e.topic == EVENTS, topics=[EVENTS])
    check(lambda e: e.partition in (1, 3), partitions=[1, 3])
    check(lambda e: order(e.stream_id) > (start, e.partition), after=after)
    check(lambda e: e.partition > 0 or order(e.stream_id) > (start, 0), after={0: f"{start}-0"})
    check(
        lambda e: order(e.stream_id) > (start, 2**64),
        partitions=range(4),
        after=dict.fromkeys(range(4), f"{start}-{2**64 - 1}"),
    )
    check(lambda e: start <= e.at < middle, from_ms=start, to_ms=middle)
    check(lambda e: e.account == "bob", accounts=["bob", "nobody"])
    check(lambda e: e.type == "view_start" and e.partition == 2, types=["view_start"], partitions=[2, 99])
    assert list(lake.read(partitions=[])) == []
    assert list(Lake(Path("/nonexistent")).read()) == []


def test_a_late_event_joins_the_hour_it_happened_in_and_keeps_its_place_in_the_order(lake: Lake) -> None:
    events = [event(n, at=T0 - 30 * HOUR if n % 7 == 0 else None) for n in range(0, 4000, 50)]
    for start in range(0, len(events), 9):
        lake.append(events[start : start + 9])
    assert same(lake.read(), events)
    lake.compact(older_than_ms=0)
    assert same(lake.read(), events)
    assert same(lake.read(after={0: events[40].stream_id}, partitions=[0]), events[41:])
    assert len({path.parent for path in lake.files(HEARTBEATS, to_ms=T0 - 29 * HOUR)}) == 1


# exactly once


def test_what_is_covered_is_dropped(lake: Lake) -> None:
    events = some(range(100))
    lake.append(events[:200])
    assert lake.append(events[100:300] + events[100:300]) == 100
    assert lake.append(events[:300]) == 0
    assert same(lake.read(), events[:300])


def test_one_who_lost_its_partitions_adds_nothing_twice(lake: Lake, tmp_path: Path, at_step: AtStep) -> None:
    events = some(range(60))
    other = Lake(tmp_path / "lake")
    lake.append(events[:40])
    at_step("link", lambda: other.append(events[40:200]))
    assert lake.append(events[40:120]) == 0
    assert same(lake.read(), events[:200])
    assert lake.positions() == other.positions()
    assert sorted(tmp_path.rglob("*.parquet")) == sorted(p for t in (HEARTBEATS, EVENTS) for p in lake.files(t))


def test_writers_of_different_partitions_merge_their_commits(lake: Lake, tmp_path: Path, at_step: AtStep) -> None:
    mine, others = some(range(50), [0, 1]), some(range(50), [2, 3])
    at_step("link", lambda: Lake(tmp_path / "lake").append(others))
    assert lake.append(mine) == 100
    assert same(lake.read(), mine + others)


def test_two_processes_racing(tmp_path: Path) -> None:
    """Both write partition 0, and each one of its own."""
    script = (
        "import sys; from pathlib import Path; from tests.test_lake import some; from engine.lake import Lake\n"
        "lake = Lake(Path(sys.argv[1])); own = int(sys.argv[2])\n"
        "for n in range(30): lake.append(some(range(n * 5, n * 5 + 5), [0, own]))"
    )
    racing = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "lake"), own]) for own in "12"]
    assert [process.wait(60) for process in racing] == [0, 0]
    assert same(Lake(tmp_path / "lake").read(), some(range(150), [0, 1, 2]))


@pytest.mark.parametrize(("step", "skip"), [("create", 1), ("link", 0)])
def test_a_writer_that_slept_for_an_hour_looks_again(
    lake: Lake, clock: Clock, tmp_path: Path, at_step: AtStep, step: str, skip: int
) -> None:
    """Its files were swept; or its number n+1 was used and pruned meanwhile, so that it is free again."""
    other = Lake(tmp_path / "lake", clock=clock)
    others, mine = some(range(100), [0]), [event(n, 1) for n in range(3, 7)]
    other.append(others[:10])

    def an_hour() -> None:
        for n in range(KEEP_ROOTS + 4):
            other.append(others[10 + n * 4 : 14 + n * 4])
        clock.ahead += 2 * HOUR
        other.append(others[90:])
        if step == "create":
            other.sweep()

    at_step(step, an_hour, skip)
    assert lake.append(mine) == 4
    assert same(lake.read(), mine + others)


def test_too_many_conflicts_are_told(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, count = Lake(tmp_path / "lake"), iter(range(1, 1000))
    busy = False

    def hook(step: str) -> None:
        nonlocal busy
        if step == "link" and not busy:
            busy = True
            other.append([event(next(count))])
            busy = False

    monkeypatch.setattr(files, "checkpoint", hook)
    with pytest.raises(Conflict):
        lake.append([event(5000)])
    assert len(ids(lake.read())) == 5


# killed at every step

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import tests.test_lake as t
from engine.lake import files
what, base, where = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
for step in range(1, 500):
    folder = where / str(step)
    shutil.copytree(base, folder)
    child = os.fork()
    if child == 0:
        left = [step]
        def checkpoint(name):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        files.checkpoint = checkpoint
        t.VERBS[what](t.Lake(folder))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        break
    assert status == signal.SIGKILL, status
print(step)
"""
HAD, NEW = some(range(0, 4000, 100)), some(range(4000, 8000, 100))


def _sweep(lake: Lake) -> None:
    ahead = Clock()
    ahead.ahead = 2 * HOUR
    lake._clock = lake._manifests._clock = ahead
    lake.sweep()


VERBS: dict[str, Callable[[Lake], object]] = {
    "append": lambda lake: lake.append(NEW),
    "compact": lambda lake: lake.compact(older_than_ms=0),
    "erase": lambda lake: lake.erase("bob"),
    "sweep": _sweep,
}


@pytest.mark.parametrize("what", VERBS)
def test_killed_at_every_step(tmp_path: Path, what: str) -> None:
    base = Lake(tmp_path / "base")
    for start in range(0, len(HAD), 80):
        base.append(HAD[start : start + 80])
    if what == "sweep":
        base.compact(older_than_ms=0)
    run = [sys.executable, "-c", KILLED, what, str(tmp_path / "base"), str(tmp_path / "killed")]
    steps = int(subprocess.run(run, check=True, capture_output=True, timeout=100).stdout)
    assert steps > 8
    rest = [e for e in HAD if e.account != "bob"]
    outcomes = set()
    for step in range(1, steps + 1):
        folder = tmp_path / "killed" / str(step)
        lake = Lake(folder)
        left = list(lake.read())
        outcomes.add(len(left))
        if what == "append":
            assert same(left, HAD) or same(left, HAD + NEW), step
            assert lake.positions() == {e.partition: e.stream_id for e in (HAD if len(left) == len(HAD) else HAD + NEW)}
        elif what == "erase":
            assert same([e for e in left if e.account != "bob"], rest), step
        else:
            assert same(left, HAD), step
        VERBS[what](lake)
        assert same(lake.read(), {"append": HAD + NEW, "erase": rest}.get(what, HAD)), step
        _sweep(lake)
        if what == "erase":
            assert not [p for p in folder.rglob("*.parquet") if "bob" in pq.read_table(p)["account"].to_pylist()]
        on_disk = sorted(p for p in folder.rglob("*") if p.is_file() and "_manifest" not in p.parts)
        assert on_disk == sorted(p for t in (HEARTBEATS, EVENTS) for p in lake.files(t)), step
        assert same(lake.read(), {"append": HAD + NEW, "erase": rest}.get(what, HAD)), step
    assert outcomes == {"append": {len(HAD), len(HAD + NEW)}, "erase": {len(HAD), len(rest)}}.get(what, {len(HAD)})


# compaction


def test_a_quiet_hour_becomes_one_file_a_busy_one_a_few(lake: Lake, clock: Clock) -> None:
    now = clock()
    old = [event(n, n % 3, at=now - 2 * HOUR) for n in range(40)]
    new = [event(n, 3 + n % 3, at=now) for n in range(40)]
    for n in range(40):
        lake.append([old[n], new[n]])
    assert len(lake.files(HEARTBEATS)) == 80
    assert lake.compact(older_than_ms=60_000).merged > 0
    assert len(lake.files(HEARTBEATS)) < 10  # both hours received something just now
    clock.ahead = 2 * HOUR
    lake.compact(older_than_ms=60_000)
    assert len(lake.files(HEARTBEATS)) == 2
    assert lake.compact(older_than_ms=0).merged == 0
    assert same(lake.read(), old + new)


def test_large_files_are_split_between_partitions(lake: Lake, small_pieces: None) -> None:
    noise = Random(1)
    events = [event(n, n % 8, data={"noise": noise.randbytes(50).hex()}) for n in range(1200)]
    for start in range(0, 1200, 100):
        lake.append(events[start : start + 100])
    done = lake.compact(older_than_ms=0, target_bytes=30_000)
    assert done.written > 1
    holds = [set(pq.read_table(path)["partition"].to_pylist()) for path in lake.files(HEARTBEATS)]
    assert sum(map(len, holds)) == 8
    assert same(lake.read(), events)


def test_compaction_gives_way(lake: Lake, tmp_path: Path, at_step: AtStep) -> None:
    events = some(range(100))
    lake.append(events[:200])
    lake.append(events[200:])
    at_step("link", lambda: Lake(tmp_path / "lake").erase("cid"))
    lake.compact(older_than_ms=0)
    lake.compact(older_than_ms=0)
    assert same(lake.read(), [e for e in events if e.account != "cid"])
    assert set(tmp_path.rglob("*.parquet")) >= {p for t in (HEARTBEATS, EVENTS) for p in lake.files(t)}


# readers


def _half_read(lake: Lake, count: int) -> tuple[list[Event], Iterator[Event]]:
    reading = lake.read()
    return [next(reading) for _ in range(count)], reading


def test_a_reader_sees_one_moment_while_files_are_replaced_and_removed(
    lake: Lake, clock: Clock, small_pieces: None
) -> None:
    events = some(range(0, 20_000, 50))
    for start in range(0, 1200, 100):
        lake.append(events[start : start + 100])
    began, reading = _half_read(lake, 77)
    lake.append(events[1200:])
    lake.compact(older_than_ms=0)
    clock.ahead = 2 * HOUR
    assert lake.sweep() > 0
    assert same(began + list(reading), events[:1200])


def test_a_reader_goes_on_without_what_was_erased(lake: Lake, small_pieces: None) -> None:
    events = some(range(0, 20_000, 50))
    for start in range(0, len(events), 100):
        lake.append(events[start : start + 100])
    began, reading = _half_read(lake, 77)
    lake.erase("dan")
    found = began + list(reading)
    assert same([e for e in found if e.account != "dan"], [e for e in events if e.account != "dan"])
    assert sum(e.account == "dan" for e in found) < 100


def test_a_missing_file_is_an_error_not_a_gap(lake: Lake) -> None:
    lake.append(some(range(10)))
    lake.files(HEARTBEATS)[0].unlink()
    with pytest.raises(FileNotFoundError):
        list(lake.read())


# erasure


def test_erase(lake: Lake, tmp_path: Path) -> None:
    events = some(range(0, 8000, 40))
    for start in range(0, len(events), 200):
        lake.append(events[start : start + 200])
    lake.compact(older_than_ms=0)  # leaves the replaced files on disk
    receipt = lake.erase("ann")
    assert (receipt.rows, receipt.files) == (200, 6)
    assert same(lake.read(), [e for e in events if e.account != "ann"])
    for path in tmp_path.rglob("*.parquet"):
        assert "ann" not in pq.read_table(path)["account"].to_pylist()
    assert b"ann" not in b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
    assert lake.erase("ann").rows == 0


def test_the_erased_do_not_come_back_but_may_begin_anew(lake: Lake, tmp_path: Path, at_step: AtStep) -> None:
    events = some(range(40))
    lake.append(events[:80])
    at_step("link", lambda: Lake(tmp_path / "lake").erase("ann", through_ms=T0 + 30_000))
    lake.append(events[80:])
    kept = [e for e in events if e.account != "ann" or order(e.stream_id)[0] > T0 + 30_000]
    assert any(e.account == "ann" for e in kept)
    assert same(lake.read(), kept)
    assert lake.positions()[0] == event(39).stream_id


def test_erase_looks_only_where_the_account_can_be(tmp_path: Path) -> None:
    lake = Lake(tmp_path / "lake", partitions=16)
    names = [f"a{n}" for n in range(50)]
    events = [event(n, partition_of(name, 16), account=name) for n, name in enumerate(names)]
    lake.append(events)
    assert ids(lake.read(accounts=["a7"])) == [events[7].id]
    assert lake.erase("a7", "a8").rows == 2
    assert same(lake.read(), [e for e in events if e.account not in ("a7", "a8")])


# tidiness


def test_manifests_stay_few(lake: Lake, clock: Clock, tmp_path: Path) -> None:
    for n in range(60):
        lake.append([event(n)])
    clock.ahead = 2 * HOUR
    lake.sweep()
    lake.append([event(60)])
    manifest = tmp_path / "lake" / "_manifest"
    assert len(list(manifest.glob("0*.json"))) <= KEEP_ROOTS + 1
    assert len(list((manifest / "lists").iterdir())) <= 2
    assert len(ids(lake.read())) == 61


@pytest.mark.parametrize("when", ["before the sweep's manifest", "after it"])
def test_a_list_about_to_be_committed_is_not_swept_away(
    lake: Lake, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """A writer sleeps before it makes its root, and wakes up in the middle of a sweep or after it."""
    events = some(range(40))
    lake.append(events[:80])
    ready, go = threading.Event(), threading.Event()
    writer = threading.Thread(target=lake.append, args=(events[80:],))

    def wake() -> None:
        go.set()
        writer.join(30)

    def hook(step: str) -> None:
        if threading.current_thread() is writer and step == "link" and not ready.is_set():
            ready.set()
            assert go.wait(30)
        elif threading.current_thread() is not writer and step == "create" and not when.startswith("after"):
            wake()

    monkeypatch.setattr(files, "checkpoint", hook)
    writer.start()
    assert ready.wait(30)
    clock.ahead = 600_000
    Lake(tmp_path / "lake", clock=clock).sweep()
    wake()
    assert same(Lake(tmp_path / "lake").read(), events)


# the sink


def test_the_sink(tmp_path: Path) -> None:
    assert sinks()["lake"] is LakeSink
    assert LakeSink.from_settings(Settings()) is None
    sink = LakeSink.from_settings(Settings(lake_dir=str(tmp_path / "lake"), lake_roll_events=10))
    assert sink is not None
    assert sink.positions() == {}
    assert sink.batch == 10
    sink.deliver(some(range(1), [0, 1]))
    assert sink.positions() == {0: f"{T0}-0", 1: f"{T0}-0"}
    assert 0 < sink.gather_s([0, 7]) <= 5
    assert sink.gather_s([7]) == 0
    sink.deliver(some(range(1, 11), [0]))
    assert sink.gather_s([0]) == 0
    sink.tidy(0)
    assert len(ids(Lake(tmp_path / "lake").read())) == 12
