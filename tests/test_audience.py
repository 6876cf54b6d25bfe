"""Who watches what: counted by the scripts that own the views' lives, carried to the totals once, recounted, verified."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Disconnected

from engine import records, scripts, viewers
from engine.embedded import Server
from engine.partitions import partition_of
from tests.harness import PARTITIONS, START, World
from tests.pipeline import owner, plant
from workers.audience import Audience
from workers.runtime import Runtime
from workers.tenure import LostOwnership
from workers.verify import count, verify

MINUTES = 60


def audience(world: World, *, accounts: bool = False) -> dict[str, int]:
    """All partitions' counts of views, or of accounts; the changes not claimed yet add up to the same."""

    async def read() -> tuple[Counter[str], Counter[str]]:
        now, changes = Counter[str](), Counter[str]()
        for partition in range(PARTITIONS):
            for what, score in await world.client.zrange(world.keys.audience(partition), 0, -1, withscores=True):
                now[what.decode()] += int(score)
            for what, more in (await world.client.hgetall(world.keys.deltas(partition))).items():
                changes[what.decode()] += int(more)
        return now, changes

    now, changes = world.run(read())
    assert all(now.values())
    assert now == +changes
    assert not -changes
    found = {what: n for what, n in now.items() if what.endswith("\t@") == accounts}
    return {what.removesuffix("\t@"): n for what, n in found.items()}


FILM, NEWS = "vod\tfilm\t", "live\tnews\t"


class TestCounted:
    def test_a_start_a_zap_and_a_stop(self, world: World) -> None:
        world.beat()
        world.beat("s2", "d2", account="b")
        assert audience(world) == {FILM: 2}
        world.wait(10)
        world.beat("s1", "d1", "news", kind="live")
        assert audience(world) == {FILM: 1, NEWS: 1}
        world.stop()
        assert audience(world) == {FILM: 1}

    def test_beating_on_changes_nothing(self, world: World) -> None:
        for _ in range(5):
            world.beat()
            world.wait(10)
        assert audience(world) == {FILM: 1}

    def test_silence_ends_it_and_a_late_beat_reopens_it(self, world: World) -> None:
        world.beat()
        world.wait(31)
        assert audience(world) == {FILM: 1}
        world.sweep()
        assert audience(world) == {}
        world.beat()
        assert audience(world) == {FILM: 1}

    def test_a_refused_stream_is_nobody(self, world: World) -> None:
        world.beat(limit=1)
        assert world.beat("s2", "d2", limit=1)["decision"] == "block"
        assert audience(world) == {FILM: 1}

    def test_an_eviction_is_one_for_one(self, world: World) -> None:
        world.beat("s1", "d1", plan="oldest")
        world.beat("s2", "d2", "other", plan="oldest")
        world.beat("s3", "d3", "third", plan="oldest")
        assert sum(audience(world).values()) == len(world.running())

    def test_a_reload_is_the_same_viewer(self, world: World) -> None:
        world.beat("s1", "d1", limit=1)
        world.beat("s2", "d1", limit=1)
        assert audience(world) == {FILM: 1}

    def test_a_long_pause_is_nobody_and_coming_back_is_somebody(self, world: World) -> None:
        world.beat()
        for _ in range(29):
            world.wait(10)
            world.beat(state="paused", position=1.0)
        world.sweep()
        assert audience(world) == {FILM: 1}
        for _ in range(2):
            world.wait(10)
            world.beat(state="paused", position=1.0)
        world.sweep()
        assert audience(world) == {}
        assert world.running() == {"s1"}
        world.wait(10)
        world.beat(position=2.0)
        assert audience(world) == {FILM: 1}

    def test_a_pause_ends_by_the_sweep_without_another_word(self, world: World) -> None:
        world.beat()
        world.wait(10)
        world.beat(state="paused", position=1.0)
        world.wait(5 * MINUTES + 1)
        world.sweep()
        assert audience(world) == {}
        assert world.running() == {"s1"}

    def test_evidence_without_a_player_and_the_player_who_adopts_it(self, world: World) -> None:
        world.signal("d1", "film")
        assert audience(world) == {FILM: 1}
        world.beat("s1", "d1")
        assert audience(world) == {FILM: 1}

    def test_providers_are_counted_apart(self, world: World) -> None:
        world.beat(provider="acme")
        world.beat("s2", "d2", account="b")
        assert audience(world) == {"vod\tfilm\tacme": 1, FILM: 1}

    def test_an_account_is_one_however_many_devices_it_has(self, world: World) -> None:
        for n in range(20):
            world.beat(f"s{n}", f"d{n}", limit=50)
        world.beat("s", "d", account="b")
        assert audience(world) == {FILM: 21}
        assert audience(world, accounts=True) == {FILM: 2}
        for n in range(19):
            world.stop(f"s{n}")
        assert audience(world, accounts=True) == {FILM: 2}
        world.stop("s19")
        assert audience(world, accounts=True) == {FILM: 1}
        world.beat("s", "d", "news", kind="live", account="b")
        assert audience(world, accounts=True) == {NEWS: 1}

    def test_an_erased_account_watches_nothing(self, world: World) -> None:
        world.beat()
        k = world.keys.account("a")
        names = [k.leases, k.deadlines, k.outbox, k.takeovers, k.seen]
        world.run(world.executor.run(scripts.load("erase"), names, [world.now, "a", world.settings.tuning()]))
        assert audience(world) == {}


class TestDistinct:
    def distinct(self, world: World, content: str = "film") -> dict[str, int]:
        async def read() -> dict[str, int]:
            await world.decisions.close()
            buckets = viewers.windows(world.keys, content, world.now)
            return {window: await world.client.pfcount(*keys) for window, keys in buckets.items()}

        return dict(world.run(read()))

    def marks(self, world: World) -> int:
        """Calls of the script so far."""

        async def read() -> int:
            await world.decisions.close()
            return int((await world.client.info("commandstats")).get("cmdstat_pfadd", {"calls": 0})["calls"])

        return int(world.run(read()))

    def test_an_account_counts_once_however_many_devices(self, world: World) -> None:
        for n in range(20):
            world.beat(f"s{n}", f"d{n}", limit=50)
        world.beat("s", "d", account="b")
        assert self.distinct(world) == {"5m": 2, "1h": 2, "24h": 2}

    def test_who_has_left_leaves_the_windows_one_after_the_other(self, world: World) -> None:
        world.beat()
        world.wait(11 * MINUTES)
        assert self.distinct(world) == {"5m": 0, "1h": 1, "24h": 1}
        world.wait(60 * MINUTES)
        assert self.distinct(world) == {"5m": 0, "1h": 0, "24h": 1}

    def test_who_stays_is_in_every_bucket(self, world: World) -> None:
        for _ in range(3 * 6 * 5):
            world.beat()
            world.wait(10)
            assert self.distinct(world)["5m"] == 1

    def test_evidence_alone_stays_in_every_bucket_too(self, world: World) -> None:
        for _ in range(2 * 6 * 5):
            world.signal("d1", "film")
            world.wait(10)
            assert self.distinct(world)["5m"] == 1

    def test_it_is_written_once_in_five_minutes_only(self, single: Server, prefix: str) -> None:
        with World(single.url, prefix) as world:
            before = self.marks(world)
            for _ in range(90):
                world.beat()
                world.wait(10)
            assert self.marks(world) - before == 2 * 3

    def test_what_another_content_is_called_does_not_matter(self, world: World) -> None:
        for n, content in enumerate(("a}b", "{", "}", "ü:5m:1")):
            world.beat(f"s{n}", f"d{n}", content, account=f"acc{n}")
            assert self.distinct(world, content)["24h"] == 1


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, prefix: str) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    run = plant((servers if request.param == "single" else servers[0]).url, single.url, prefix)
    yield run
    run.close()


@pytest.fixture
def world_of(run: Runtime) -> Iterator[World]:
    with World(run.settings.redis_url, run.settings.prefix) as world:
        yield world


def totals(run: Runtime) -> dict[str, int]:
    return {what.decode(): int(n) for what, n in run.log.hgetall(run.keys.totals).items()}


class Crowd:
    """Accounts that start, zap and stop at random."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)

    def move(self, times: int) -> None:
        for _ in range(times):
            self.world.wait(self.random.choice([0, 1, 5]))
            account = f"account-{self.random.randrange(40)}"
            match self.random.randrange(6):
                case 0:
                    self.world.stop("s", account=account)
                case 1:
                    self.world.sweep()
                case _:
                    self.world.beat("s", "d", f"title-{self.random.randrange(9)}", account=account)

    def truth(self) -> dict[str, int]:
        return audience_of(self.world)


def audience_of(world: World) -> dict[str, int]:
    async def read() -> Counter[str]:
        found = Counter[str]()
        for n in range(40):
            for text in await world.client.zrange(world.keys.account(f"account-{n}").leases, 0, -1):
                if what := records.read(text).watched:
                    found[what] += 1
        return found

    return dict(world.run(read()))


class TestTotals:
    @pytest.mark.parametrize("seed", range(3))
    def test_they_follow_the_partitions(self, run: Runtime, world_of: World, seed: int) -> None:
        crowd, work = Crowd(world_of, seed), Audience(run, owner(run, "trending"))
        for _ in range(6):
            crowd.move(60)
            work.claim()
            assert totals(run) == crowd.truth()
            accounts = run.log.hgetall(run.keys.accounts)
            assert {what.decode(): int(n) for what, n in accounts.items()} == crowd.truth()
        assert verify(run)[1] == {}

    def test_a_claim_that_was_lost_on_its_way_counts_once(
        self, run: Runtime, world_of: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crowd, work = Crowd(world_of, 5), Audience(run, owner(run, "trending"))
        work.claim()
        crowd.move(50)
        log = Audience._log

        def broken(*_: Any) -> Any:
            raise Disconnected("on the way to the log")

        def deaf(self: Audience, *call: Any) -> Any:
            log(self, *call)
            raise Disconnected("on the way back from the log")

        for failing in (broken, deaf, broken):
            monkeypatch.setattr(Audience, "_log", failing)
            with pytest.raises(Disconnected):
                work.claim()
            crowd.move(20)
        monkeypatch.setattr(Audience, "_log", log)
        work.claim()
        work.claim()
        assert totals(run) == crowd.truth()
        assert int(run.log.hget(run.keys.applied, str(partition_of("account-1", PARTITIONS)))) > 0

    def test_who_has_lost_the_job_adds_nothing(self, run: Runtime, world_of: World) -> None:
        work = Audience(run, owner(run, "trending"))
        Crowd(world_of, 6).move(30)
        run.log.set(run.keys.owner("trending", 0), "another")
        with pytest.raises(LostOwnership):
            work.claim()
        assert totals(run) == {}

    def test_a_log_that_has_forgotten_them_has_them_at_once(self, run: Runtime, world_of: World) -> None:
        crowd, work = Crowd(world_of, 7), Audience(run, owner(run, "trending"))
        crowd.move(80)
        work.claim()
        run.log.delete(run.keys.totals, run.keys.accounts, run.keys.applied)
        crowd.move(10)
        # The claims under way are given again, which says nothing of the rest; then all partitions can be recounted.
        work.claim()
        work.claim()
        assert totals(run) == crowd.truth()

    def test_a_drift_is_found_said_and_corrected(
        self, run: Runtime, world_of: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.audience.RECOUNTED", 5)
        crowd, work = Crowd(world_of, 8), Audience(run, owner(run, "trending"))
        crowd.move(80)
        work.claim()
        run.log.hincrby(run.keys.totals, "vod\ttitle-1\t", 3)
        run.log.hincrby(run.keys.accounts, "vod\ttitle-2\t", -1)
        run.log.hset(run.keys.totals, "vod\tnobody\t", 2)
        assert {"vod\ttitle-1\t", "vod\tnobody\t"} <= verify(run)[1].keys()
        for _ in range(2 * PARTITIONS // 5 + 2):
            crowd.move(5)
            work.claim()
        assert totals(run) == crowd.truth()
        said = [record for record in caplog.records if record.message == "audience_drift"]
        assert {record.__dict__["what"] for record in said} == {"vod\ttitle-1\t", "vod\tnobody\t", "vod\ttitle-2\t\t@"}
        assert verify(run)[1] == {}

    def test_a_recount_in_pieces_while_everything_moves_finds_nothing(
        self, run: Runtime, world_of: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.audience.RECOUNTED", 3)
        crowd, work = Crowd(world_of, 9), Audience(run, owner(run, "trending"))
        work.claim()
        for _ in range(3 * PARTITIONS // 3):
            crowd.move(8)
            work.claim()
        assert totals(run) == crowd.truth()
        assert not [record for record in caplog.records if record.message == "audience_drift"]


class TestVerify:
    def test_it_counts_what_is_on_its_way(self, run: Runtime, world_of: World) -> None:
        Crowd(world_of, 1).move(60)
        found = count(run)
        assert found.sessions == found.partitions == found.totals
        assert found.sessions.total() > 0

    def test_it_names_a_partition_that_miscounts(
        self, run: Runtime, world_of: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.verify.PAUSE_S", 0.0)
        Crowd(world_of, 2).move(60)
        run.session.zincrby(run.keys.audience(0), 2, "vod\tghost\t")
        assert verify(run)[1] == {"vod\tghost\t": (0, 2, 0)}


def test_the_records_fields_are_the_scripts() -> None:
    source = scripts.load("heartbeat").source
    for name, fields in (("LIFE", records.LIFE), ("IDENT", records.IDENT)):
        listed = source.split(f"local {name} = {{")[1].split("}")[0]
        assert tuple(part.strip(" '\n") for part in listed.split(",")) == fields


def test_a_hundred_thousand_viewers_within_two_per_cent(single: Server, prefix: str) -> None:
    with World(single.url, prefix) as world:
        script = scripts.load("viewers")
        names = viewers.marked(world.keys, "final", START)

        async def mark() -> dict[str, int]:
            sha = await world.client.script_load(script.source)
            for start in range(0, 100_000, 10_000):
                async with world.client.pipeline(transaction=False) as pipe:
                    for n in range(start, start + 10_000):
                        pipe.evalsha(sha, 2, *names, f"account-{n}", *viewers.KEEP_MS)
                    await pipe.execute()
            found = viewers.windows(world.keys, "final", START)
            return {window: await world.client.pfcount(*keys) for window, keys in found.items()}

        assert all(abs(n - 100_000) < 2_000 for n in world.run(mark()).values())
