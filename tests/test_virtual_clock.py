"""Virtual time: what is due when, the worker that moves along, and a whole deployment whose clock moves only when it is told to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import pytest
from redis.asyncio import Redis as AsyncRedis
from starlette.datastructures import QueryParams

from api.quality import span
from engine import lag, layout
from engine.clock import EVERY_MS, JUMP_MS, Clock, VirtualClock, due
from engine.embedded import Server, url_of
from engine.errors import ConfigError, Conflict, LayoutMismatch
from engine.keys import Keys
from engine.settings import Settings
from engine.stopping import Stop
from tests.harness import START, TICK_MS, World
from tests.pipeline import drain, owner, plant, put
from tests.servers import ROOT, ApiProcess, clean_env, environment, player, service, wait_for
from workers import sweep, trending, virtual
from workers.consume import Consume
from workers.mirror import Mirror
from workers.resume import Resume
from workers.runtime import Runtime, runtime
from workers.tenure import Ownership
from workers.trending import Trending
from workers.views import Views
from workers.virtual import Hands, follow

MONDAY = 2_209_075_200_000
"""2040-01-02 00:00 UTC, as docs/simulation.md says."""

# what is due


def test_the_cadence_is_that_of_real_time() -> None:
    assert EVERY_MS["sweep"] == 1000 * sweep.EVERY_S
    assert EVERY_MS["claim"] == 1000 * trending.CLAIM_S
    assert EVERY_MS["publish"] == 1000 * trending.CLAIM_S * trending.PUBLISH_EVERY
    assert Settings().gone_after_ms > 2 * EVERY_MS["announce"]
    assert virtual.TICK_MS == TICK_MS


def test_what_is_due_is_due_at_the_multiples_in_its_order() -> None:
    assert due(MONDAY, MONDAY + 1_500) == [
        (MONDAY + 750, "sweep"), (MONDAY + 1_000, "announce"), (MONDAY + 1_500, "sweep"),
    ]  # fmt: skip
    last = due(MONDAY + 14_000, MONDAY + 15_000)
    assert last == [
        (MONDAY + 14_250, "sweep"), *((MONDAY + 15_000, name) for name in ("announce", "sweep", "claim", "publish")),
    ]  # fmt: skip
    assert due(MONDAY, MONDAY) == []


def test_many_steps_are_the_same_as_one() -> None:
    draw, at = random.Random(1), MONDAY + 123
    until, found = at + 60_000, []
    while at < until:
        before, at = at, min(until, at + draw.randint(1, 2_500))
        found += due(before, at)
    assert found == due(MONDAY + 123, until)
    assert {name: sum(each == name for _, each in found) for name in EVERY_MS} == {
        "announce": 60, "sweep": 80, "claim": 24, "publish": 12,
    }  # fmt: skip


def test_a_first_step_and_a_jump_are_not_filled() -> None:
    once = [(MONDAY, name) for name in EVERY_MS]
    assert due(0, MONDAY) == once
    assert due(MONDAY - JUMP_MS - 1, MONDAY) == once
    assert len(due(MONDAY - JUMP_MS, MONDAY)) > 1_000


def test_the_clocks() -> None:
    real, clock = Clock(), VirtualClock()
    assert real.now() == ""
    assert abs(real.ms() - 1000 * real.seconds()) < 1_000
    with pytest.raises(Conflict) as never:
        clock.now()
    assert never.value.code == "clock_unset"
    clock.set(MONDAY + 250)
    assert (clock.now(), clock.ms()) == (MONDAY + 250, MONDAY + 250)
    assert clock.seconds() == clock.monotonic() == (MONDAY + 250) / 1000


def test_questions_without_a_range_are_of_the_clock_s_day() -> None:
    assert span(QueryParams(""), 3_600_000, MONDAY) == (MONDAY + 1 - 3_600_000, MONDAY + 1)


def test_one_process_moves_the_clock() -> None:
    assert not Settings().virtual_clock
    with pytest.raises(ConfigError) as refused:
        Settings.from_env(environment(virtual_clock=1, processes=2))
    assert refused.value.field == "PULSEGATE_VIRTUAL_CLOCK"
    assert Settings.from_env(environment(virtual_clock=1, processes=1)).virtual_clock
    assert Settings.from_env(environment(virtual_clock=0, processes=2)).processes == 2


@pytest.mark.parametrize("virtual", [True, False])
def test_a_deployment_keeps_the_kind_of_its_clock(world: World, virtual: bool) -> None:
    for _ in range(2):
        world.run(layout.ensure(world.client, world.keys, virtual))
    with pytest.raises(LayoutMismatch, match="PULSEGATE_VIRTUAL_CLOCK") as refused:
        world.run(layout.ensure(world.client, world.keys, not virtual))
    assert refused.value.field == "clock"


def test_a_start_cut_short_is_no_mismatch(world: World) -> None:
    """The clock is recorded first: killed before the rest, the same process starts anew."""
    world.run(world.client.hset(world.keys.layout, layout.CLOCK, layout.VIRTUAL))
    world.run(layout.ensure(world.client, world.keys, True))
    assert int(world.run(world.client.hget(world.keys.layout, "partitions"))) == world.keys.partitions


def test_workers_refuse_a_clock_of_the_other_kind(single: Server, prefix: str) -> None:
    settings = Settings(redis_url=single.url, prefix=prefix)
    run = Runtime.of(settings)
    run.session.hset(run.keys.layout, mapping={"partitions": 256, "clock": "virtual"})
    with pytest.raises(LayoutMismatch, match="clock is virtual, this process has the real one"):
        runtime(settings)
    run.session.hdel(run.keys.layout, "clock")
    assert runtime(settings).settings == settings


# the worker that moves along


class Moving:
    """Players of one deployment, and hands that sweep for them; `at` moves as the API would move it."""

    def __init__(self, server: Server, prefix: str, world: World) -> None:
        self.world, self.run = world, plant(server.url, server.url, prefix)
        self.announcer = world.announcer()

    def __enter__(self) -> Moving:
        self.world.run(self.announcer.announce())
        return self

    def __exit__(self, *_: object) -> None:
        self.run.close()

    def until(self, ms: int, do: Any) -> dict[str, int]:
        """Account → ms after START at which its views had ended."""
        gone: dict[str, int] = {}
        for at, name in due(self.world.now, START + ms):
            self.world.now = at
            if name == "announce":
                self.world.run(self.announcer.announce())
            elif name == "sweep":
                do(at)
                left = [account for account in "abcdef" if account not in gone]
                gone |= {account: at - START for account in left if self.world.events(account, "view_end")}
        self.world.now = START + ms
        return gone


@contextmanager
def moving(server: Server, prefix: str) -> Iterator[Moving]:
    with World(server.url, prefix) as world, Moving(server, prefix, world) as found:
        draw = random.Random(7)
        for account in "abcdef":
            world.beat(account=account)
            world.now += draw.randint(100, 500)  # all before a second announcement would be missed
        yield found


def test_hands_sweep_each_view_at_the_moment_at_which_the_tenure_would(single: Server, prefix: str) -> None:
    with moving(single, prefix) as one:
        hands = Hands(one.run, cast(Trending, Recorded()))
        by_hands = one.until(36_000, lambda at: hands.do("sweep", at))
    with moving(single, f"{prefix}-plain") as other:
        plainly = other.until(36_000, lambda at: sweep.sweep_once(other.run, 0, at))
    assert by_hands == plainly
    assert set(by_hands) == set("abcdef")
    assert by_hands["a"] == 30_000
    assert len(set(by_hands.values())) == 3


class Recorded:
    """In place of the tenure that counts and ranks."""

    def __init__(self) -> None:
        self.did: list[tuple[str, int]] = []

    def claim(self) -> int:
        self.did.append(("claim", 0))
        return 0

    def publish(self, now_ms: int) -> None:
        self.did.append(("publish", now_ms))

    def close(self) -> None:
        self.did.append(("close", 0))


def test_what_is_asked_twice_is_done_once() -> None:
    found = Recorded()
    hands = Hands(cast(Runtime, None), cast(Trending, found))
    for _ in range(2):
        for name in ("claim", "publish"):
            hands.do(name, MONDAY)
    hands.do("claim", MONDAY + 2_500)
    hands.do("publish", MONDAY - 5_000)
    assert found.did == [("claim", 0), ("publish", MONDAY), ("claim", 0)]
    with pytest.raises(ValueError, match="'dance'"):
        hands.do("dance", MONDAY)


def test_one_of_several_follows_and_says_what_went_wrong(
    single: Server, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[Recorded] = []

    def recorded(run: Runtime, ownership: Ownership) -> Recorded:
        did.append(Recorded())
        return did[-1]

    monkeypatch.setattr(virtual, "Trending", recorded)
    with closing(plant(single.url, single.url, prefix)) as run:
        keys, stops = run.keys, [Stop(), Stop()]
        threads = [threading.Thread(target=follow, args=(run, stop)) for stop in stops]

        def ask(identity: str, *due: tuple[int, str]) -> dict[str, Any]:
            run.log.rpush(keys.clock_asked, orjson.dumps({"id": identity, "due": due}))
            found: Any = run.log.blpop([keys.clock_answered], timeout=10)
            assert found, "nobody answers"
            return dict(orjson.loads(found[1]))

        for thread in threads:
            thread.start()
        try:
            assert ask("1", (MONDAY, "dance")) == {"id": "1", "error": "ValueError: nothing is called 'dance'"}
            for _ in range(2):
                assert ask("2", (MONDAY, "claim"), (MONDAY, "publish")) == {"id": "2", "error": ""}
            assert [each.did for each in did] == [[("claim", 0), ("publish", MONDAY)]]
            assert all(run.log.exists(keys.owner(job, 0)) for job in ("sweep", "trending"))
        finally:
            for stop, thread in zip(stops, threads, strict=True):
                stop.set()
                thread.join()
        assert did[0].did[-1] == ("close", 0)
        assert not run.log.exists(keys.owner("sweep", 0), keys.owner("trending", 0))


@pytest.mark.parametrize("kind", ["single", "cluster"])
def test_settled_is_mirrored_and_consumed(
    kind: str, request: pytest.FixtureRequest, single: Server, prefix: str
) -> None:
    servers = request.getfixturevalue(kind)
    with (
        World((servers if kind == "single" else servers[0]).url, prefix) as world,
        closing(plant((servers if kind == "single" else servers[0]).url, single.url, prefix)) as run,
    ):

        def settled() -> bool:
            async def ask() -> bool:
                async with AsyncRedis.from_url(single.url) as log:
                    return await lag.settled(world.client, log, run.keys, ("views", "resume"))

            return bool(world.run(ask()))

        assert settled(), "nothing was accepted"
        put(run, 3, "view_start", started_at=1)
        assert not settled()
        drain(Mirror(run, 0, owner(run, "mirror")))
        assert not settled()
        views = Consume(run, 0, owner(run, "consume-views"), Views)
        drain(views)
        assert not settled()
        resume = Consume(run, 0, owner(run, "consume-resume"), Resume)
        drain(resume)
        assert settled()
        put(run, 3, "view_end", started_at=1)
        assert not settled()


# a whole deployment


class Engine(ApiProcess):
    """`pulsegate run` with a virtual clock and a Valkey server of its own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            "",
            directory,
            prefix="virtual",
            virtual_clock=1,
            redis_timeout_ms=5_000,
            worker_processes=2,
            lake_roll_s=0.2,
        )
        self._directory = directory
        self.command = [sys.executable, "-m", "engine.cli", "run", "--data", str(directory / "data")]

    @property
    def redis_url(self) -> str:
        return url_of(self._directory / "data/redis")

    def clock(self) -> dict[str, Any]:
        answer = self.get("/v1/clock", token=service("admin"))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    @property
    def now(self) -> int:
        return int(self.clock()["now"])

    def set(self, now: Any, *, token: str = "") -> httpx.Response:
        return self.post("/v1/clock", token=token or service("admin"), content=orjson.dumps({"now": now}), timeout=30)

    def move(self, seconds: float, step_ms: int = 1_000) -> int:
        """The time then, ms."""
        now = self.now
        until = now + int(1000 * seconds)
        while now < until:
            now = min(until, now + step_ms)
            answer = self.set(now)
            assert answer.json() == {"now": now}, answer.text
        return now

    def settle(self) -> None:
        wait_for(lambda: self.clock()["settled"], "all is in the projections", 30)

    def views(self, account: str) -> list[dict[str, Any]]:
        return list(self.get(f"/v1/views?account={account}", token=service("read")).json()["items"])

    def children(self, *words: str) -> list[int]:
        """Process ids of its parts whose command ends so."""
        table = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split() for line in table.splitlines()]
        return [int(row[0]) for row in rows if row[1] == str(self.pid) and tuple(row[-len(words) :]) == words]


class Unset:
    """What was answered before the clock was first set."""

    def __init__(self, engine: Engine) -> None:
        beat = {
            "session": "s",
            "device": "d",
            "content": "c",
            "kind": "vod",
            "state": "playing",
            "seq": 0,
            "position": 0,
        }
        token = player("early")
        self.beats = [engine.post("/v1/heartbeats", token=token, content=orjson.dumps(beat)) for _ in range(2)]
        self.check = engine.get("/v1/check?session=s&device=d&content=c&kind=vod", token=token)
        self.edge = engine.get("/v1/edge/authorize", token=token, headers={"X-Original-URI": "/a.ts"})
        self.ready = engine.get("/readyz").status_code
        self.clock = engine.clock()


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Engine, Unset]]:
    with Engine(tmp_path_factory.mktemp("virtual")) as engine:
        unset = Unset(engine)
        answer = engine.set(MONDAY)
        assert (answer.status_code, answer.json()) == (200, {"now": MONDAY})
        yield engine, unset


@pytest.fixture
def engine(started: tuple[Engine, Unset]) -> Engine:
    return started[0]


def test_until_it_is_set_nothing_can_be_dated(started: tuple[Engine, Unset]) -> None:
    unset = started[1]
    assert unset.clock == {"now": None, "settled": True}
    assert unset.ready == 200
    for answer in (*unset.beats, unset.check):
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "clock_unset")
    assert unset.edge.status_code == 204, "an edge is never told what nginx would turn into a 500"


def test_it_never_goes_back(engine: Engine) -> None:
    now = engine.move(0.25)
    answer = engine.set(now - 1)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "clock_back")
    assert answer.json()["error"]["field"] == "now"
    assert engine.now == now
    assert engine.set(now).json() == {"now": now}


@pytest.mark.parametrize("now", [0, -5, None, "tomorrow", 1.5, 10**40])
def test_a_bad_moment_is_named(engine: Engine, now: Any) -> None:
    body = orjson.dumps({"now": now}) if now != 10**40 else b'{"now":%d}' % now
    before = engine.now
    answer = engine.post("/v1/clock", token=service("admin"), content=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (400, "now"), answer.text
    assert engine.now == before


def test_only_an_admin_moves_it_or_looks(engine: Engine) -> None:
    now = engine.now
    for token, status in (("", 401), (player("ann"), 403), (service("read", "signals"), 403)):
        said = orjson.dumps({"now": now + 1_000})
        assert engine.post("/v1/clock", token=token, content=said).status_code == status
        assert engine.get("/v1/clock", token=token).status_code == status
    assert engine.now == now


def test_it_stands_still(engine: Engine) -> None:
    token = player("still")
    first = engine.beat(token, "s", "d", seq=0, position=0)
    assert first["lease_expires_at"] == engine.now + 30_000
    assert engine.beat(token, "s", "d", seq=1, position=0)["lease_expires_at"] == first["lease_expires_at"]
    item = engine.sessions("still")[0]
    assert item["started_at"] == item["lease_expires_at"] - 30_000 == engine.now


def test_a_vanished_player_is_swept_at_its_moment(engine: Engine) -> None:
    # Neither a tick nor a sweep.
    now = engine.move(0.3)
    assert engine.beat(player("gone"), "s", "d", seq=0, position=0)["decision"] == "allow"
    deadline = now + 30_000
    swept = next(at for at, name in due(deadline - 1, deadline + 2_000) if name == "sweep" and at >= deadline)
    engine.move((swept - 1 - now) / 1000)
    engine.settle()
    assert [view["running"] for view in engine.views("gone")] == [True]
    engine.move(0.001)
    engine.settle()
    (view,) = engine.views("gone")
    assert (view["running"], view["reason"], view["ended_at"]) == (False, "timeout", swept)
    assert (view["started_at"], view["last_seen_at"]) == (now, now)
    assert view["estimated_end_at"] == now + 5_000
    assert engine.sessions("gone") == []


def test_a_slot_is_free_when_its_lease_has_expired(engine: Engine) -> None:
    token = player("pair", max_streams=1)
    engine.beat(token, "s1", "d1", seq=0, position=0)
    held = engine.beat(token, "s2", "d2", seq=0, position=0)
    assert (held["decision"], held["reason"]) == ("block", "limit_reached")
    blocked = engine.now
    wait_s = (held["retry_at"] - blocked) / 1000
    assert 15 <= wait_s <= 16
    engine.move(wait_s - 0.5)
    assert engine.beat(token, "s2", "d2", seq=1, position=0)["decision"] == "block"
    engine.move(0.5)
    assert engine.beat(token, "s2", "d2", seq=2, position=0)["decision"] == "allow"
    engine.settle()
    # Questions without a range are about the virtual day.
    (block,) = engine.get("/v1/audit/blocks?account=pair", token=service("read")).json()["items"]
    assert block["at"] == blocked


def test_what_is_watched_is_counted_and_published(engine: Engine) -> None:
    tokens = [player(f"fan-{n}") for n in range(5)]
    for n, token in enumerate(tokens):
        engine.beat(token, f"s{n}", f"d{n}", "premiere", seq=0, position=0)
    now = engine.move(5)
    listed = engine.get("/v1/trending?kind=vod&rank=popular", token=tokens[0]).json()
    assert listed["published_at"] == now - now % 5_000
    assert ("premiere", 5, 5) in [(item["content"], item["concurrent"], item["distinct"]) for item in listed["items"]]
    audience = engine.get("/v1/contents/premiere/audience", token=service("read")).json()
    assert audience["concurrent"] == 5
    assert audience["distinct"]["5m"] == 5
    assert audience["series"][-1]["at"] in (now - now % 60_000, now - now % 60_000 - 60_000)
    engine.move(36)
    audience = engine.get("/v1/contents/premiere/audience", token=service("read")).json()
    assert audience["concurrent"] == 0


def test_all_that_was_accepted_is_settled(engine: Engine) -> None:
    token = player("reader", profiles=["kid"])
    for seq in range(12):
        engine.beat(token, "s", "d", "book", seq=seq, position=10.0 * seq, duration=600, profile="kid")
        engine.move(10)
    now = engine.now
    assert engine.post("/v1/sessions/s/stop", token=token).status_code == 204
    engine.settle()
    (view,) = engine.views("reader")
    assert (view["reason"], view["ended_at"], view["watched_ms"]) == ("stopped", now, 120_000)
    resume = engine.get("/v1/resume/book?profile=kid", token=token).json()
    assert 100 <= resume["position"] <= 120
    assert list((engine._directory / "data" / "lake").rglob("*.parquet")), "the lake has it, too"


def test_ten_minutes_in_one_step_are_made_in_seconds(engine: Engine) -> None:
    """Each with all that is due in it: whoever vanished is swept in time, and it was no outage."""
    now = engine.now
    engine.beat(player("sleeper"), "s", "d", seq=0, position=0)
    assert engine.set(now + JUMP_MS).status_code == 200
    engine.settle()
    (view,) = engine.views("sleeper")
    assert view["reason"] == "timeout"
    assert now + 30_000 <= view["ended_at"] < now + 31_000
    # A longer one is an outage of ours: who watched when it began has one lifetime more.
    engine.beat(player("patient"), "s", "d", seq=0, position=0)
    jumped = engine.now + JUMP_MS + 3_600_000
    assert engine.set(jumped).status_code == 200
    assert engine.now == jumped
    assert [item["session"] for item in engine.sessions("patient")] == ["s"]
    engine.move(31.5)
    assert engine.sessions("patient") == []


def test_other_processes_must_agree_on_the_clock(engine: Engine, tmp_path: Path) -> None:
    env = clean_env() | engine.env | environment(virtual_clock=0, redis_url=engine.redis_url)
    for command in (["engine.cli", "api", "--port", "0"], ["workers", "worker"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], env=env, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode not in (0, None)
        assert "this process has the real one (PULSEGATE_VIRTUAL_CLOCK)" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "engine.cli", "run", "--data", str(tmp_path)],
        env=clean_env() | environment(virtual_clock=1, processes=2), capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, "PULSEGATE_VIRTUAL_CLOCK" in done.stderr) == (1, True)


def test_killed_it_goes_on_from_its_last_announcement(engine: Engine) -> None:
    token = player("steady")
    engine.beat(token, "s", "d", seq=0, position=0)
    now = engine.move(1.25 - engine.now % 1_000 / 1000)
    (api,), (clock,) = engine.children("engine.cli", "api"), engine.children("workers", "clock")
    for pid in (api, clock):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: engine.children("engine.cli", "api") not in ([], [api]) and engine._ready(), "it is back", 30)
    assert engine.now == now - now % 1_000
    # The worker is back as well, or will be: the call waits for it.
    assert engine.set(now + 1_000).status_code == 200
    assert engine.beat(token, "s", "d", seq=1, position=0)["decision"] == "allow"


def test_stopped_in_order_it_goes_on_from_where_it_stood(engine: Engine) -> None:
    now = engine.move(0.3)
    (api,) = engine.children("engine.cli", "api")
    os.kill(api, signal.SIGTERM)
    wait_for(lambda: engine.children("engine.cli", "api") not in ([], [api]) and engine._ready(), "it is back", 30)
    assert engine.now == now
    assert engine.set(now - 250).json()["error"]["code"] == "clock_back"
    engine.move(1)


def test_without_the_setting_there_is_no_such_route(
    engine: Engine, single: Server, tmp_path: Path, prefix: str
) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix) as api:
        for answer in (
            api.get("/v1/clock", token=service("admin")),
            api.post("/v1/clock", token=service("admin"), content=b'{"now":%d}' % MONDAY),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        documents = [each.get("/openapi.json").json() for each in (api, engine)]
    assert "/v1/trending" in documents[0]["paths"]
    assert "/v1/clock" not in documents[0]["paths"]
    assert documents[0]["paths"] == documents[1]["paths"], "simulations are no part of the API's description"
    assert Keys("pg", 16).clock_asked == "pg:{clock}:asked"
