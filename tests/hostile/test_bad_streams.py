"""Outboxes, logs, cursors and projections that hold what is not ours: the partition, account or entry concerned waits or is left
out; all others go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from engine.embedded import Server
from engine.events import EVENTS, HEARTBEATS
from engine.lag import Flow
from engine.partitions import partition_of
from engine.stopping import Stop
from tests.harness import PARTITIONS
from tests.pipeline import drain, log_ids, look, outbox_ids, owner, plant, put
from tests.servers import wait_for
from workers import maintain
from workers.alerts import Webhook as AlertsWebhook
from workers.consume import Consume
from workers.consumer import load
from workers.export import Export
from workers.lake import LakeSink
from workers.lost import Lost
from workers.mirror import Mirror
from workers.runtime import Runtime
from workers.sinks import build
from workers.views import Views
from workers.virtual import follow

ACCOUNTS = [f"account-{n}" for n in range(40)]
CONSUMERS = ("resume", "views", "quality")


@pytest.fixture(params=["single", "cluster"])
def run(request: pytest.FixtureRequest, single: Server, prefix: str, tmp_path: Path) -> Iterator[Runtime]:
    servers = request.getfixturevalue(request.param)
    session = (servers if request.param == "single" else servers[0]).url
    built = plant(session, single.url, prefix, lake_dir=str(tmp_path / "lake"), lake_roll_s=0.0, quality_roll_s=0.0)
    yield built
    built.close()


def watch(run: Runtime, *accounts: str, session: str = "s", at: int = 0) -> None:
    """A view that begins and ends, of each account."""
    now = at or int(time.time() * 1000)
    for account in accounts or ACCOUNTS:
        common: dict[str, Any] = {
            "account": account, "session": session, "content": "film", "kind": "vod", "started_at": now, "device": "d",
        }  # fmt: skip
        partition = partition_of(account, PARTITIONS)
        put(run, partition, "view_start", **common | {"at": now})
        said = {"position": 900.0, "duration": 5400.0, "state": "playing"}
        put(run, partition, "heartbeat", **common | {"at": now + 1, "seq": 1, "data": said})


def mirrored(run: Runtime) -> Mirror:
    ownership = owner(run, "mirror")
    work = Mirror(run, 0, ownership)
    drain(work)
    work._disk.close()
    work._disk.join(5)
    ownership.release()
    return work


def consumed(run: Runtime, name: str) -> None:
    ownership = owner(run, f"consume-{name}")
    work = Consume(run, 0, ownership, load(name))
    try:
        drain(work)
    finally:
        work.close()
        ownership.release()


def served(run: Runtime, name: str, *but: str) -> None:
    """The projection knows every account, or all but these."""
    if name == "quality":
        keys = [run.keys.projection(name, 1).key("of", account) for account in ACCOUNTS if account not in but]
    else:
        keys = [run.keys.projection(name, 1).key("of", account) for account in ACCOUNTS if account not in but]
    assert run.log.exists(*keys) == len(keys), name


def skipped(run: Runtime, job: str) -> int:
    return int(run.log.hget(run.keys.skipped, job) or 0)  # type: ignore[arg-type]


class TestMirror:
    @pytest.mark.parametrize("where", ["outbox", "events", "heartbeats", "position"])
    def test_one_bad_partition_stops_no_other(self, run: Runtime, where: str) -> None:
        keys, bad = run.keys, 5
        if where == "outbox":
            run.session.set(keys.outbox(bad), "x")
        elif where == "position":
            run.log.hset(keys.mirrored, str(bad), "soon")
        else:
            run.log.set(keys.log(bad, where), "x")
        others = [account for account in ACCOUNTS if partition_of(account, PARTITIONS) != bad]
        for _ in range(2):
            watch(run, *others)
            if where != "outbox":
                put(run, bad, "pause")
                put(run, bad, "heartbeat")
            mirrored(run)
            for partition in set(range(PARTITIONS)) - {bad}:
                # Those that are on disk may have been trimmed from the outbox.
                assert set(outbox_ids(run, partition)) <= set(log_ids(run, partition))
        assert sum(len(log_ids(run, p)) for p in range(PARTITIONS) if p != bad) == 4 * len(others)
        assert skipped(run, "mirror") > 0

    def test_it_goes_on_with_a_partition_that_is_mended(self, run: Runtime) -> None:
        made = [put(run, 2, "pause") for _ in range(3)]
        run.log.set(run.keys.log(2, EVENTS), "x")
        ownership = owner(run, "mirror")
        work = Mirror(run, 0, ownership)
        drain(work)
        run.log.delete(run.keys.log(2, EVENTS))
        work._aside = dict.fromkeys(work._aside, 0.0)  # its time is over
        drain(work)
        assert log_ids(run, 2) == made
        work._disk.close()
        work._disk.join(5)

    def test_an_entry_without_json_becomes_a_dead_letter(self, run: Runtime) -> None:
        run.session.xadd(run.keys.outbox(3), {"other": "x"})
        run.session.xadd(run.keys.outbox(3), {"e": b"\xff\xfe"})
        run.session.xadd(run.keys.outbox(3), {"e": "[]"})
        watch(run)
        mirrored(run)
        for name in CONSUMERS:
            consumed(run, name)
            served(run, name)
            assert run.log.xlen(run.keys.dead(name)) == 3


class TestConsumers:
    @pytest.mark.parametrize("name", CONSUMERS)
    @pytest.mark.parametrize("where", ["log", "mirrored", "trimmed", "cursor", "large"])
    def test_one_bad_partition_stops_no_other(self, run: Runtime, name: str, where: str) -> None:
        watch(run)
        mirrored(run)
        keys, bad = run.keys, partition_of(ACCOUNTS[0], PARTITIONS)
        if where == "log":
            run.log.set(keys.log(bad, HEARTBEATS), "x")
        elif where == "cursor":
            run.log.hset(keys.cursor(name, 1), mapping={str(bad): b"\xff", "topics": "heartbeats,events"})
        elif where == "large":
            run.log.hset(keys.mirrored, f"large:{bad}", "x")
        else:
            run.log.hset(getattr(keys, where), str(bad), b"\xff")
        consumed(run, name)
        served(run, name, *(a for a in ACCOUNTS if partition_of(a, PARTITIONS) == bad and where in ("log", "cursor")))
        if where in ("log", "cursor"):
            assert skipped(run, "log") > 0

    @pytest.mark.parametrize("name", CONSUMERS)
    @pytest.mark.parametrize("stored", ["no JSON", b"\xff", "[]", "{}", "[1]"])
    def test_one_bad_record_is_begun_anew(self, run: Runtime, name: str, stored: Any) -> None:
        at = int(time.time() * 1000)
        watch(run, at=at)
        mirrored(run)
        consumed(run, name)
        space, bad = run.keys.projection(name, 1), ACCOUNTS[3]
        (field,) = run.log.hkeys(space.key("of", bad))
        run.log.hset(space.key("of", bad), field, stored)
        put(
            run,
            partition_of(bad, PARTITIONS),
            "pause",
            account=bad,
            session="s",
            content="film",
            kind="vod",
            started_at=at,
            at=at + 5,
        )
        watch(run, at=at + 10, session="t")
        mirrored(run)
        consumed(run, name)
        served(run, name)
        assert run.log.hget(run.keys.cursor(name, 1), "handled") == str(4 * len(ACCOUNTS) + 1).encode()

    @pytest.mark.parametrize("name", CONSUMERS)
    def test_a_key_of_another_type_costs_its_account_only(self, run: Runtime, name: str) -> None:
        space, bad = run.keys.projection(name, 1), ACCOUNTS[3]
        run.log.set(space.key("of", bad), "x")
        run.log.set(space.key("account", ACCOUNTS[4]), "x")
        watch(run)
        mirrored(run)
        consumed(run, name)
        served(run, name)
        assert run.log.hget(run.keys.cursor(name, 1), "handled") == str(2 * len(ACCOUNTS)).encode()
        load(name)(run.log, space, run.settings).tidy(int(time.time() * 1000) + 10**12)

    def test_what_a_consumer_trips_over_is_a_dead_letter(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whatever nobody foresaw."""
        for module, name in (
            ("engine.resume.fold", "resume"),
            ("engine.views.fold", "views"),
            ("workers.quality.fold", "quality"),
        ):
            part, function = module.rsplit(".", 1)
            original = getattr(__import__(part, fromlist=[function]), function)

            def trips(state: Any, event: Any, *args: Any, original: Any = original) -> Any:
                if event.account == ACCOUNTS[5]:
                    raise ZeroDivisionError("what nobody foresaw")
                return original(state, event, *args)

            monkeypatch.setattr(module, trips)
            watch(run)
            mirrored(run)
            consumed(run, name)
            served(run, name, ACCOUNTS[5])
            assert run.log.xlen(run.keys.dead(name)) > 0


class TestSinks:
    @pytest.mark.parametrize("where", ["log", "mirrored", "trimmed", "flight", "backoff"])
    def test_one_bad_partition_keeps_nothing_from_the_lake(self, run: Runtime, where: str) -> None:
        watch(run)
        mirrored(run)
        keys, bad = run.keys, partition_of(ACCOUNTS[0], PARTITIONS)
        match where:
            case "log":
                run.log.set(keys.log(bad, EVENTS), "x")
            case "flight":
                run.log.hset(keys.flight("lake"), "0", "no JSON")
            case "backoff":
                run.log.hset(keys.backoff("lake"), mapping={"until": "soon", "until:0": "x", "failures:0": 1})
            case _:
                run.log.hset(getattr(keys, where), str(bad), "x")
        work = Export(run, 0, owner(run, "export-lake"), LakeSink)
        work.gathers = False
        drain(work)
        lake: Any = build(LakeSink, run.settings)
        there = {event.account for event in lake._lake.read()}
        lost = {a for a in ACCOUNTS if partition_of(a, PARTITIONS) == bad} if where == "log" else set()
        assert there == set(ACCOUNTS) - lost


class TestMaintain:
    def test_trimming_and_lost_views_go_on(self, run: Runtime) -> None:
        then = int(time.time() * 1000) - 10 * run.settings.lifetime_ms
        watch(run, at=then)
        mirrored(run)
        consumed(run, "views")
        bad, space = ACCOUNTS[0], run.keys.projection("views", 1)
        keys = run.keys.account(bad)
        run.session.zadd(keys.leases, {"no record": 1})
        run.session.set(run.keys.account(ACCOUNTS[1]).leases, "x")
        run.log.zadd(space.key("open"), {b"\xff": 1, b"no name": 2})
        run.log.hset(run.keys.suspects, mapping={b"\xff": b"x"} | {f"{a}\ts\t{then}": "soon" for a in ACCOUNTS})
        run.log.set(run.keys.log(PARTITIONS - 1, HEARTBEATS), "x")
        for name in CONSUMERS:
            run.log.hset(run.keys.cursor(name, 1), "3", "soon")
        run.log.hset(run.keys.generations, "quality", "x")
        lost = Lost(run)
        lost.end()
        maintain.trim(run)
        assert lost.end() >= len(ACCOUNTS) - 2 - sum(partition_of(a, PARTITIONS) == 3 for a in ACCOUNTS)
        assert skipped(run, "maintain") > 0
        views = Views(run.log, space, run.settings)
        views.open_before(then + 10**9, 500)
        assert not {b"\xff", b"no name"} & set(run.log.zrange(space.key("open"), 0, -1))  # type: ignore[arg-type]

    def test_status_is_told_whatever_stands_there(self, run: Runtime) -> None:
        watch(run)
        mirrored(run)
        consumed(run, "views")
        keys = run.keys
        run.log.hset(keys.mirrored, mapping={"events": "x", "3": "x", "99": b"\xff", "x": "y"})
        run.log.hset(keys.cursor("views", 1), mapping={"handled": "x", "4": b"\xff"})
        run.log.hset(keys.trending_took, mapping={"claims_ms": "x", "publication_ms": "y"})
        run.log.set(keys.log(5, EVENTS), "x")
        run.log.hset(keys.skipped, mapping={b"\xff": "x", "mirror": 7})
        found: Flow = look(run)
        assert found.skipped["mirror"] == 7


def test_a_clock_that_is_asked_nonsense_goes_on(single: Server, prefix: str) -> None:
    """In a simulation."""
    run = plant(single.url, single.url, prefix, virtual_clock=True)
    for partition, first in ((1, "x"), (2, b"\xff")):
        run.session.zadd(run.keys.deadlines(partition), {first: 1})
    run.session.set(run.keys.deadlines(3), "x")
    at = 1_800_000_000_000
    run.session.zadd(run.keys.processes, {"api": at})
    for asked in (
        b"no JSON",
        b"\xff",
        b"[]",
        b"{}",
        b'{"id":1,"due":[7]}',
        orjson.dumps({"id": "good", "due": [[at, "sweep"]]}),
    ):
        run.log.rpush(run.keys.clock_asked, asked)
    stop = Stop()
    thread = threading.Thread(target=follow, args=(run, stop))
    thread.start()
    try:
        found: Any = wait_for(lambda: run.log.lpop(run.keys.clock_answered), "the good one is answered")
        assert orjson.loads(found) == {"id": "good", "error": ""}
    finally:
        stop.set()
        thread.join(10)
    run.close()


def test_alerts_that_cannot_be_read_hold_up_no_other(run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = run.keys
    for fields in ({"a": "no JSON"}, {"b": "{}"}, {"a": "[]"}, {"a": b"\xff"}, {"a": '{"alert":"late"}'}):
        run.log.xadd(keys.alerts_told, fields)
    run.log.set(keys.alerts_sent, "no id")
    sent: list[Any] = []

    def post(self: AlertsWebhook, url: str, body: bytes) -> bool:
        sent.extend(orjson.loads(body)["items"])
        return True

    monkeypatch.setattr(AlertsWebhook, "_post", post)
    with_url = plant(
        run.settings.redis_url, run.settings.log_redis_url, run.settings.prefix, alerts_webhook_url="http://h/"
    )
    webhook = AlertsWebhook(with_url)
    webhook.deliver()
    assert [item["alert"] for item in sent] == ["late"]
    assert webhook.deliver() == 0
    with_url.close()
