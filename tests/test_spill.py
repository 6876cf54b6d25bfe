"""A full outbox: what may not be thinned goes to an API's disk and comes back, each event once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from engine.embedded import VOLATILE, Server
from engine.errors import Unavailable
from engine.keys import Keys
from engine.partitions import partition_of
from engine.spill import Spill
from engine.spool import Spool
from engine.watch import Backlog
from tests.harness import PARTITIONS, World
from tests.servers import ApiProcess, player, wait_for

HIGH, MAX = 10, 70
FULL = 40
"""Zaps that fill an outbox, and more than half of what may wait beside it."""


@pytest.fixture
def world(backend: str, prefix: str) -> Iterator[World]:
    with World(backend, prefix, outbox_high=HIGH, outbox_max=MAX) as made:
        yield made


class Api:
    """What an API process does about spilled events."""

    def __init__(self, world: World, directory: Path | None) -> None:
        self.world = world
        self.spool = Spool(directory, 2**20, world.metrics.spilled)
        self.spool.open()
        self.backlog = Backlog(world.client, world.keys, world.settings, world.metrics, world.outage)
        self.spill = Spill(world.client, world.executor, world.keys, self.spool, world.decisions.restore)

    def take(self) -> None:
        self.world.run(self.backlog.look())
        self.world.run(self.spill.take(self.backlog.spilling))

    def give_back(self) -> None:
        self.world.run(self.spill.give_back())


@pytest.fixture
def make_api(world: World, tmp_path: Path) -> Iterator[Callable[[], Api]]:
    made: list[Api] = []

    def make() -> Api:
        made.append(Api(world, tmp_path))
        return made[-1]

    yield make
    for api in made:
        api.spool.close()


def zap(world: World, times: int) -> int:
    """Each title after the first ends one view, begins another, and is a heartbeat; how many events that makes."""
    for n in range(times):
        world.wait(10)
        world.beat("s1", "d1", f"title-{n % 2}")
    return 3 * times - 1


def mirrored(world: World) -> list[dict[str, Any]]:
    """All that the outbox holds, which is empty afterwards."""
    found = world.events()
    world.run(world.client.xtrim(world.keys.outbox(partition_of("a", PARTITIONS)), maxlen=0))
    return found


def waiting(world: World) -> int:
    return int(world.run(world.client.llen(world.keys.spill(partition_of("a", PARTITIONS)))))


def value(world: World, name: str, **labels: str) -> float:
    return world.metrics.registry.get_sample_value(name, labels) or 0.0


def drained(world: World, *apis: Api) -> list[dict[str, Any]]:
    """Outbox, then what comes back from the disks, as the mirror makes room."""
    found = mirrored(world)
    for api in apis:
        for _ in range(100):
            if not api.spool.waiting:
                break
            api.give_back()
            found += mirrored(world)
        assert not api.spool.waiting
    return found


def told_once(found: list[dict[str, Any]], count: int) -> None:
    told = Counter(json.dumps(event, sort_keys=True) for event in found)
    assert set(told.values()) == {1}
    assert len(found) == count


def test_nothing_is_lost_and_nothing_told_twice(world: World, make_api: Callable[[], Api]) -> None:
    api = make_api()
    count = 0
    for _ in range(5):
        count += zap(world, 20) + (1 if count else 0)
        api.take()
        assert waiting(world) == 0
    assert value(world, "pulsegate_lost_events") == 0
    assert len(world.events()) == MAX
    found = drained(world, api)
    told_once(found, count - int(world.outage.skipped))
    views = Counter(event["type"] for event in found if event["type"] in ("view_start", "view_end"))
    assert views == {"view_start": 100, "view_end": 99}
    assert value(world, "pulsegate_spilled_events_total", fate="applied") == len(found) - MAX


def test_the_sweeps_ends_wait_too(world: World, make_api: Callable[[], Api]) -> None:
    zap(world, FULL)
    world.wait(31)
    assert world.sweep() == 1
    api = make_api()
    api.take()
    assert drained(world, api)[-1]["data"]["reason"] == "timeout"


def test_events_of_a_known_stream_wait_too(world: World, make_api: Callable[[], Api]) -> None:
    zap(world, FULL)
    api = make_api()
    api.take()
    before = len(world.events())
    for n in range(30):
        world.wait(10)
        world.beat("s1", "d1", "title-1", events=[{"type": "ad_start", "n": n}])
    assert len(world.events()) == before
    assert waiting(world) == 30
    api.take()
    ads = [event["data"]["n"] for event in drained(world, api) if event["type"] == "ad_start"]
    assert sorted(ads) == ads
    assert ads[-1] == 29


def test_they_wait_for_room(world: World, make_api: Callable[[], Api]) -> None:
    api = make_api()
    zap(world, FULL)
    api.take()
    api.give_back()
    assert api.spool.waiting
    assert len(world.events()) == MAX
    mirrored(world)
    api.give_back()
    assert len(world.events()) == HIGH + 1


def test_a_death_between_disk_and_redis_doubles_nothing(world: World, make_api: Callable[[], Api]) -> None:
    count = zap(world, FULL)
    dying, other = make_api(), make_api()

    class Dead:
        async def run(self, *_: Any, **__: Any) -> Any:
            raise Unavailable("it died")

    dying.spill._executor = Dead()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        dying.take()
    left = waiting(world)
    assert left > 0
    other.take()
    assert waiting(world) == 0
    told_once(drained(world, dying, other), count)
    assert value(world, "pulsegate_spilled_events_total", fate="kept") == 2 * left


def test_what_another_took_meanwhile_is_left_alone(world: World, make_api: Callable[[], Api]) -> None:
    count = zap(world, FULL)
    one, two = make_api(), make_api()
    executor = one.spill._executor

    class Slow:
        """The other process takes all, and more comes, before this one's script arrives."""

        async def run(self, *call: Any) -> Any:
            one.spill._executor = executor
            await two.backlog.look()
            await two.spill.take(two.backlog.spilling)
            await world.client.rpush(world.keys.spill(partition_of("a", PARTITIONS)), *later)
            return await executor.run(*call)

    later = [json.dumps({"type": "ad_start", "account": "a", "n": n}) for n in range(3)]
    one.spill._executor = Slow()  # type: ignore[assignment]
    one.take()
    assert waiting(world) == 0
    told_once(drained(world, one, two), count + 3)


def test_without_a_disk_the_newest_wait_in_redis_and_the_rest_is_counted(world: World) -> None:
    api = Api(world, None)
    count = zap(world, 100)
    api.take()
    api.take()
    lost = value(world, "pulsegate_lost_events")
    assert waiting(world) == MAX
    assert lost == count - int(world.outage.skipped) - 2 * MAX
    assert value(world, "pulsegate_spilled_events_total", fate="not_kept") == 0


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    yield server
    server.stop()


def test_a_process_takes_them_to_disk_and_back(own_server: Server, tmp_path: Path, prefix: str) -> None:
    spool, token = tmp_path / "spool", player("ann")
    settings: dict[str, Any] = {"outbox_high": HIGH, "outbox_max": MAX, "spool_dir": spool}
    outbox = Keys(prefix, PARTITIONS).outbox(partition_of("ann", PARTITIONS))
    found: list[dict[str, Any]] = []
    with (
        ApiProcess(own_server.url, tmp_path, prefix=prefix, **settings) as api,
        Redis.from_url(own_server.url) as client,
    ):

        def mirror() -> bool:
            entries: Any = client.xrange(outbox)
            for id_, fields in entries:
                found.append(json.loads(fields[b"e"]))
                client.xdel(outbox, id_)
            return not list(spool.glob("events/*/*.jsonl")) and not client.exists(outbox.replace("outbox", "spill"))

        for n in range(FULL):
            assert api.beat(token, "s1", "d1", content=f"title-{n % 2}", seq=n)["decision"] == "allow"
        wait_for(lambda: list(spool.glob("events/*/*.jsonl")), "they are on disk")
        wait_for(mirror, "they are back")
        mirror()  # what came back after it had looked
        assert 'pulsegate_spilled_events_total{fate="applied"}' in api.get("/metrics").text
    views = Counter((event["type"], event["view"]) for event in found if event["type"].startswith("view_"))
    assert views == {("view_start", n): 1 for n in range(1, FULL + 1)} | {("view_end", n): 1 for n in range(1, FULL)}
