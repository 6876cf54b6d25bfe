"""What is stored in Redis and is no member, record, entry or key of ours: it is left out, and said; all others are served."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from engine.embedded import Server
from engine.keys import Keys
from tests.harness import PARTITIONS, World
from tests.pipeline import owner, plant
from workers.audience import Audience
from workers.runtime import Runtime
from workers.sweep import sweep_once
from workers.trending import Lists
from workers.verify import count

NOW = 1_800_000_000_000
ANN, BOB = "ann", "bob"


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, prefix: str) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    session = (servers if request.param == "single" else servers[0]).url
    built = plant(session, single.url, prefix, trending_warmup_s=0)
    yield built
    built.close()


def world_of(run: Runtime) -> World:
    return World(run.settings.redis_url, run.settings.prefix)


def skipped(run: Runtime, job: str) -> int:
    return int(run.log.hget(run.keys.skipped, job) or 0)  # type: ignore[arg-type]


def published(run: Runtime, kind: str = "vod", rank: str = "popular", provider: str = "") -> dict[str, Any]:
    lists = Lists(run)
    for tick in range(3):
        lists.publish(NOW + 5_000 * tick)
    stored: Any = run.log.get(run.keys.trending_list(kind, rank, provider))
    return dict(json.loads(stored))


class TestNames:
    """A provider may be called anything."""

    @pytest.mark.parametrize("name", ["@", "@@", "live", "version", "*"])
    def test_no_provider_looks_like_the_mark_of_accounts(self, run: Runtime, name: str) -> None:
        with world_of(run) as world:
            world.beat(provider=name)
            world.beat("s2", "d2", account=BOB, provider="other")
            audience = Audience(run, owner(run, "trending"))
            while run.log.hget(run.keys.applied, "recounts") is None:
                audience.claim()
            for key in (run.keys.totals, run.keys.accounts):
                found: Any = run.log.hgetall(key)
                assert found == {f"vod\tfilm\t{name}".encode(): b"1", b"vod\tfilm\tother": b"1"}
            assert count(run).differences() == {}
            assert published(run, provider=name)["published_at"] == NOW + 10_000
            world.stop()
            audience.claim()
            assert run.log.hgetall(run.keys.accounts) == {b"vod\tfilm\tother": b"1"}
            assert skipped(run, "trending") == 0

    def test_what_an_earlier_version_left_of_it_goes(self, run: Runtime) -> None:
        run.log.hset(run.keys.accounts, mapping={"vod\tfilm": 7, "vod\tfilm\t": 1})
        run.log.hset(run.keys.totals, "vod\tfilm\t", 1)
        assert published(run)["published_at"] == NOW + 10_000
        audience = Audience(run, owner(run, "trending"))
        while run.log.hget(run.keys.applied, "recounts") is None:
            audience.claim()
        assert not run.log.exists(run.keys.accounts, run.keys.totals)


GARBAGE = {
    b"": b"1", b"\t": b"1", b"vod": b"1", b"vod\tfilm": b"1", b"a\tb\tc\td": b"1", b"a\tb\tc\td\t@": b"1", b"\t@": b"3",
    b"vod\t\xff\xfe\t": b"2", b"vod\tx\t": b"many", b"vod\ty\t": b"1.5", b"vod\tz\t": b"9" * 400, b"vod\tw\t": b"",
}  # fmt: skip


class TestAudience:
    def test_garbage_among_the_totals_hides_no_list(self, run: Runtime) -> None:
        for key in (run.keys.totals, run.keys.accounts):
            run.log.hset(key, mapping=GARBAGE | {b"vod\tfilm\t": b"50"})  # type: ignore[arg-type]
        assert [item["content"] for item in published(run)["items"]] == ["film"]
        assert skipped(run, "trending") >= len(GARBAGE)

    def test_garbage_in_one_partition_keeps_no_other_from_being_counted(self, run: Runtime) -> None:
        with world_of(run) as world:
            world.beat()
            keys = run.keys
            run.session.hset(keys.deltas(3), mapping=GARBAGE)
            run.session.hset(keys.claimed(4), mapping=GARBAGE | {b"": b"soon"})
            run.session.zadd(keys.audience(5), dict.fromkeys(GARBAGE, 1.5))
            run.log.hset(keys.applied, mapping={"6": "x", "recounts": "x"})
            run.log.sadd(keys.recounted, "x", *(f"x{n}" for n in range(PARTITIONS)))
            audience = Audience(run, owner(run, "trending"))
            for _ in range(3):
                audience.claim()
            good = b"vod\tfilm\t"
            assert run.log.hget(keys.totals, good) == b"1"
            assert run.log.hget(keys.accounts, good) == b"1"
            assert skipped(run, "trending") > 0
            assert published(run)["published_at"] == NOW + 10_000
            count(run)

    @pytest.mark.parametrize("what", ["deltas", "claimed", "audience"])
    def test_a_key_of_another_type_under_one_partition(self, run: Runtime, what: str) -> None:
        with world_of(run) as world:
            mine = next(p for p in range(PARTITIONS) if run.keys.deltas(p) == _deltas(run.keys, "a"))
            other = (mine + 1) % PARTITIONS
            run.session.set(getattr(run.keys, what)(other), "x")
            world.beat()
            audience = Audience(run, owner(run, "trending"))
            while run.log.hget(run.keys.applied, "recounts") is None:
                audience.claim()
            assert run.log.hgetall(run.keys.totals) == {b"vod\tfilm\t": b"1"}
            assert skipped(run, "trending") > 0

    def test_a_total_that_is_no_number_is_counted_anew(self, run: Runtime) -> None:
        with world_of(run) as world:
            run.log.hset(run.keys.totals, "vod\tfilm\t", "x")
            world.beat()
            Audience(run, owner(run, "trending")).claim()
            assert run.log.hget(run.keys.totals, "vod\tfilm\t") == b"1"


class TestLists:
    def test_garbage_in_catalogue_state_rings_and_viewers(self, run: Runtime) -> None:
        keys = run.keys
        run.log.hset(
            keys.contents, mapping={b"\xff": b"{}", b"b": b"no JSON", b"c": b"[]", b"film": b'{"runtime":3600}'}
        )  # type: ignore[arg-type]
        run.log.incr(keys.contents_version)
        run.log.hset(
            keys.trending_state,
            mapping={
                b"version": b"1",
                b"a": b"x",
                b"x\ty\tz": b"x",
                b"vod\t\tmeta\tx": b"x",
                b"vod\t\tmeta": b"x",
                b"\xff\t\t": b"",
            },
        )  # type: ignore[arg-type]
        run.log.hset(keys.totals, mapping={"vod\tfilm\t": 50, "vod\tother\t": 40})
        run.log.sadd(keys.series("vod", "other"), "x")
        run.session.set(keys.viewers("other", "5m", NOW // 300_000), "x")
        lists = Lists(run)
        lists.resume()
        for tick in range(3):
            lists.publish(NOW + 5_000 * tick)
        assert run.log.get(keys.trending_list("vod", "popular"))
        assert run.log.exists(keys.series("vod", "film"), keys.series()) == 2


def _deltas(keys: Keys, account: str) -> str:
    return keys.account(account).base + ":deltas"


class TestSweep:
    """A record that cannot be read, or a key of another type, keeps no other account's views from ending."""

    @staticmethod
    def announce(run: Runtime, at: int) -> None:
        run.session.zadd(run.keys.processes, {"api": at})

    @pytest.mark.parametrize(
        "record", [b"", b"x", b"a\nb\nc\nd", b"s\n\n\nx", b"\xff\n1\t2\nrx\n" + b"\t" * 20, b"s\nb\nr\n" + b"x\t" * 50]
    )
    def test_a_record_that_is_none(self, world: World, record: bytes) -> None:
        accounts = _neighbours(world.keys, 3)
        for account in accounts:
            world.beat(account=account)
        world.run(world.client.zadd(world.keys.account(accounts[1]).leases, {record: 1}))
        world.wait(31)
        for _ in range(3):
            world.sweep()
        for account in accounts:
            assert [event["data"]["reason"] for event in world.events(account, "view_end")] == ["timeout"], account

    def test_an_account_of_another_type_is_tried_again_later(self, world: World) -> None:
        accounts = _neighbours(world.keys, 3)
        for account in accounts:
            world.beat(account=account)
        wrong = world.keys.account(accounts[1]).leases
        kept = world.run(world.client.zrange(wrong, 0, -1, withscores=True))
        world.run(world.client.delete(wrong))
        world.run(world.client.set(wrong, "x"))
        world.wait(31)
        world.sweep()
        for account in (accounts[0], accounts[2]):
            assert world.events(account, "view_end"), account
        world.run(world.client.delete(wrong))
        world.run(world.client.zadd(wrong, dict(kept)))
        world.wait(61)
        world.sweep()
        assert world.events(accounts[1], "view_end")

    def test_a_tick_of_another_type_and_ticks_that_are_none(self, world: World) -> None:
        world.beat()
        partition = next(p for p in range(PARTITIONS) if world.keys.outbox(p) == world.keys.account("a").outbox)
        world.run(world.client.set(world.keys.due(partition, 5), "x"))
        world.run(world.client.zadd(world.keys.deadlines(partition), {"5": 5, "x": 6, b"\xff": 7}))
        world.wait(31)
        world.sweep()
        assert world.events("a", "view_end")

    def test_a_partition_of_another_type_is_passed_over(self, run: Runtime) -> None:
        with world_of(run) as world:
            world.beat()
            mine = next(p for p in range(PARTITIONS) if run.keys.outbox(p) == run.keys.account("a").outbox)
            for partition in set(range(PARTITIONS)) - {mine}:
                run.session.set(run.keys.deadlines(partition), "x")
            world.wait(31)
            self.announce(run, world.now)
            assert sweep_once(run, 0, world.now) == 1
            assert skipped(run, "sweep") == PARTITIONS - 1


def _neighbours(keys: Keys, count: int) -> list[str]:
    """Accounts of one partition."""
    outbox = keys.account("a").outbox
    return ["a", *(name for n in range(1_000) if keys.account(name := f"a{n}").outbox == outbox)][:count]
