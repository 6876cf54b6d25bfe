"""One player's token fills Redis with whatever it can: what stays is bounded, for that account alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as Async

from engine import bad, badcli, deadletters, keeping
from engine.bad import EVENT_MAX, BadEvents
from engine.clients import Clients
from engine.deadletters import PAYLOAD_MAX
from engine.embedded import VOLATILE, Server
from engine.errors import Overloaded, OverQuota
from engine.keys import Keys, sizes
from engine.metrics import Metrics
from engine.outages import Outage
from engine.partitions import partition_of
from engine.quotas import FULL, Bucket, Quotas
from engine.settings import Settings
from engine.tracking import Rejected
from tests.harness import PARTITIONS, World
from tests.hostile.wires import Wire
from tests.servers import ApiProcess, player, service, wait_for

BIG = "x" * 60_000
QUOTA = OverQuota.code


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server whose memory a test may take away."""
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis(single: Server) -> Iterator[Redis]:
    with Redis(port=single.port) as client:
        yield client


def keys_like(world: World, pattern: str) -> int:
    async def count() -> int:
        found = 0
        async for _ in world.client.scan_iter(match=f"{world.keys.prefix}:*{pattern}*"):
            found += 1
        return found

    return int(world.run(count()))


# heartbeats


@pytest.fixture
def narrow(backend: str, prefix: str) -> Iterator[World]:
    with World(backend, prefix, quota_beats_bytes=128 * 1024) as world:
        yield world


def test_large_heartbeats_are_decided_and_not_all_appended(narrow: World) -> None:
    for _ in range(10):
        assert narrow.beat("tv", "tv", limit=1, junk=BIG)["decision"] == "allow"
        assert narrow.beat("phone", "phone", limit=1)["decision"] == "block"
    appended = narrow.events("a", "heartbeat")
    assert len(appended) == 2, "128 KiB in ten seconds"
    assert narrow.metrics.over_quota.labels("heartbeats")._value.get() == 16, "the refused one's among them"
    narrow.beat("tv", "tv", account="b", limit=1)
    assert len(narrow.events("b", "heartbeat")) == 1, "nobody else's business"
    narrow.wait(10)
    narrow.beat("tv", "tv", limit=1)
    assert len(narrow.events("a", "heartbeat")) == 3


def test_small_heartbeats_without_end_are_bounded_too(narrow: World) -> None:
    for _ in range(1_200):
        assert narrow.beat("tv", "tv", limit=1)["decision"] == "allow"
    assert len(narrow.events("a", "heartbeat")) < 1_000


def test_evidence_without_end_is_bounded_too(narrow: World) -> None:
    for _ in range(1_200):
        assert narrow.signal("tv", "film", limit=1)["decision"] == "allow"
        narrow.now += 1
    assert len(narrow.events("a", "evidence")) < 1_000


def test_many_small_events_in_one_heartbeat_cost_what_they_become(narrow: World) -> None:
    events = [{"type": "custom", "data": {}}] * 20
    for _ in range(50):
        assert narrow.beat("tv", "tv", limit=1, events=events)["decision"] == "allow"
    assert len(narrow.events("a", "custom")) < 500


# starts


def test_an_account_that_zaps_without_end_is_told_to_wait(backend: str, prefix: str) -> None:
    with World(backend, prefix, quota_starts=10, quota_starts_per_min=60) as world:
        world.beat("tv", "tv", "film", limit=3)
        for number in range(10):
            world.beat("phone", "phone", f"invented-{number}", limit=3)
        with pytest.raises(Overloaded) as refused:
            world.beat("phone", "phone", "invented-more", limit=3)
        assert (refused.value.code, refused.value.retry_after_s) == (QUOTA, 1)
        told = world.signal("box", "invented-more", limit=3)
        assert (told["decision"], told["reason"], told["retry_at"]) == ("block", QUOTA, world.now + 1000)
        with pytest.raises(Overloaded):
            world.takeover("box", "tv", device="box", content="invented-more", kind="vod")
        assert world.beat("tv", "tv", "film", limit=3)["decision"] == "allow", "what runs goes on"
        assert world.signal("tv", "film", limit=3)["decision"] == "allow"
        assert world.beat("phone", "phone", "another", account="b")["decision"] == "allow"
        world.wait(2)
        assert world.beat("phone", "phone", "invented-more", limit=3)["decision"] == "allow"


def test_refused_sessions_with_ever_new_names_are_starts(backend: str, prefix: str) -> None:
    with World(backend, prefix, quota_starts=10, quota_starts_per_min=60) as world:
        world.beat("tv", "tv", limit=1)
        for number in range(10):
            assert world.beat(f"s{number}", f"d{number}", limit=1)["decision"] == "block"
        with pytest.raises(Overloaded):
            world.beat("another", "another", limit=1)
        assert world.beat("tv", "tv", limit=1)["decision"] == "allow"


def test_at_the_edge_starting_more_than_one_may_is_no_way_in(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, quota_starts=2, quota_starts_per_min=1) as api:

        def fetch(content: str) -> Any:
            headers = {"X-Original-URI": f"/vod/{content}/1.ts"}
            return api.get("/v1/edge/authorize", token=player("ann", max_streams=9, device="tv"), headers=headers)

        assert fetch("film").status_code == 204
        answers = [fetch(f"invented-{n}") for n in range(20)]
        assert {a.status_code for a in answers[5:]} == {403}
        assert answers[-1].headers["x-pulsegate-reason"] == QUOTA
        assert not any("x-pulsegate-degraded" in a.headers for a in answers)
        token = player("ann", max_streams=9)
        body = {
            "session": "s",
            "device": "pc",
            "content": "one-more",
            "kind": "vod",
            "state": "playing",
            "seq": 0,
            "position": 1,
        }
        told = api.post("/v1/heartbeats", token=token, json=body)
        assert (told.status_code, told.json()["error"]["code"]) == (429, QUOTA)
        assert int(told.headers["retry-after"]) >= 1


# request ids


def test_a_stop_that_ends_nothing_is_not_remembered(world: World) -> None:
    world.beat("tv", "tv")
    for number in range(20):
        assert world.stop("nobody", request_id=f"r{number}") is False
    assert keys_like(world, ":request:") == 0
    assert world.stop("tv", request_id="once") is True
    world.wait(1)
    world.beat("tv", "tv", seq=100)
    assert world.stop("tv", request_id="once") is False, "the retry of a stop ends no later view"
    assert world.running() == {"tv"}
    assert keys_like(world, ":request:") == 1


def test_request_ids_are_bounded(backend: str, prefix: str) -> None:
    with World(backend, prefix, quota_bytes=2**16, quota_bytes_per_s=1024) as world:
        world.beat("tv", "tv")
        for number in range(200):
            assert world.signal("tv", "film", request_id=f"r{number}")["decision"] == "allow"
        assert keys_like(world, ":request:") <= 129, "the answers that find no room are given, not remembered"
        with pytest.raises(Overloaded) as refused:
            world.takeover("tv", "oldest", device="tv", content="film", kind="vod", request_id="mine")
        assert refused.value.code == QUOTA


# events


def test_an_account_that_tells_too_much_is_told_to_wait(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, quota_bytes=2**17, quota_bytes_per_s=1024) as api:

        def tell(account: str, number: int, kind: str = "custom", token: str = "") -> Any:
            event = {"type": kind, "id": str(number), "data": {"junk": BIG}}
            said = {"session": "s", "events": [event]} | ({"account": account} if token else {})
            return api.post("/v1/events", token=token or player(account), json=said)

        answers = [tell("ann", number) for number in range(10)]
        assert [a.status_code for a in answers[:2]] == [202, 202]
        assert {a.status_code for a in answers[3:]} == {429}
        assert answers[-1].json()["error"]["code"] == QUOTA
        assert int(answers[-1].headers["retry-after"]) > 1
        assert tell("ann", 99, token=service("signals")).status_code == 429, "whoever tells it"
        assert api.beat(player("ann"), "tv", "tv")["decision"] == "allow"
        assert tell("ben", 0).status_code == 202
        rejected = [tell("cat", number, "heartbeat").status_code for number in range(40)]
        assert (rejected[0], {*rejected[4:]}) == (202, {429}), "what is rejected counts, and as it came"
        with Wire(api) as wire:
            head = f"POST /v1/events HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {player('ann')}\r\nContent-Length: 1000000\r\n\r\n"
            said = wire.send(head.encode()).answer()
            assert (said.status, said.code) == (429, QUOTA), "before the body comes"
        sid = "x" * 30
        lines = "\n".join(f'cid="film",e=t,sid="{sid}{n}",sn={n},ts={n},v=2' for n in range(400))
        answers = [
            api.post("/v1/cmcd", token=player("dan"), content=lines, headers={"Content-Type": "application/cmcd"})
            for _ in range(3)
        ]
        assert answers[-1].status_code == 429, answers[-1].text


def test_what_is_remembered_of_a_day_is_bounded(world: World) -> None:
    """Fifty thousand of them, and twenty thousand stretches of numbers."""
    seen = world.keys.account("a").seen
    day = world.now // 86_400_000

    async def fill() -> None:
        await world.client.sadd(f"{seen}:{day}", *(number.to_bytes(8, "big") for number in range(50_000)))

    world.run(fill())
    with pytest.raises(Overloaded) as refused:
        world.run(world.decisions.record("a", [("custom", "ab" * 16, b'"account":"a","data":1}')]))
    assert refused.value.code == QUOTA
    assert world.run(world.decisions.record("a", [("custom", "", b'"account":"a","data":1}')]))[0] == [1]


# what is kept for a look


def keeper(client: Any, prefix: str, **settings: Any) -> tuple[BadEvents, Keys, Metrics]:
    keys, metrics = Keys(prefix, PARTITIONS), Metrics()
    made = Settings(**settings)
    return BadEvents(client, keys, made, metrics, Quotas(made, metrics, Outage())), keys, metrics


def test_one_account_pushes_out_nobody_elses_rejected_events(single: Server, redis: Redis, prefix: str) -> None:
    def rejected(size: int) -> list[Rejected]:
        return [Rejected(0, "invalid", "event: no", "event", b"7" * size)]

    async def run() -> tuple[Keys, Metrics]:
        async with Async.from_url(single.url) as client:
            kept, keys, metrics = keeper(client, prefix, bad_max_bytes=2**18, bad_account_bytes=2**16)
            await kept.keep("honest", "s", {}, rejected(100))
            for _ in range(200):
                await kept.keep("greedy", "s", {}, rejected(10_000))
            return keys, metrics

    keys, metrics = asyncio.run(run())
    found = list(bad.find(redis, keys))
    assert sum(each.account == "honest" for each in found) == 1
    assert sum(len(each.event) for each in found if each.account == "greedy") <= 2**16
    counts = {fate: metrics.bad.labels(fate)._value.get() for fate in ("kept", "over_quota", "lost")}
    assert counts == {"kept": len(found), "over_quota": 201 - len(found), "lost": 0}
    assert bad.remove(redis, keys, [each.id for each in found if each.account == "greedy"]) == len(found) - 1
    assert set(redis.hkeys(sizes(keys.bad))) == {b"", b"honest"}


def test_all_of_them_together_are_bounded_in_bytes(single: Server, redis: Redis, prefix: str) -> None:
    async def run() -> Keys:
        async with Async.from_url(single.url) as client:
            kept, keys, _ = keeper(client, prefix, bad_max_bytes=2**18, bad_account_bytes=2**16)
            for number in range(100):
                await kept.keep(f"a{number}", "s", {}, [Rejected(0, "invalid", "no", "event", b"7" * 100_000)])
            return keys

    keys = asyncio.run(run())
    found = list(bad.find(redis, keys))
    assert 10 < len(found) < 17
    assert found[-1].account == "a99", "the newest"
    assert (len(found[0].event), found[0].size) == (EVENT_MAX, 100_000)
    assert redis.memory_usage(keys.bad, samples=0) < 2**19
    done = badcli.replay(Clients(Settings(prefix=prefix, partitions=PARTITIONS), keys, redis, redis))
    assert done["bad"] == len(found), "what is not whole cannot be replayed"
    bad.remove(redis, keys, [each.id for each in found])
    assert not redis.exists(sizes(keys.bad))


def test_dead_letters_are_bounded_in_bytes(redis: Redis, prefix: str) -> None:
    keys = Keys(prefix, PARTITIONS)
    for number in range(50):
        letter = deadletters.fields(f"0-{number}-0", b"7" * 1_000_000, "too large", number)
        redis.execute_command(*keeping.command(keys.dead("webhook"), letter, 10_000, 2**20))
    letters = list(deadletters.letters(redis, keys, "webhook"))
    assert (len(letters), letters[-1].of) == (15, "0-49-0")
    assert (len(letters[0].payload), letters[0].size) == (PAYLOAD_MAX, 1_000_000)
    with pytest.raises(ValueError, match="of its 1000000 bytes"):
        letters[0].event()
    for number in range(50):
        letter = deadletters.fields(f"0-{number}-0", b"{}", "odd", number)
        redis.execute_command(*keeping.command(keys.dead("webhook"), letter, 20, 2**20))
    assert deadletters.count(redis, keys, "webhook") == 20
    assert (
        deadletters.remove(redis, keys, "webhook", [each.id for each in deadletters.letters(redis, keys, "webhook")])
        == 20
    )
    assert not redis.exists(sizes(keys.dead("webhook")))


# Redis fills up nevertheless


def test_little_memory_left_is_an_alarm_and_only_decisions_write(own: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(own.url, tmp_path, prefix=prefix) as api, Redis(port=own.port) as client:
        token = player("ann", max_streams=1)
        api.beat(token, "tv", "tv")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.9))
        wait_for(lambda: api.get("/readyz").json()["memory"] == "high", "it is seen")
        assert api.get("/readyz").status_code == 200, "a warning: decisions are real"
        wait_for(lambda: "pulsegate_redis_memory_high 1.0" in api.get("/metrics").text, "and counted")
        told = api.post("/v1/events", token=token, json={"session": "tv", "events": [{"type": "custom"}]})
        assert (told.status_code, told.json()["error"]["code"]) == (429, FULL)
        outbox = Keys(prefix, PARTITIONS).outbox(partition_of("ann", PARTITIONS))
        before = client.xlen(outbox)
        assert api.beat(token, "tv", "tv", events=[{"type": "custom"}])["decision"] == "allow"
        assert client.xlen(outbox) == before, "decided, not appended"
        assert api.beat(token, "phone", "phone")["decision"] == "block"
        client.config_set("maxmemory", 0)
        wait_for(lambda: api.get("/readyz").json()["memory"] == "ok", "and it is over")
        assert (
            api.post("/v1/events", token=token, json={"session": "tv", "events": [{"type": "custom"}]}).status_code
            == 202
        )


def test_maxmemory_ends_in_429_for_the_greedy_and_never_in_allow_for_all(
    own: Server, tmp_path: Path, prefix: str
) -> None:
    """The watch is told to see nothing here, so that the server itself says no."""
    with ApiProcess(own.url, tmp_path, prefix=prefix, memory_high=1.0) as api, Redis(port=own.port) as client:
        bystander = player("bystander", max_streams=1)
        assert api.beat(bystander, "tv", "tv")["decision"] == "allow"
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 8 * 2**20)
        seen: set[int] = set()
        for number in range(60):
            event = {"type": "custom", "id": str(number), "data": {"junk": "x" * 900_000}}
            said = {"session": "s", "events": [event]}
            seen.add(api.post("/v1/events", token=player(f"greedy-{number % 10}"), json=said).status_code)
            refused = api.beat(bystander, "phone", "phone")
            assert (refused["decision"], refused["degraded"]) == ("block", False)
            assert api.beat(bystander, "tv", "tv")["degraded"] is False
        assert seen == {202, 429}
        assert api.get("/readyz").status_code == 200


# the buckets themselves


def test_buckets_are_bounded_in_memory() -> None:
    now = [0.0]
    bucket = Bucket(10, 1, lambda: now[0], most=100)
    for number in range(1_000):
        bucket.take("greedy", 1)
        bucket.take(f"a{number}", 20)
    assert len(bucket) == 100
    assert len(bucket.over) <= 100
    assert bucket.wait_s("greedy") > 0, "who goes on asking is not forgotten"
    now[0] += 990
    assert bucket.wait_s("greedy") == 0
    assert bucket.wait_s("a999") == 0
    assert bucket.over.keys() <= {f"a{n}" for n in range(1_000)}


def test_who_is_refused_and_asks_again_and_again_uses_up_nobodys_starts(backend: str, prefix: str) -> None:
    """A player that retries is no attack: the household's next view starts as ever."""
    with World(backend, prefix, quota_starts=4, quota_starts_per_min=1) as world:
        world.beat("s1", "d1", limit=1)
        for _ in range(20):
            world.wait(1)
            world.beat("s1", "d1", limit=1)
            assert world.beat("s2", "d2", limit=1)["reason"] == "limit_reached"
            assert world.signal("d2", "film", limit=1)["reason"] == "limit_reached"
        world.stop("s1")
        assert world.beat("s2", "d2", limit=1)["decision"] == "allow"
        assert world.beat("s3", "d3", limit=2)["decision"] == "allow"
