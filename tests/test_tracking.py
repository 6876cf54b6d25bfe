"""Tracking events: what goes through and how, what is rejected and kept, that each counts once, and that the sums hold."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from fakeredis import FakeAsyncRedis
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from redis.asyncio import Redis as Async

from engine import badcli, cli, scripts, tracking
from engine.bad import BadEvents, find, remove
from engine.clients import Clients, connected, located
from engine.embedded import VOLATILE, Server
from engine.errors import BadRequest, Overloaded, Unavailable
from engine.events import read
from engine.keys import Keys
from engine.metrics import Metrics
from engine.outages import Outage
from engine.partitions import partition_of
from engine.quotas import Quotas
from engine.settings import Settings
from engine.tracking import FIELDS, LARGEST, Good, Rejected, event_id, judge
from engine.wire import OWN_TYPES
from tests.harness import PARTITIONS, START, World
from tests.servers import ROOT, ApiProcess, environment, player, service, wait_for

DAY_MS = 86_400_000
PREFIX = "tracking"
_accounts = itertools.count(1)


@pytest.fixture
def account() -> str:
    return f"account-{next(_accounts)}"


# the script, on each backend


def told(
    world: World, *events: dict[str, Any] | str, account: str = "a", session: str = "s1", **stated: str
) -> list[int]:
    """What became of each event (1 appended, 0 duplicate)."""
    good = [judge(account, session, (e if isinstance(e, str) else json.dumps(e)).encode()) for e in events]
    said = {"account": account, "session": session} | stated
    fill = tuple(name for name in tracking.STATED if name not in stated)
    return list(world.run(world.decisions.track(account, tracking.bodies(said, good), session, fill)).flags)


def test_an_event_is_appended_once_in_the_envelope_of_its_session(world: World) -> None:
    world.beat("s1", "d1", "film", profile="kid")
    world.wait(3)
    event = {"type": "chapter", "id": "x1", "n": 3}
    assert told(world, event) == [1]
    assert told(world, event) == [0]
    (kept,) = world.events("a", "chapter")
    assert kept == {
        "type": "chapter", "at": START + 3000, "view": 1, "started_at": START, "profile": "kid", "device": "d1",
        "content": "film", "kind": "vod", "event_id": event_id("a", "s1", "chapter", "x1", None), "account": "a",
        "session": "s1", "v": 1, "data": event,
    }  # fmt: skip


def test_what_the_sender_states_wins_over_the_record(world: World) -> None:
    world.beat("s1", "d1", "film", profile="kid")
    told(world, {"type": "x"}, content="other", device="d2")
    (kept,) = world.events("a", "x")
    assert (kept["content"], kept["device"], kept["profile"], kept["kind"]) == ("other", "d2", "kid", "vod")


def test_a_session_that_does_not_run_has_no_view(world: World) -> None:
    told(world, {"type": "x"}, session="never")
    world.beat("s1")
    world.stop("s1")
    told(world, {"type": "y"})
    never, ended = world.events("a", "x", "y")
    assert (never["view"], never["started_at"], never["device"], never["content"], never["kind"]) == (0, 0, "", "", "")
    assert (ended["view"], ended["started_at"], ended["device"], ended["content"]) == (0, 0, "d1", "film")


def test_ids_with_signs_of_all_kinds_stay_json(world: World) -> None:
    odd = 'é"\\/ 漢'
    world.beat(odd, odd, odd, account=odd, profile=odd)
    told(world, {"type": odd, "id": odd}, account=odd, session=odd)
    (kept,) = world.events(odd, odd)
    assert [kept[n] for n in ("account", "session", "device", "content", "profile")] == [odd] * 5


def test_events_are_no_evidence_of_life(world: World) -> None:
    world.beat("s1")
    before = world.leases(), world.deadlines("a"), world.sessions()
    world.wait(20)
    told(world, *({"type": "custom", "id": str(n)} for n in range(5)))
    assert (world.leases(), world.deadlines("a"), world.sessions()) == before
    world.wait(15)
    world.sweep()
    assert world.running() == set()
    assert [e["data"]["reason"] for e in world.events("a", "view_end")] == ["timeout"]


RAW = [
    '{"type":"x","n":1.0,"m":1.50e+2,"big":12345678901234567890,"neg":-0.0}',
    '{ "z" : 1 ,\t"type":"x","a":[ ],"u":"\\u00e9\\ud83d\\ude00 \u00e9 \U0001f600","s":"\\/ /" }',
    '{"type":"block","type":"seek","to":1,"to":2.0,"data":{"b":1,"a":2,"b":3}}',
    '{"type":"custom","data":"\\u0000"}',
    '{"type":"Video Playback Started","data":[null,true,{"":{}}]}',
    '{"type":"seek","data":null,"from":0.10}',
]


def test_events_go_through_byte_for_byte(world: World) -> None:
    assert told(world, *RAW) == [1] * len(RAW)

    async def entries() -> list[bytes]:
        return [
            fields[b"e"] for _, fields in await world.client.xrange(world.keys.outbox(partition_of("a", PARTITIONS)))
        ]

    for raw, payload in zip(RAW, world.run(entries()), strict=True):
        assert payload.endswith(b',"data":' + raw.encode() + b"}")
        event = read(0, "1-1", payload)
        assert bytes(event.data) == raw.encode()
        assert event.type == json.loads(raw)["type"]


def test_duplicates_are_known_by_id_or_by_session_type_and_seq(world: World) -> None:
    assert told(world, {"type": "x", "id": "1"}, {"type": "y", "id": "1"}, {"type": "x", "id": "2"}) == [1, 0, 1]
    assert told(world, {"type": "x", "id": "1"}, session="s2") == [0]
    assert told(world, {"type": "x", "id": "1"}, account="b") == [1]
    assert told(
        world, {"type": "x", "seq": 1}, {"type": "y", "seq": 1}, {"type": "x", "seq": 2}, {"type": "x", "seq": 1}
    ) == [1, 1, 1, 0]
    assert told(world, {"type": "x", "seq": 1}, session="s2") == [1]
    # An id wins over a seq, and the other way round neither is the other's duplicate.
    assert told(world, {"type": "x", "seq": 1, "id": "9"}, {"type": "x", "seq": 7, "id": "9"}) == [1, 0]
    assert told(world, {"type": "x"}, {"type": "x"}) == [1, 1]
    assert told(world, {"type": "x"}) == [1]


def test_order_is_kept_around_duplicates(world: World) -> None:
    told(world, {"type": "x", "id": "2"})
    flags = told(world, *({"type": "x", "id": str(n), "n": n} for n in (1, 2, 3, 1, 4)))
    assert flags == [1, 0, 1, 0, 1]
    assert [e["data"]["n"] for e in world.events("a", "x")[1:]] == [1, 3, 4]


@pytest.mark.parametrize("hour", [0, 1, 12, 23.999])
def test_duplicates_are_known_for_a_day_and_forgotten_after_two(world: World, hour: float) -> None:
    into_day = START % DAY_MS
    world.wait((DAY_MS - into_day) / 1000 + hour * 3600)
    event = {"type": "x", "id": "1"}
    assert told(world, event) == [1]
    world.wait(86_400)
    assert told(world, event) == [0]
    world.wait(86_400)
    assert told(world, event) == [1]


def test_what_is_remembered_expires(world: World) -> None:
    told(world, {"type": "x", "id": "1"})

    async def left() -> list[tuple[int, int]]:
        found = [key async for key in world.client.scan_iter(match=f"{world.keys.account('a').seen}*")]
        return [(await world.client.pttl(key), await world.client.scard(key)) for key in found]

    ((expires, members),) = world.run(left())
    assert members == 1
    assert DAY_MS < expires <= 2 * DAY_MS


def test_a_long_outbox_takes_no_more_events_and_loses_none(backend: str, prefix: str) -> None:
    with World(backend, prefix, outbox_high=10, outbox_max=10) as world:
        told(world, *({"type": "x", "id": str(n)} for n in range(11)))
        with pytest.raises(Overloaded):
            told(world, {"type": "x", "id": "new"}, {"type": "x", "id": "0"})
        # What is known already can be said.
        assert told(world, {"type": "x", "id": "0"}) == [0]
        world.run(world.client.xtrim(world.keys.outbox(partition_of("a", PARTITIONS)), maxlen=10, approximate=False))
        assert told(world, {"type": "x", "id": "new"}) == [1]
        assert len(world.events("a", "x")) == 11
        assert world.metrics.overloaded._value.get() == 1


def test_a_retry_after_a_lost_answer_appends_nothing(world: World) -> None:
    class Loses:
        """The script runs; its answer never arrives."""

        async def run(self, *args: Any, **kwargs: Any) -> Any:
            await executor.run(*args, **kwargs)
            raise Unavailable("lost")

    batch = [{"type": "x", "seq": n, "id": None if n % 2 else f"i{n}"} for n in range(20)]
    executor = world.executor
    world.decisions._executor = Loses()  # type: ignore[assignment]
    with pytest.raises(Unavailable):
        told(world, *batch)
    world.decisions._executor = executor
    assert told(world, *batch, {"type": "x", "seq": 20}) == [0] * 20 + [1]
    assert [e["data"]["seq"] for e in world.events("a", "x")] == list(range(21))


def test_record_is_for_events_of_our_own(world: World) -> None:
    body = b'"account":"a","content":"film","v":1,"data":{"position":3}}'
    flags, last = world.run(world.decisions.record("a", [("resume_set", "r1", body), ("resume_hide", "", body)]))
    assert flags == [1, 1]
    assert re.fullmatch(r"\d+-\d+", last)
    assert world.run(world.decisions.record("a", [("resume_set", "r1", body)])) == ([0], "")
    first, second = world.events("a", "resume_set", "resume_hide")
    assert (first["event_id"], first["data"], first["view"]) == ("r1", {"position": 3}, 0)
    assert "event_id" not in second


def test_batches_as_large_as_may_be_set(world: World) -> None:
    flags = told(world, *({"type": "x", "id": str(n)} for n in range(2000)))
    assert flags == [1] * 2000
    assert told(world, *({"type": "x", "id": str(n)} for n in range(1999, -1, -1))) == [0] * 2000


# what is rejected

BAD: list[tuple[Any, str, str]] = [
    *((value, "invalid", "") for value in (7, "x", None, True, [], [{"type": "x"}], 1.5)),
    ({}, "invalid", ".type"), ({"type": None}, "invalid", ".type"), ({"type": 1}, "invalid", ".type"), ({"type": ""}, "invalid", ".type"),
    ({"type": "x" * 129}, "invalid", ".type"), ({"type": "a\nb"}, "invalid", ".type"), ({"Type": "x"}, "invalid", ".type"),
    *(({"type": name}, "reserved", ".type") for name in sorted(OWN_TYPES)),
    ({"type": "x", "at": -1}, "invalid", ".at"), ({"type": "x", "at": "now"}, "invalid", ".at"), ({"type": "x", "at": 1e15}, "invalid", ".at"),
    ({"type": "x", "seq": -1}, "invalid", ".seq"), ({"type": "x", "seq": 1.5}, "invalid", ".seq"), ({"type": "x", "seq": True}, "invalid", ".seq"),
    ({"type": "x", "id": 7}, "invalid", ".id"), ({"type": "x", "id": ""}, "invalid", ".id"), ({"type": "x", "id": "\u202e"}, "invalid", ".id"),
    ({"type": "seek", "to": "1"}, "invalid", ".to"), ({"type": "seek", "data": {"from": -1}}, "invalid", ".data.from"),
    ({"type": "seek", "data": {"to": 1e9}}, "invalid", ".data.to"), ({"type": "seek", "data": []}, "invalid", ".data"),
    ({"type": "bitrate_change", "to": -1}, "invalid", ".to"), ({"type": "bitrate_change", "data": {"to": "4M"}}, "invalid", ".data.to"),
    ({"type": "ad_start", "data": {"duration": None, "index": 0.5}}, "invalid", ".data.index"),
    ({"type": "ad_start", "ad": 7}, "invalid", ".ad"), ({"type": "ad_end", "skipped": 1}, "invalid", ".skipped"),
    ({"type": "ad_break_start", "ads": -1}, "invalid", ".ads"), ({"type": "ad_break_end", "break": {}}, "invalid", ".break"),
    ({"type": "buffer_start", "position": "x"}, "invalid", ".position"), ({"type": "buffer_end", "duration_ms": -1}, "invalid", ".duration_ms"),
    ({"type": "error", "data": {"fatal": "yes"}}, "invalid", ".data.fatal"), ({"type": "error", "code": []}, "invalid", ".code"),
    ({"type": "custom", "name": 1}, "invalid", ".name"),
]  # fmt: skip


@pytest.mark.parametrize(("event", "code", "field"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_event_names_its_field(event: Any, code: str, field: str) -> None:
    with pytest.raises(BadRequest) as refused:
        judge("a", "s", json.dumps(event).encode())
    assert (refused.value.code, refused.value.field) == (code, f"event{field}")
    assert refused.value.message.startswith("event")


@pytest.mark.parametrize(
    "text", ['{"type":"x","n":1e999}', '{"type":"seek","to":-1e999}', '{"type":"x","s":"\\ud800"}']
)
def test_what_other_readers_would_not_take_for_json(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        judge("a", "s", text.encode())
    assert (refused.value.code, refused.value.field) == ("invalid_json", "event")


GOOD: list[dict[str, Any]] = [
    {"type": "x", "at": None, "seq": None, "id": None}, {"type": "SEEK", "to": "anything"}, {"type": "seek"},
    {"type": "seek", "from": 1, "to": 2.5, "why": "chapter"}, {"type": "seek", "data": {"from": None, "to": 0}, "data2": 1},
    {"type": "error", "code": 4011}, {"type": "error", "data": {"code": "E1", "message": "m", "fatal": True}},
    {"type": "bitrate_change", "data": {"from": 1e6, "to": 4_200_000, "height": 1080}}, {"type": "custom", "data": 7},
    {"type": "ad_end", "data": {"ad": "a", "skipped": False, "watched_ms": 15_000}}, {"type": "buffer_end", "duration_ms": 250.5},
]  # fmt: skip


@pytest.mark.parametrize("event", GOOD, ids=lambda value: str(value)[:40])
def test_a_good_event_passes(event: dict[str, Any]) -> None:
    raw = json.dumps(event).encode()
    assert judge("a", "s", raw) == Good(event["type"], "", raw)


def test_an_event_id_is_the_same_on_every_retry_and_in_every_process() -> None:
    assert (
        event_id("a", "s", "x", "i", 3) == event_id("a", "other", "y", "i", None) == "95b8bf70a2374aef5254f93e195e6684"
    )
    parts = [
        ("a", "s", "x", "i", None),
        ("b", "s", "x", "i", None),
        ("a", "s", "x", None, 1),
        ("a", "s", "x", None, 2),
        ("a", "s", "y", None, 1),
        ("a", "t", "x", None, 1),
    ]
    assert len({event_id(*each) for each in parts}) == len(parts)
    assert event_id("a", "s", "x", None, None) == ""


# over HTTP


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(
        single.url, tmp_path_factory.mktemp("api"), prefix=PREFIX, outbox_high=100_000, outbox_max=100_000
    ) as process:
        yield process


@pytest.fixture
def redis(single: Server) -> Iterator[Redis]:
    with Redis.from_url(single.url) as client:
        yield client


def outbox(redis: Redis, account: str, *types: str, prefix: str = PREFIX) -> list[dict[str, Any]]:
    """The account's events so far, each with its bytes under `raw`."""
    found: Any = redis.xrange(Keys(prefix, PARTITIONS).outbox(partition_of(account, PARTITIONS)))
    said = [json.loads(fields[b"e"]) | {"raw": fields[b"e"]} for _, fields in found]
    return [event for event in said if event["account"] == account and (not types or event["type"] in types)]


def send(api: ApiProcess, account: str, /, *events: Any, session: str = "s1", **fields: Any) -> httpx.Response:
    body = json.dumps({"session": session, "events": events} | fields)
    return api.post("/v1/events", token=player(account), content=body)


def refused(answer: httpx.Response, status: int, field: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["field"] == field, answer.text


def test_a_batch_is_answered_event_by_event(api: ApiProcess, redis: Redis, account: str) -> None:
    api.beat(player(account), "s1", "tv", seq=0)
    batch = [
        {"type": "seek", "to": 1, "id": "1"},
        {"type": "seek", "to": "x"},
        7,
        {"type": "odd thing", "seq": 1},
        {"type": "seek", "id": "1"},
    ]
    answer = send(api, account, *batch)
    assert answer.status_code == 202
    said = answer.json()
    assert (said["accepted"], said["duplicates"]) == (2, 1)
    assert [(item["index"], item["error"]["code"], item["error"]["field"]) for item in said["rejected"]] == [
        (1, "invalid", "events[1].to"), (2, "invalid", "events[2]"),
    ]  # fmt: skip
    assert said["rejected"][0]["error"]["message"].startswith("events[1].to: ")
    assert [(e["type"], e["device"], e["view"]) for e in outbox(redis, account, "seek", "odd thing")] == [
        ("seek", "tv", 1),
        ("odd thing", "tv", 1),
    ]
    assert send(api, account, *batch).json()["duplicates"] == 3


def test_a_batch_whose_every_event_is_bad_is_answered_all_the_same(api: ApiProcess, redis: Redis, account: str) -> None:
    answer = send(api, account, 1, {"type": "block"})
    assert (answer.status_code, answer.json()["accepted"], len(answer.json()["rejected"])) == (202, 0, 2)
    assert send(api, account).json() == {"accepted": 0, "duplicates": 0, "rejected": []}
    assert outbox(redis, account) == []


def test_bytes_over_http(api: ApiProcess, redis: Redis, account: str) -> None:
    body = '{"session": "s1","events": [ ' + " ,\n".join(RAW) + ' ] , "token": null, "more": 1}'
    answer = api.post("/v1/events", token=player(account), content=body.replace('"token": null', '"x": 0').encode())
    assert answer.json()["accepted"] == len(RAW)
    for raw, event in zip(RAW, outbox(redis, account), strict=True):
        assert event["raw"].endswith(b',"data":' + raw.encode() + b"}")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", "body"), (b"{", "body"), (b"[]", "body"), (b"7", "body"), (b'{"events":[]}', "session"), (b'{"session":"s"}', "events"),
        (b'{"session":"s","events":{}}', "events"), (b'{"session":"","events":[]}', "session"), (b'{"session":7,"events":[]}', "session"),
        (b'{"session":"a\\n","events":[]}', "session"), (b'{"session":"s","events":[],"kind":"radio"}', "kind"),
        (b'{"session":"s","events":[],"content":"\\u0000"}', "content"), (b'{"session":"s","events":[],"device":7}', "device"),
        (b'{"session":"s","events":[{]}', "body"), (b'{"session":"s","events":[{"type":"x\xff"}]}', "body"),
        (b'{"session":"s","events":[' + b",".join([b"1"] * 501) + b"]}", "events"),
        (b'{"session":"s","events":[' + b"[" * 40 + b"]" * 40 + b"]}", "body"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_bad_body_names_its_field_and_writes_nothing(
    api: ApiProcess, redis: Redis, account: str, body: bytes, field: str
) -> None:
    before = redis.xlen(Keys(PREFIX, PARTITIONS).bad)
    refused(api.post("/v1/events", token=player(account), content=body), 400, field)
    assert redis.xlen(Keys(PREFIX, PARTITIONS).bad) == before


def test_a_body_may_have_a_mebibyte(api: ApiProcess, account: str) -> None:
    limit = Settings().events_body_max_bytes
    events = [{"type": "x", "fill": "y" * 60_000} for _ in range(17)]
    body = json.dumps({"session": "s", "fill": "", "events": events})
    full = body.replace('"fill": ""', '"fill": "' + "z" * (limit - len(body)) + '"')
    assert api.post("/v1/events", token=player(account), content=full).json()["accepted"] == 17
    refused(api.post("/v1/events", token=player(account), content=full + " "), 413, "body")


def test_an_event_that_is_too_large_is_rejected_alone(api: ApiProcess, redis: Redis, account: str) -> None:
    event = json.dumps({"type": "x", "fill": "@"})
    largest = event.replace("@", "y" * (LARGEST - len(event) + 1))
    body = f'{{"session": "s", "events": [{largest}, {largest[:-2]}y"}}, {event}]}}'
    said = api.post("/v1/events", token=player(account), content=body).json()
    assert said["accepted"] == 2
    [wrong] = said["rejected"]
    assert (wrong["index"], wrong["error"]["code"], wrong["error"]["field"]) == (1, "too_large", "events[1]")
    assert len(outbox(redis, account)) == 2


def test_the_token_may_ride_in_header_body_or_query(api: ApiProcess, redis: Redis, account: str) -> None:
    body: dict[str, Any] = {"session": "s", "events": [{"type": "x"}]}
    kinds = {"Content-Type": "text/plain;charset=UTF-8"}
    assert api.post("/v1/events", token=player(account), json=body).status_code == 202
    beacon = json.dumps(body | {"token": player(account)})
    assert api.post("/v1/events", headers=kinds, content=beacon).status_code == 202
    assert api.post(f"/v1/events?token={player(account)}", headers=kinds, content=json.dumps(body)).status_code == 202
    assert api.post("/v1/events", json=body).status_code == 401
    assert api.post("/v1/events", token=player(account, ttl_s=60, now=_ago(120)), json=body).status_code == 202
    assert api.post("/v1/events", token=player(account, ttl_s=60, now=_ago(7200)), json=body).status_code == 401
    assert len(outbox(redis, account)) == 4
    assert not any(b"token" in event["raw"] for event in outbox(redis, account))


def _ago(seconds: float) -> float:
    return time.time() - seconds


def test_a_token_reaches_its_own_account_device_and_profiles(api: ApiProcess, redis: Redis, account: str) -> None:
    refused(send(api, account, account="other"), 403, "account")
    bound = player(account, device="tv", profiles=["kid"], kind="live")
    body = {"session": "s", "events": [{"type": "x"}]}
    refused(api.post("/v1/events", token=bound, json=body | {"device": "phone"}), 403, "device")
    refused(api.post("/v1/events", token=bound, json=body | {"profile": "adult"}), 403, "profile")
    assert api.post("/v1/events", token=bound, json=body | {"profile": "kid", "kind": "vod"}).status_code == 202
    (event,) = outbox(redis, account)
    assert (event["device"], event["profile"], event["kind"]) == ("tv", "kid", "live")


def test_a_service_token_names_the_account(api: ApiProcess, redis: Redis, account: str) -> None:
    body: dict[str, Any] = {
        "session": "s",
        "events": [{"type": "x"}],
        "device": "tv",
        "content": "film",
        "kind": "vod",
        "profile": "kid",
    }
    refused(api.post("/v1/events", token=service("read"), json=body | {"account": account}), 403, "authorization")
    refused(api.post("/v1/events", token=service("signals"), json=body), 400, "account")
    assert api.post("/v1/events", token=service("signals"), json=body | {"account": account}).status_code == 202
    (event,) = outbox(redis, account)
    assert [event[name] for name in ("device", "content", "kind", "profile")] == ["tv", "film", "vod", "kid"]


def test_browsers_may_call_it(api: ApiProcess, account: str) -> None:
    origin = {"Origin": "https://player.example"}
    preflight = api.request("OPTIONS", "/v1/events", headers=origin)
    assert (preflight.status_code, preflight.headers["access-control-max-age"]) == (204, "7200")
    answer = api.post("/v1/events", token=player(account), headers=origin, json={"session": "s", "events": []})
    assert answer.headers["access-control-allow-origin"] == "*"


def test_redis_away_or_an_outbox_too_long_say_when_to_come_again(tmp_path: Path, prefix: str, account: str) -> None:
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    try:
        with ApiProcess(server.url, tmp_path, prefix=prefix, outbox_high=10) as api:
            assert send(api, account, *({"type": "x", "id": str(n)} for n in range(11))).json()["accepted"] == 11
            answer = send(api, account, {"type": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            server.kill()
            answer = send(api, account, {"type": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            # Nothing to append, and nowhere to keep it: answered, counted as lost.
            assert len(send(api, account, 7).json()["rejected"]) == 1
            assert counts(api)["pulsegate_bad_events_total", "lost"] == 1
            assert "bad_events_lost" in api.said()
    finally:
        server.kill()


# inside heartbeats


def test_a_bad_event_costs_no_heartbeat(api: ApiProcess, redis: Redis, account: str) -> None:
    token = player(account)
    before = counts(api)
    events = [{"type": "seek", "to": 5}, {"type": "seek", "to": "far"}, {"type": "mine", "to": "far"}]
    assert api.beat(token, "s1", "tv", seq=0, events=events)["decision"] == "allow"
    assert [e["data"] for e in outbox(redis, account, "seek", "mine")] == [events[0], events[2]]
    (kept,) = wait_for(lambda: bad_of(redis, account), "the bad event is kept")
    assert (kept.reason, kept.field, json.loads(kept.event)) == ("invalid", "event.to", events[1])
    assert (kept.session, kept.envelope["device"], kept.envelope["content"], kept.envelope["view"]) == (
        "s1",
        "tv",
        "film",
        1,
    )
    # A repetition is one no more.
    assert api.beat(token, "s1", "tv", seq=0, events=events)["duplicate"]
    assert api.beat(token, "s1", "tv", seq=1, events=[{"type": "seek", "to": -1}])["decision"] == "allow"
    assert len(wait_for(lambda: bad_of(redis, account)[1:], "the next one too")) == 1
    after = counts(api)
    assert after["pulsegate_tracking_received_total", ""] - before["pulsegate_tracking_received_total", ""] == 2
    assert (
        after["pulsegate_tracking_events_total", "rejected"] - before["pulsegate_tracking_events_total", "rejected"]
        == 2
    )


# kept, listed, replayed


def bad_of(redis: Redis, account: str) -> list[Any]:
    return list(find(redis, Keys(PREFIX, PARTITIONS), account=account))


def counts(api: ApiProcess) -> Counter[tuple[str, str]]:
    """Samples by (name, fate)."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(api.get("/metrics").text):
        for sample in family.samples:
            found[sample.name, sample.labels.get("fate", "")] += int(sample.value)
    return found


def test_rejected_events_are_kept_as_they_came(api: ApiProcess, redis: Redis, account: str) -> None:
    api.beat(player(account), "s1", "tv", seq=0, profile="kid")
    started = outbox(redis, account, "view_start")[0]["at"]
    raw = '{ "type":"seek","to" :"é\\u00e9",  "id":"7"}'
    api.post("/v1/events", token=player(account), content=f'{{"session":"s1","events":[{raw}, null]}}'.encode())
    first, second = bad_of(redis, account)
    assert first.event == raw.encode()
    assert (first.account, first.session, first.reason, first.field) == (account, "s1", "invalid", "event.to")
    assert first.message.startswith("event.to: ")
    assert abs(first.at - started) < 60_000
    expected = {"profile": "kid", "device": "tv", "content": "film", "kind": "vod", "view": 1, "started_at": started}
    assert first.envelope == second.envelope == expected
    assert second.event == b"null"


def command(
    single: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str
) -> tuple[int, list[str]]:
    for name, value in environment(redis_url=single.url, prefix=PREFIX, partitions=PARTITIONS).items():
        monkeypatch.setenv(name, value)
    status = cli.main(["bad", *argv])
    said = capsys.readouterr()
    return status, (said.out + said.err).splitlines()


def test_bad_list(
    api: ApiProcess, single: Server, account: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send(api, account, *({"type": "seek", "to": f"no {n}"} for n in range(5)), {"type": "evict"})
    run = (single, monkeypatch, capsys, "list", "--account", account)
    status, lines = command(*run, "--json", "--limit", "3")
    assert status == 0
    said = [json.loads(line) for line in lines]
    assert [item["event"] for item in said] == [
        '{"type": "evict"}',
        '{"type": "seek", "to": "no 4"}',
        '{"type": "seek", "to": "no 3"}',
    ]
    assert {item["account"] for item in said} == {account}
    status, lines = command(*run, "--reason", "reserved")
    assert len(lines) == 2
    assert account in lines[0]
    assert "event.type" in lines[0]
    assert "evict" in lines[1]
    assert command(single, monkeypatch, capsys, "list", "--account", "nobody") == (0, [])


def test_bad_replay_after_a_fix(
    api: ApiProcess,
    single: Server,
    redis: Redis,
    account: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api.beat(player(account), "s1", "tv", seq=0)
    started = outbox(redis, account, "view_start")[0]["at"]
    raw = [
        '{"type":"seek", "to":"far" ,"seq":1}',
        '{"type":"seek","to":"near"}',
        '{"type":"seek","to":{},"id":"twice"}',
        "7",
    ]
    for _ in range(2):  # one with an id comes twice; those without one are two
        api.post("/v1/events", token=player(account), content=f'{{"session":"s1","events":[{",".join(raw)}]}}')
    kept = bad_of(redis, account)
    ids = [part for entry in kept for part in ("--id", entry.id)]
    run = (single, monkeypatch, capsys, "replay")
    status, lines = command(*run, *ids)
    assert (status, lines[-1]) == (1, "replayed 0, duplicate 0, still bad 8, not found 0")
    assert bad_of(redis, account) == kept

    monkeypatch.setitem(tracking._known, "seek", msgspec.json.Decoder(tracking.Sent))  # the fix: seek takes all
    status, lines = command(*run, *ids)
    assert (status, lines[-1]) == (1, "replayed 4, duplicate 2, still bad 2, not found 0")
    assert [entry.event for entry in bad_of(redis, account)] == [b"7", b"7"]
    found = outbox(redis, account, "seek")
    assert [event["raw"].split(b',"data":', 1)[1][:-1].decode() for event in found] == [raw[0], raw[1], raw[2], raw[1]]
    for event in found:
        assert (event["at"], event["view"], event["started_at"]) == (
            kept[0].at if event is not found[3] else kept[4].at,
            1,
            started,
        )
        assert (event["device"], event["content"], event["kind"], event["session"]) == ("tv", "film", "vod", "s1")
    assert found[0]["event_id"] == event_id(account, "s1", "seek", None, 1)
    # The sender's own retry is a duplicate now.
    assert send(api, account, {"type": "seek", "seq": 1, "to": 1}).json()["duplicates"] == 1

    status, lines = command(*run, "--id", kept[0].id)
    assert (status, lines) == (1, ["replayed 0, duplicate 0, still bad 0, not found 1"])


def test_bad_replay_by_reason_and_all(
    api: ApiProcess, single: Server, redis: Redis, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    redis.delete(Keys(PREFIX, PARTITIONS).bad)
    a, b = f"account-{next(_accounts)}", f"account-{next(_accounts)}"
    send(api, a, {"type": "evict"}, {"type": "seek", "to": ""})
    send(api, b, {"type": "seek", "to": ""}, {"type": "seek", "to": ""})
    monkeypatch.setitem(tracking._known, "seek", msgspec.json.Decoder(tracking.Sent))
    assert command(single, monkeypatch, capsys, "replay", "--reason", "nothing")[0] == 0
    status, lines = command(single, monkeypatch, capsys, "replay", "--reason", "invalid")
    assert (status, lines[-1]) == (0, "replayed 3, duplicate 0, still bad 0, not found 0")
    monkeypatch.setattr(tracking, "OWN_TYPES", frozenset())
    assert command(single, monkeypatch, capsys, "replay", "--all")[0] == 0
    assert redis.xlen(Keys(PREFIX, PARTITIONS).bad) == 0
    assert (len(outbox(redis, a)), len(outbox(redis, b))) == (2, 2)
    with pytest.raises(SystemExit):
        command(single, monkeypatch, capsys, "replay")


def test_a_replay_that_was_interrupted_puts_nothing_in_twice(
    api: ApiProcess, single: Server, redis: Redis, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster, too, the same script under the same keys; here it ends between append and removal."""
    send(api, account, {"type": "seek", "to": ""})
    (entry,) = bad_of(redis, account)
    monkeypatch.setitem(tracking._known, "seek", msgspec.json.Decoder(tracking.Sent))
    settings = Settings(redis_url=single.url, prefix=PREFIX, partitions=PARTITIONS)

    def die(*args: Any) -> int:
        raise KeyboardInterrupt

    with connected(settings) as clients:
        with monkeypatch.context() as patched:
            patched.setattr(badcli.bad, "remove", die)
            with pytest.raises(KeyboardInterrupt):
                badcli.replay(clients, [entry.id])
        assert badcli.replay(clients, [entry.id]) == {"duplicate": 1, "missing": 0}
    assert len(outbox(redis, account)) == 1
    assert bad_of(redis, account) == []


def test_replay_on_a_cluster(
    single: Server, cluster: list[Server], prefix: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(redis_url=cluster[0].url, log_redis_url=single.url, prefix=prefix, partitions=PARTITIONS)
    keys = Keys(prefix, PARTITIONS)
    with World(cluster[0].url, prefix) as world:
        world.run(world.client.hset(keys.layout, "partitions", PARTITIONS))
        for n in range(8):
            fields: Any = {"at": START, "account": f"c{n}", "session": "s", "event": b'{"type":"x"}', "envelope": b"{}"}
            redis.xadd(keys.bad, fields)
        with connected(settings) as clients:
            assert badcli.replay(clients)["replayed"] == 8
        assert [len(world.events(f"c{n}", "x")) for n in range(8)] == [1] * 8
    assert redis.xlen(keys.bad) == 0


def test_a_replay_into_a_full_outbox_keeps_what_is_left(
    world: World, prefix: str, redis: Redis, single: Server, backend: str
) -> None:
    if backend != single.url:
        return
    clients = Clients(Settings(prefix=prefix, partitions=PARTITIONS, outbox_high=10), world.keys, redis, redis)
    for n in range(15):
        redis.xadd(world.keys.bad, {"at": n, "account": "a", "session": "s", "event": b'{"type":"x"}'})
    with pytest.raises(Overloaded):
        badcli.replay(clients)
    assert (redis.xlen(world.keys.bad), len(world.events("a", "x"))) == (4, 11)


def test_commands_find_the_server_of_pulsegate_run(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="PULSEGATE_REDIS_URL"):
        located(Settings(), tmp_path)
    for name, port in (("redis", 7001), ("queues", 7002)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "port").write_text(str(port))
    assert located(Settings(), tmp_path).redis_url == "redis://127.0.0.1:7001/0"
    assert located(Settings(redis_url="redis://x"), tmp_path).log_redis_url == "redis://127.0.0.1:7002/0"
    assert located(Settings(redis_url="redis://x", log_redis_url="redis://y"), tmp_path).log_redis_url == "redis://y"


def test_pages(single: Server, prefix: str, redis: Redis) -> None:
    keys = Keys(prefix, PARTITIONS)
    with redis.pipeline() as pipe:
        for n in range(1_201):
            pipe.xadd(keys.bad, {"at": n, "account": "ab"[n % 2], "event": b"7"})
        pipe.execute()
    assert [e.at for e in find(redis, keys)] == list(range(1_201))
    assert [e.at for e in find(redis, keys, newest_first=True)] == list(range(1_200, -1, -1))
    ids = [e.id for e in find(redis, keys, account="a")]
    assert remove(redis, keys, ids) == len(ids) == 601
    assert {e.account for e in find(redis, keys)} == {"b"}
    assert remove(redis, keys, []) == 0


def test_keeping_never_fails_and_is_bounded(single: Server, prefix: str) -> None:
    keys, metrics = Keys(prefix, PARTITIONS), Metrics()
    settings = Settings(bad_max=300)
    quotas = Quotas(settings, metrics, Outage())
    rejected = [Rejected(0, "invalid", "event: no", "event", b"7")] * 3

    async def run() -> None:
        away = BadEvents(Async(port=1, socket_connect_timeout=0.2), keys, settings, metrics, quotas)
        await away.keep("a", "s", {}, rejected)
        await away.keep("a", "s", {}, rejected)
        assert metrics.bad.labels("lost")._value.get() == 6
        await BadEvents(None, keys, settings, metrics, quotas).keep("a", "s", {}, rejected)
        assert metrics.bad.labels("lost")._value.get() == 9
        async with Async.from_url(single.url) as client:
            kept = BadEvents(client, keys, settings, metrics, quotas)
            for n in range(500):
                kept.later("a", rejected, kept.keep("a", "s", {"n": n}, rejected))
            await kept.close()
            done = metrics.bad.labels("kept")._value.get()
            assert 0 < done < 1500
            assert done + metrics.bad.labels("lost")._value.get() == 1509
            for n in range(500):
                await kept.keep("a", "s", {"n": n}, rejected)
            assert await client.xlen(keys.bad) == 300

    asyncio.run(run())


# the sums hold


def test_received_is_accepted_and_rejected_and_duplicate(
    single: Server, redis: Redis, tmp_path: Path, prefix: str
) -> None:
    """A storm of batches from several senders to two API processes, with retries of batches that were answered."""
    accounts, rounds = [f"storm-{n}" for n in range(6)], 25
    with ApiProcess(single.url, tmp_path, prefix=prefix, processes=2, outbox_high=100_000, outbox_max=100_000) as api:

        def sender(seed: int) -> Counter[str]:
            rng = random.Random(seed)
            tally: Counter[str] = Counter()
            with httpx.Client(base_url=api.base, trust_env=False, timeout=20) as client:
                for _ in range(rounds):
                    # Ids from a small range, so that senders tell each other's events again.
                    account, events = rng.choice(accounts), [some_event(rng) for _ in range(rng.randrange(30))]
                    body = {"session": f"s{rng.randrange(3)}", "events": events}
                    for _ in range(rng.choice((1, 1, 2, 3))):
                        answer = client.post("/v1/events", headers={"Authorization": f"Bearer {player(account)}", "Connection": rng.choice(("close", "keep-alive"))}, json=body)  # fmt: skip
                        assert answer.status_code == 202, answer.text
                        said = answer.json()
                        tally.update(
                            received=len(events),
                            accepted=said["accepted"],
                            duplicate=said["duplicates"],
                            rejected=len(said["rejected"]),
                        )
                        assert said["accepted"] + said["duplicates"] + len(said["rejected"]) == len(events)
            return tally

        with ThreadPoolExecutor(6) as pool:
            total: Counter[str] = sum(pool.map(sender, range(6)), Counter())
        assert min(total.values()) > 100
        names = ("accepted", "duplicate", "rejected")
        expected = [total["received"], *(total[name] for name in names)]
        assert sum(expected[1:]) == expected[0]

        def measured() -> list[int]:
            found = counts(api)
            return [
                found["pulsegate_tracking_received_total", ""],
                *(found["pulsegate_tracking_events_total", n] for n in names),
            ]

        wait_for(lambda: measured() == expected, f"metrics say {expected}, not {measured()}")
        assert counts(api)["pulsegate_bad_events_total", "kept"] == total["rejected"]
    stored = [event for account in accounts for event in outbox(redis, account, prefix=prefix)]
    assert len(stored) == total["accepted"]
    ids = [(event["account"], event["event_id"]) for event in stored if "event_id" in event]
    assert len(ids) == len(set(ids))
    assert redis.xlen(Keys(prefix, PARTITIONS).bad) == total["rejected"]


def some_event(rng: random.Random) -> Any:
    kind = rng.choice([*FIELDS, "mine", "Other", "evict"])
    event: dict[str, Any] = {"type": kind, "n": rng.random()}
    if rng.random() < 0.4:
        event["id"] = f"i{rng.randrange(200)}"
    if rng.random() < 0.4:
        event["seq"] = rng.randrange(50)
    if rng.random() < 0.2:
        event["position"] = rng.choice([1.5, -1, "x", None])
    return rng.choice([7, None, [event]]) if rng.random() < 0.05 else event


# the documents


def test_every_event_type_is_in_the_vocabulary() -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    for kind, fields in FIELDS.items():
        (row,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
        for field in msgspec.structs.fields(fields):
            assert f"`{field.encode_name}`" in row, (kind, field.encode_name)
    for kind in OWN_TYPES:
        assert re.search(rf"^\| `{kind}` \|", text, re.MULTILINE), kind


class TestNumbers:
    """Marks of numbered events: a bit each."""

    def tell(self, world: World, *numbers: int, series: str = "s") -> list[int]:
        bodies = [("x", "", b'"account":"a","data":%d}' % n, tracking.numbered(series, n)) for n in numbers]
        return world.run(world.decisions.track("a", bodies)).flags

    def test_each_once_in_any_order_of_any_series(self, world: World) -> None:
        order = [0, 1, 3, 2, 511, 512, 513, 7, 8, 1_000_000, 2**26 - 1, 2**26, 2**40]
        assert self.tell(world, *order) == [1] * len(order)
        assert self.tell(world, *reversed(order)) == [0] * len(order)
        assert self.tell(world, 4, 510, 4) == [1, 1, 0]
        assert self.tell(world, *order, series="t") == [1] * len(order)

    def test_known_for_a_day_and_forgotten_after_two(self, world: World) -> None:
        assert self.tell(world, 5) == [1]
        world.wait(86_400)
        assert self.tell(world, 5, 6) == [0, 1]
        world.wait(86_400)
        assert self.tell(world, 6, 5) == [0, 1]

    def test_a_full_outbox_remembers_nothing(self, world: World) -> None:
        with pytest.raises(Overloaded):
            self.crowded(world)
        assert self.tell(world, 1) == [1]

    def crowded(self, world: World) -> None:
        told(world, *({"type": "x", "id": str(n)} for n in range(3)))
        bodies = [("x", "", b'"account":"a","data":1}', tracking.numbered("s", 1))]
        keys, args = tracking.Told(triples=tracking.triple(*bodies[0])).call(
            world.keys.account("a"), ("", "a", Settings().tuning()), 1
        )
        tracking.fate(world.run(world.executor.run(scripts.load("track"), keys, args)))

    def test_erased_with_the_account(self, world: World) -> None:
        self.tell(world, 1, 2)
        keys = world.keys.account("a")
        args = (world.now, "a", Settings().tuning())
        world.run(
            world.executor.run(
                scripts.load("erase"), (keys.leases, keys.deadlines, keys.outbox, keys.takeovers, keys.seen), args
            )
        )
        assert self.tell(world, 1, 2) == [1, 1]

    def test_a_thousand_reports_cost_less_than_a_session(self, world: World) -> None:
        self.tell(world, *range(1_000))

        async def size() -> int:
            found = [key async for key in world.client.scan_iter(match=f"{world.keys.account('a').seen}*")]
            return sum([int(await world.client.memory_usage(key) or 0) for key in found])

        if not isinstance(world.client, FakeAsyncRedis):
            assert world.run(size()) < 500
