"""Replay, erasure, audit and lost views over the whole chain: session Redis, mirror, projections, lake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.embedded import Server
from engine.errors import Conflict, PulsegateError
from engine.lake import Lake
from engine.partitions import partition_of
from engine.stopping import Stop
from tests.harness import PARTITIONS
from tests.pipeline import drain, log_ids, outbox_ids, owner, plant, put
from workers import maintain
from workers.audit import found
from workers.consume import Consume
from workers.consumer import consumers
from workers.erase import erase_account
from workers.export import Export
from workers.lake import LakeSink
from workers.lost import Lost
from workers.mirror import Mirror
from workers.replay import Replay, replay
from workers.runtime import Runtime
from workers.tenure import LostOwnership

START = 1_800_000_000_000
PEOPLE = ["ann", "bob", "cleo"]


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, tmp_path: Path, prefix: str) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    session = (servers if request.param == "single" else servers[0]).url
    run = plant(session, single.url, prefix, lake_dir=str(tmp_path / "lake"), lake_roll_s=0, log_keep_s=0)
    yield run
    run.log.close()
    run.session.close()


def tell(run: Runtime, account: str, kind: str, at: int, **fields: Any) -> str:
    """One event of an account in its outbox."""
    data = fields.pop("data", {})
    return put(
        run, partition_of(account, PARTITIONS), kind, at=at, account=account, session=f"{account}-1", device="tv",
        content="film", kind="vod", **{"started_at": START} | fields, data=data,
    )  # fmt: skip


def watch(run: Runtime, account: str, begin: int = 300, beats: int = 5) -> None:
    """A view: started, watched for some heartbeats, ended."""
    tell(run, account, "view_start", START)
    for n in range(beats):
        body = {"position": begin + 10 * n, "duration": 5400, "state": "playing", "seq": n}
        tell(run, account, "heartbeat", START + 10_000 * n, seq=n, watched_ms=10_000 * n, data=body)
    end = {"reason": "timeout", "started_at": START, "last_seen_at": START + 10_000 * (beats - 1), "watched_ms": 1}
    tell(run, account, "view_end", START + 90_000, data=end | {"max_position": begin, "completed": False})


def flow(run: Runtime, *, lake: bool = True) -> None:
    """Everything that waits, from the outboxes to the end."""
    mirror = owner(run, "mirror")
    work = Mirror(run, 0, mirror)
    drain(work)
    work._disk.close()
    mirror.release()
    for name, cls in consumers().items():
        consume = owner(run, f"consume-{name}")
        drain(Consume(run, 0, consume, cls))
        consume.release()
    if lake:
        export = owner(run, "export-lake")
        drain(Export(run, 0, export, LakeSink))
        export.release()


def state(run: Runtime, name: str) -> dict[str, Any]:
    generation = int(run.log.hget(run.keys.generations, name) or 1)
    return dict(consumers()[name](run.log, run.keys.projection(name, generation), run.settings).dump())


class TestInstalledLater:
    """A consumer that comes when the log has forgotten: the lake has it all."""

    def forgotten(self, run: Runtime) -> dict[str, Any]:
        """The views of all that the lake has and the log has not, as they were before their projection was forgotten."""
        for account in PEOPLE:
            watch(run, account)
        flow(run)
        assert maintain.trim(run) > 0
        before = state(run, "views")
        space = run.keys.projection("views", 1)
        run.log.delete(run.keys.cursor("views", 1), *run.log.scan_iter(match=space.key("*")))
        assert state(run, "views") == {}
        return before

    @pytest.fixture(autouse=True)
    def _small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(consumers()["views"], "batch", 4)

    def test_it_begins_with_the_lake_in_steps_that_let_others_have_their_turn(
        self, run: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.forgotten(run)
        monkeypatch.setattr("workers.consume.CATCH_UP_S", 0.0)
        work = Consume(run, 0, owner(run, "consume-views"), consumers()["views"])
        work.gathers = False
        steps = []
        while done := work.step(0.01):
            steps.append(done)
        assert sum(steps) == 21
        assert len(steps) > 4
        assert state(run, "views") == before

    def test_a_worker_that_stops_hands_over_at_once(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        before = self.forgotten(run)
        stop = Stop()
        monkeypatch.setattr("workers.consume.stopping", stop)
        stop.set()
        ownership = owner(run, "consume-views")
        assert 0 < Consume(run, 0, ownership, consumers()["views"]).step(0.01) < 21
        ownership.release()
        stop = Stop()
        monkeypatch.setattr("workers.consume.stopping", stop)
        drain(Consume(run, 0, owner(run, "consume-views"), consumers()["views"]))
        assert state(run, "views") == before


class TestReplay:
    @pytest.mark.parametrize("trimmed", [False, True])
    def test_live_equals_replayed_from_log_and_from_lake(self, run: Runtime, trimmed: bool) -> None:
        for account in PEOPLE:
            watch(run, account)
        flow(run)
        if trimmed:
            assert maintain.trim(run) > 0
            assert all(log_ids(run, p) == [] for p in range(PARTITIONS))
        watch(run, "dave")
        flow(run, lake=False)
        for name in consumers():
            outcome = Replay(run, name, quiet=True).compare()
            assert outcome.equal, outcome.differences
            assert outcome.events == 28
            again = Replay(run, name, quiet=True).compare()
            assert (again.live, again.shadow) == (outcome.live, outcome.shadow)

    def test_a_difference_is_named_and_the_status_is_1(self, run: Runtime, capsys: pytest.CaptureFixture[str]) -> None:
        for account in PEOPLE:
            watch(run, account)
        flow(run)
        assert replay(run, ["views"], since_ms=0, swap=False) == 0
        tampered = run.keys.projection("views", 1)
        with run.log.pipeline() as pipe:
            consumers()["views"](run.log, tampered, run.settings).erase("bob", pipe)
            pipe.execute()
        assert replay(run, ["views"], since_ms=0, swap=False) == 1
        said = capsys.readouterr().out
        assert "DIFFERENT" in said
        assert "bob" in said
        assert "cleo" not in said

    def test_a_swap_mends_it_and_the_live_one_goes_on_from_there(self, run: Runtime) -> None:
        watch(run, "ann")
        flow(run)
        good = state(run, "resume")
        with run.log.pipeline() as pipe:
            consumers()["resume"](run.log, run.keys.projection("resume", 1), run.settings).erase("ann", pipe)
            pipe.execute()
        assert state(run, "resume") == {}
        Replay(run, "resume", quiet=True).swap()
        assert state(run, "resume") == good
        watch(run, "bob")
        flow(run)
        assert state(run, "resume").keys() > good.keys()
        assert not list(run.log.scan_iter(match=run.keys.projection("resume", 1).key("*")))

    def test_the_shadow_leaves_nothing_behind(self, run: Runtime) -> None:
        watch(run, "ann")
        flow(run)
        before = set(run.log.scan_iter(match=f"{run.keys.prefix}:*"))
        Replay(run, "views", quiet=True).compare()
        assert set(run.log.scan_iter(match=f"{run.keys.prefix}:*")) - before <= {run.keys.generations.encode()}

    def test_without_what_was_trimmed_there_is_no_replay(self, run: Runtime, single: Server) -> None:
        watch(run, "ann")
        flow(run)
        maintain.trim(run)
        bare = plant(run.settings.redis_url, single.url, run.keys.prefix)
        with pytest.raises(PulsegateError, match="no lake"):
            Replay(bare, "views", quiet=True).compare()
        bare.log.close()
        bare.session.close()


class TestErase:
    def test_an_account_is_gone_everywhere_and_replay_does_not_bring_it_back(self, run: Runtime) -> None:
        for account in PEOPLE:
            watch(run, account)
        flow(run)
        tell(run, "ann", "custom", START)
        receipt = erase_account(run, "ann")
        removed = receipt["removed"]
        assert removed["outbox"] >= 1
        assert removed["log"] == 7
        assert removed["projections"]["views"] > 0
        assert removed["projections"]["resume"] > 0
        assert removed["lake"]["rows"] == 7
        assert "ann" not in str(receipt)
        flow(run)
        assert not [event for event in Lake(Path(run.settings.lake_dir)).read() if event.account == "ann"]
        for name in consumers():
            assert not [key for key in state(run, name) if "ann" in key]
            assert Replay(run, name, quiet=True).compare().equal
            Replay(run, name, quiet=True).swap()
            assert not [key for key in state(run, name) if "ann" in key]
        assert {event.account for event in Lake(Path(run.settings.lake_dir)).read()} == {"bob", "cleo"}
        partition = partition_of("ann", PARTITIONS)
        gone = {partition_of(other, PARTITIONS) for other in ("bob", "cleo")}
        if partition not in gone:
            assert log_ids(run, partition) == outbox_ids(run, partition) == []

    def test_twice_is_the_same_as_once(self, run: Runtime) -> None:
        watch(run, "ann")
        flow(run)
        erase_account(run, "ann")
        again = erase_account(run, "ann")["removed"]
        assert again["log"] == again["outbox"] == again["sessions"] == again["lake"]["rows"] == 0
        assert not any(again["projections"].values())

    def test_what_others_had_read_already_cannot_be_committed(self, run: Runtime) -> None:
        watch(run, "ann")
        slow = Mirror(run, 0, owner(run, "mirror"))
        read = list(slow._read(0.01))
        slow._meet_servers()
        erase_account(run, "ann")
        for partition, entries in read:
            slow._send([(partition, b"", entries)])
            with pytest.raises(LostOwnership):
                slow._receive()
        slow._line.close()
        slow._disk.close()
        flow(run)
        assert state(run, "views") == {}

    def test_not_while_a_projection_is_replayed(self, run: Runtime) -> None:
        under_way = owner(run, "replay-views")
        with pytest.raises(Conflict, match="replay"):
            erase_account(run, "ann")
        under_way.release()


class TestAudit:
    def test_blocks_are_listed_and_counted_from_lake_and_log(self, run: Runtime) -> None:
        for n, account in enumerate(PEOPLE):
            data = {"reason": "limit_reached", "rule": "streams", "limit": 2, "by": None, "provider": f"p{n % 2}"}
            tell(run, account, "block", START + n, data=data)
        flow(run)
        maintain.trim(run)
        tell(run, "ann", "evict", START + 10, data={"rule": "live", "by": "s2", "provider": "p0"})
        tell(run, "ann", "block", START + 99_000_000, data={"rule": "streams", "provider": "p0"})
        flow(run, lake=False)
        asked = {"from": START, "to": START + 86_400_000, "limit": 2}
        first = found(run, asked)
        assert first["total"] == 4
        assert first["counts"]["rule"] == {"streams": 3, "live": 1}
        assert first["counts"]["provider"] == {"p0": 3, "p1": 1}
        assert first["counts"]["type"] == {"block": 3, "evict": 1}
        second = found(run, asked | {"after": first["next"]})
        assert second["next"] is None
        assert [item["at"] - START for item in first["items"] + second["items"]] == [10, 2, 1, 0]
        assert found(run, asked | {"provider": "p1"})["total"] == 1
        assert found(run, asked | {"account": "ann", "rule": "streams"})["total"] == 1


class TestLost:
    def test_a_view_that_the_session_redis_forgot_ends_once(self, run: Runtime) -> None:
        old = int(run.log.time()[0]) * 1000 - 3 * run.settings.lifetime_ms
        tell(run, "ann", "view_start", old, started_at=old)
        tell(
            run,
            "ann",
            "heartbeat",
            old,
            seq=0,
            started_at=old,
            data={"position": 5, "duration": 50, "state": "playing", "seq": 0},
        )
        flow(run)
        lost = Lost(run)
        assert lost.end() == 0
        assert lost.end() == 1
        flow(run)
        assert lost.end() == lost.end() == 0
        (record,) = state(run, "views").values()
        ends = [event for event in Lake(Path(run.settings.lake_dir)).read() if event.type == "view_end"]
        assert [event.details()["reason"] for event in ends] == ["lost"]
        assert "lost" in str(record)

    def test_not_while_its_end_may_still_be_on_the_way(self, run: Runtime) -> None:
        old = int(run.log.time()[0]) * 1000 - 3 * run.settings.lifetime_ms
        tell(run, "ann", "view_start", old, started_at=old)
        flow(run)
        lost = Lost(run)
        tell(run, "ann", "view_end", old, started_at=old, data={"reason": "stopped"})
        assert lost.end() == lost.end() == 0
        flow(run)
        assert lost.end() == lost.end() == 0
