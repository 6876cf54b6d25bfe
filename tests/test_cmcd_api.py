"""`POST /v1/cmcd` and what comes with it, against real API processes: answers, evidence at the edge, clients."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from engine import bad
from engine.embedded import VOLATILE, Server
from engine.errors import ConfigError
from engine.keys import Keys
from engine.partitions import partition_of
from engine.places import Places
from engine.settings import Settings
from engine.visitors import address_of
from tests import mmdb
from tests.harness import PARTITIONS, World
from tests.servers import ApiProcess, player, service, wait_for

ROUTE = "/v1/cmcd"
PREFIX = "cmcd"
ORIGIN = "https://player.example"
AGENT = "Mozilla/5.0 (X11; Linux) TestPlayer/1.0"
_accounts = itertools.count(1)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    directory = tmp_path_factory.mktemp("cmcd")
    places = mmdb.write(directory / "places.mmdb", {
        "203.0.113.0/24": {"country": {"iso_code": "PT"}, "traits": {"autonomous_system_number": 2860, "autonomous_system_organization": "NOS"}},
        "127.0.0.0/8": {"country": {"iso_code": "XL"}},
    })  # fmt: skip
    with ApiProcess(
        single.url,
        directory,
        prefix=PREFIX,
        geoip_file=places,
        proxies=1,
        cmcd_body_max_bytes=100_000,
        log_level="debug",
    ) as process:
        yield process


@pytest.fixture
def account() -> str:
    return f"ann-{next(_accounts)}"


@pytest.fixture
def redis(single: Server) -> Iterator[Redis]:
    with Redis.from_url(single.url) as client:
        yield client


def line(sn: int = 0, session: str = "s1", e: str = "ps", sta: str = "p", **more: Any) -> str:
    keys = {
        "cid": '"film"',
        "e": e,
        "sid": f'"{session}"',
        "sn": sn,
        "sta": sta,
        "ts": 1_800_000_000_000 + sn,
        "v": 2,
    } | more
    return ",".join(f"{key}={value}" for key, value in sorted(keys.items()))


def post(
    api: ApiProcess,
    token: str,
    *lines: str,
    content_type: str = "application/cmcd",
    headers: dict[str, str] | None = None,
    **query: str,
) -> httpx.Response:
    said = {"content-type": content_type, "user-agent": AGENT} | (headers or {})
    if not content_type:
        del said["content-type"]
    asked = ({"token": token} if token else {}) | {"kind": "vod"} | query
    return api.post(ROUTE, params=asked, content="\n".join(lines).encode(), headers=said)


def refused(answer: httpx.Response, status: int, code: str, field: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["code"], error.get("field")) == (code, field)


def outbox(redis: Redis, account: str, *types: str, prefix: str = PREFIX) -> list[dict[str, Any]]:
    key = Keys(prefix, PARTITIONS).outbox(partition_of(account, PARTITIONS))
    found: Any = redis.xrange(key)
    events = [json.loads(fields[b"e"]) for _, fields in found]
    return [event for event in events if event["account"] == account and (not types or event["type"] in types)]


def count(api: ApiProcess, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(api.get("/metrics").text)
    samples = [
        s for family in families for s in family.samples if s.name == name and labels.items() <= s.labels.items()
    ]
    return sum(sample.value for sample in samples)


# answers


@pytest.mark.parametrize(
    "kind", ["application/cmcd", "text/cmcd", "application/cmcd+text", "text/plain;charset=UTF-8", "Text/CMCD", ""]
)
def test_content_types(api: ApiProcess, redis: Redis, account: str, kind: str) -> None:
    answer = post(api, player(account), line(), content_type=kind)
    assert (answer.status_code, answer.content) == (204, b"")
    assert len(outbox(redis, account, "cmcd")) == 1


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/html", "cmcd"])
def test_other_content_types_are_named(api: ApiProcess, redis: Redis, account: str, kind: str) -> None:
    refused(post(api, player(account), line(), content_type=kind), 400, "invalid", "content-type")
    assert outbox(redis, account) == []


def test_the_token_rides_in_query_or_header(api: ApiProcess, redis: Redis, account: str) -> None:
    assert post(api, player(account), line(0)).status_code == 204
    assert post(api, "", line(1), headers={"authorization": f"Bearer {player(account)}"}).status_code == 204
    assert len(outbox(redis, account, "cmcd")) == 2
    refused(post(api, "", line(2)), 401, "token_missing", "authorization")


def test_who_should_fall_silent_and_who_never_was_one_of_ours(api: ApiProcess, account: str) -> None:
    now = time.time()
    refused(post(api, player(account, ttl_s=60, now=now - 3600), line()), 410, "token_expired", "authorization")
    refused(post(api, player(account)[:-3] + "abc", line()), 401, "token_invalid", "authorization")
    refused(post(api, "nonsense", line()), 401, "token_invalid", "authorization")
    revoked = player(account, jti="gone-1")
    assert post(api, revoked, line(0)).status_code == 204
    assert api.post("/v1/tokens/revoke", token=service("admin"), content='{"jti": "gone-1"}').status_code == 204
    refused(post(api, revoked, line(1)), 410, "token_revoked", "authorization")
    refused(post(api, service("read"), line(), account=account), 403, "scope", "authorization")


def test_a_token_within_its_grace_keeps_a_session_but_starts_none(api: ApiProcess, redis: Redis, account: str) -> None:
    post(api, player(account, device="tv"), line(0))
    late = player(account, device="tv", ttl_s=60, now=time.time() - 120)
    assert post(api, late, line(1, e="t")).status_code == 204
    assert post(api, late, line(0, session="s2")).status_code == 204
    assert [(s["session"], s["seq"]) for s in api.sessions(account)] == [("s1", 1)]
    assert len(outbox(redis, account, "cmcd")) == 3


@pytest.mark.parametrize(
    ("query", "field"),
    [({"kind": "film"}, "kind"), ({"device": "a\x07"}, "device"), ({"target": "x" * 129}, "target"), ({"evidence": "maybe"}, "evidence"),
     ({"provider": "\u200b"}, "provider")],
)  # fmt: skip
def test_bad_queries_name_their_field(
    api: ApiProcess, redis: Redis, account: str, query: dict[str, str], field: str
) -> None:
    refused(post(api, player(account), line(), **query), 400, "invalid", field)
    assert outbox(redis, account) == []


def test_a_token_reaches_no_other_account_device_or_profile(api: ApiProcess, account: str) -> None:
    token = player(account, device="tv", profiles=["kids"])
    refused(post(api, token, line(), account="other"), 403, "other_account", "account")
    refused(post(api, token, line(), device="phone"), 403, "other_device", "device")
    refused(post(api, token, line(), profile="adult"), 403, "other_profile", "profile")
    assert post(api, token, line(), device="tv", profile="kids", account=account).status_code == 204
    (session,) = api.sessions(account)
    assert (session["device"], session["profile"]) == ("tv", "kids")


def test_bodies_are_limited(api: ApiProcess, redis: Redis, account: str) -> None:
    refused(post(api, player(account), "x" * 100_001), 413, "too_large", "body")
    refused(post(api, player(account), *["e=t"] * 501), 400, "invalid", "body")
    assert outbox(redis, account) == []
    assert post(api, player(account)).status_code == 204


def test_collection_can_be_switched_off(single: Server, tmp_path: Path, prefix: str, account: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, cmcd="false") as off:
        refused(post(off, player(account), line()), 410, "cmcd_off")
        refused(post(off, "", line(), content_type="text/html"), 410, "cmcd_off")


def test_browsers_may_post_from_other_origins(single: Server, tmp_path: Path, prefix: str, account: str) -> None:
    asked = {
        "origin": ORIGIN,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    with ApiProcess(single.url, tmp_path, prefix=prefix, cors_origins=ORIGIN) as api:
        preflight = api.request("OPTIONS", ROUTE, params={"token": "x"}, headers=asked)
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == ORIGIN
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
        for token, status in ((player(account), 204), ("nonsense", 401), (player(account, ttl_s=60, now=0), 410)):
            answer = post(api, token, line(), headers={"origin": ORIGIN})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        stranger = api.request("OPTIONS", ROUTE, headers=asked | {"origin": "https://elsewhere.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_tokens_are_in_no_log(api: ApiProcess, account: str) -> None:
    token = player(account)
    post(api, token, line())
    post(api, token, line(), content_type="text/html")
    wait_for(lambda: "content-type must be" in api.said(), "the refusal is logged")
    assert token not in api.said()


# what becomes of reports


def test_a_bad_line_costs_the_others_nothing_and_is_kept(api: ApiProcess, redis: Redis, account: str) -> None:
    fates = ("accepted", "duplicate", "newer", "syntax", "sid")
    before = {fate: count(api, "pulsegate_cmcd_reports_total", fate=fate) for fate in fates}
    dropped = count(api, "pulsegate_cmcd_dropped_keys_total", key="br")
    lines = [line(0), 'sid="unclosed', line(0), "e=t,sn=4", "v=3,sid=x", line(1, br="fast"), ""]
    assert post(api, player(account), *lines, device="tv").status_code == 204
    assert [e["data"]["keys"]["sn"] for e in outbox(redis, account, "cmcd")] == [0, 1]
    found = {fate: count(api, "pulsegate_cmcd_reports_total", fate=fate) - before[fate] for fate in fates}
    assert found == {"accepted": 2, "duplicate": 1, "newer": 1, "syntax": 1, "sid": 1}
    assert count(api, "pulsegate_cmcd_dropped_keys_total", key="br") == dropped + 1
    kept = list(bad.find(redis, Keys(PREFIX, PARTITIONS), account=account))
    assert [(entry.reason, entry.event, entry.envelope["device"]) for entry in kept] == [
        ("cmcd_syntax", b'sid="unclosed', "tv"), ("cmcd_sid", b"e=t,sn=4", "tv"),
    ]  # fmt: skip
    assert kept[0].message.startswith("line 2: ")


def test_a_backend_may_pass_reports_on_but_they_are_no_evidence(api: ApiProcess, redis: Redis, account: str) -> None:
    refused(post(api, service("signals"), line()), 400, "invalid", "account")
    assert post(api, service("signals"), line(), account=account).status_code == 204
    assert len(outbox(redis, account, "cmcd")) == 1
    assert api.sessions(account) == []


def test_an_app_that_sends_heartbeats_itself(api: ApiProcess, redis: Redis, account: str) -> None:
    """Their positions count, whatever numbers the reports have: by what the URL says, or because its heartbeats are seen."""
    token = player(account)
    assert post(api, token, line(0), evidence="no").status_code == 204
    assert api.sessions(account) == []
    api.beat(token, "s1", "tv", seq=0, position=10.0)
    for sn in range(1, 5):
        assert post(api, token, line(sn, e="t")).status_code == 204
    assert api.beat(token, "s1", "tv", seq=1, position=11.0)["duplicate"] is False
    assert [(s["device"], s["position"]) for s in api.sessions(account)] == [("tv", 11.0)]
    assert {e["view"] for e in outbox(redis, account, "cmcd")} == {0, 1}


def test_redis_away_or_too_much_waiting_says_when_to_come_again(tmp_path: Path, prefix: str, account: str) -> None:
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    try:
        with ApiProcess(server.url, tmp_path, prefix=prefix, spool_dir=tmp_path / "spool", outbox_high=10) as api:
            token = player(account, device="tv")
            for sn in range(12):
                last = post(api, token, line(sn))
            refused(last, 429, "overloaded")
            assert int(last.headers["retry-after"]) > 0
            assert [s["seq"] for s in api.sessions(account)] == [11]
            server.stop()
            away = post(api, token, line(12, e="t"))
            refused(away, 503, "unavailable")
            assert int(away.headers["retry-after"]) > 0
            assert wait_for(lambda: count(api, "pulsegate_spooled_heartbeats_total", fate="kept"), "it is spooled") == 1
    finally:
        server.stop()


# the edge


def ask(api: ApiProcess, token: str, uri: str = "/vod/film/1.m4s", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.get("/v1/edge/authorize", token=token, headers={"X-Original-URI": uri} | named)


def test_a_stock_player_alone_is_counted_and_a_second_device_is_refused(
    api: ApiProcess, redis: Redis, account: str
) -> None:
    """The view's end by time-out is in test_cmcd.py, with a clock that can be moved."""
    tv, phone = (player(account, device=device, max_streams=1) for device in ("tv", "phone"))
    assert post(api, tv, line(0, sta="s"), line(1)).status_code == 204
    (session,) = api.sessions(account)
    assert (session["session"], session["device"], session["content"], session["state"], session["origin"]) == (
        "s1", "tv", "film", "playing", "player",
    )  # fmt: skip
    assert ask(api, tv).status_code == 204
    answer = ask(api, phone)
    assert (answer.status_code, answer.headers["x-pulsegate-reason"]) == (403, "limit_reached")
    # The refused player's reports are taken, and give it no place.
    assert post(api, phone, line(0, session="s2")).status_code == 204
    assert [s["session"] for s in api.sessions(account)] == ["s1"]
    assert ask(api, phone).status_code == 403
    assert post(api, tv, line(2, sta="q")).status_code == 204
    assert ask(api, phone).status_code == 204
    assert len(outbox(redis, account, "view_end")) == 1


CMCD = 'cid="film",ot=v,sid="s1",br=4200'


@pytest.mark.parametrize("how", ["query", "headers"])
def test_request_mode_at_the_edge(api: ApiProcess, redis: Redis, account: str, how: str) -> None:
    """`cid` names the content where the path does not, `sid` the session where the token does not."""
    token = player(account)
    post(api, token, line(0))
    before = len(outbox(redis, account, "evidence"))
    if how == "query":
        answer = ask(api, token, f"/other/1.m4s?CMCD={quote(CMCD)}")
    else:
        answer = ask(api, token, "/other/1.m4s", CMCD_Session='cid="film",sid="s1"', CMCD_Object="br=4200,ot=v")
    assert answer.status_code == 204
    (event,) = outbox(redis, account, "evidence")[before:]
    assert (event["session"], event["content"]) == ("s1", "film")
    assert event["data"] == {"evidence": "segment", "cmcd": {"cid": "film", "ot": "v", "sid": "s1", "br": [4200]}}
    assert len(api.sessions(account)) == 1


def test_token_and_path_win_over_what_the_player_writes(api: ApiProcess, redis: Redis, account: str) -> None:
    tv, phone = (player(account, device=device, max_streams=1) for device in ("tv", "phone"))
    post(api, tv, line(0))
    # A session's name in the URL is no way round the limit.
    assert ask(api, phone, f"/vod/film/1.m4s?CMCD={quote(CMCD)}").status_code == 403
    ask(api, tv, f"/vod/path/1.m4s?CMCD={quote(CMCD)}")
    assert outbox(redis, account, "evidence")[-1]["content"] == "path"
    named = player(account, sid="of-the-token")
    ask(api, named, f"/vod/film/1.m4s?CMCD={quote(CMCD)}")
    assert outbox(redis, account, "evidence")[-1]["session"] != "s1"


@pytest.mark.parametrize("said", ['sid="', "v=9,sid=x", "%00", "\udcff", "x" * 9000, 'cid="' + "y" * 129 + '"'])
def test_cmcd_that_cannot_be_read_stops_no_request(api: ApiProcess, redis: Redis, account: str, said: str) -> None:
    assert ask(api, player(account), f"/vod/film/1.m4s?CMCD={quote(said, errors='surrogateescape')}").status_code == 204
    assert outbox(redis, account, "evidence")[-1]["data"] == {"evidence": "segment"}


# clients


def clients(redis: Redis, account: str, at_least: int = 1) -> list[dict[str, Any]]:
    return wait_for(
        lambda: found if len(found := outbox(redis, account, "client")) >= at_least else [], "the client is told of"
    )


def test_a_session_is_told_of_once_with_what_its_request_says(api: ApiProcess, redis: Redis, account: str) -> None:
    token = player(account, device="tv")
    forwarded = {"x-forwarded-for": "198.51.100.7, 203.0.113.9"}
    for sn in range(3):
        post(api, token, line(sn), headers=forwarded)
    (event,) = clients(redis, account)
    assert event["data"] == {"user_agent": AGENT, "country": "PT", "asn": "AS2860 NOS"}
    assert (event["session"], event["device"], event["content"], event["view"]) == ("s1", "tv", "film", 1)
    body = {"session": "s2", "device": "tv", "content": "film", "kind": "vod", "position": 1.0, "state": "playing"}
    for seq in range(3):
        api.post(
            "/v1/heartbeats",
            token=token,
            content=json.dumps(body | {"seq": seq}),
            headers=forwarded | {"user-agent": "Other\t" + "x" * 600},
        )
    event = clients(redis, account, 2)[1]
    assert event["data"] == {"user_agent": ("Other " + "x" * 600)[:512], "country": "PT", "asn": "AS2860 NOS"}
    # The address is nowhere.
    assert "203.0.113.9" not in json.dumps(outbox(redis, account)) + api.said()
    assert len(outbox(redis, account, "client")) == 2


def test_each_process_tells_what_it_sees_once(
    single: Server, tmp_path: Path, redis: Redis, prefix: str, account: str
) -> None:
    for session in ("s1", "s2"):
        with ApiProcess(single.url, tmp_path, prefix=prefix) as api:
            for each in {"s1", session}:
                api.post("/v1/heartbeats", token=player(account), headers={"user-agent": AGENT}, content=json.dumps(
                    {"session": each, "device": each, "content": "film", "kind": "live", "state": "playing", "seq": 0}))  # fmt: skip
    found = outbox(redis, account, "client", prefix=prefix)
    assert sorted(event["session"] for event in found) == ["s1", "s1", "s2"]
    # Without database files only the user agent is known.
    assert found[0]["data"] == {"user_agent": AGENT}


def test_a_refused_stream_has_no_client(api: ApiProcess, redis: Redis, account: str) -> None:
    token = player(account, max_streams=1)
    assert api.beat(token, "s1", "tv")["decision"] == "allow"
    assert api.beat(token, "s2", "phone")["decision"] == "block"
    assert [event["session"] for event in clients(redis, account)] == ["s1"]
    assert api.beat(token, "s1", "tv")["decision"] == "allow"
    assert [event["session"] for event in outbox(redis, account, "client")] == ["s1"]


def test_visitors_are_forgotten_and_bounded(prefix: str) -> None:
    from engine.visitors import Visitors

    now = [1000.0]
    scope = {"headers": [(b"user-agent", b"x")], "client": ("192.0.2.1", 1)}
    allow = {"decision": "allow", "degraded": False}

    async def see(visitors: Visitors, session: str, **said: Any) -> None:
        visitors.beat(scope, "a", session, allow | said)
        await visitors.close()

    with World("fake", prefix) as world:
        visitors = Visitors(
            world.executor, world.keys, world.settings, Places([]), 3, lambda: now[0], lambda: world.now
        )
        world.run(see(visitors, "refused", decision="block"))
        world.run(see(visitors, "away", degraded=True))
        assert visitors.beating == {}
        for number in range(5):
            world.run(see(visitors, f"s{number}"))
            now[0] += 1
        visitors.forget()
        assert [session for _, session in visitors.beating] == ["s2", "s3", "s4"]
        now[0] = 1003 + 3600
        visitors.forget()
        assert [session for _, session in visitors.beating] == ["s4"]
        # Told again it says the same: nothing is remembered of it for that.
        world.run(see(visitors, "s0"))
        assert [event["session"] for event in world.events("a", "client")] == ["s0", "s1", "s2", "s3", "s4", "s0"]
        assert not world.run(world.client.exists(f"{world.keys.account('a').seen}:{world.now // 86_400_000}"))


def test_a_failure_is_logged_and_never_felt(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    from engine.visitors import Visitors

    async def see(visitors: Visitors, session: str) -> None:
        visitors.beat({"headers": [], "client": None}, "a", session, {"decision": "allow", "degraded": False})
        await visitors.close()

    with World("fake", prefix, outbox_high=10) as world:
        visitors = Visitors(world.executor, world.keys, world.settings, Places([]))
        broken = Visitors(None, world.keys, world.settings, Places([]))  # type: ignore[arg-type]
        world.run(see(broken, "s1"))
        assert [record.message for record in caplog.records] == ["client"]
        for _ in range(12):
            world.beat()
        world.run(see(visitors, "s1"))
        assert world.events("a", "client") == []


@pytest.mark.parametrize(
    ("forwarded", "proxies", "address"),
    [([], 0, "192.0.2.1"), (["203.0.113.9"], 0, "192.0.2.1"), (["203.0.113.9"], 1, "203.0.113.9"), (["6.6.6.6, 203.0.113.9"], 1, "203.0.113.9"),
     (["6.6.6.6", "203.0.113.9, 10.0.0.1"], 2, "203.0.113.9"), (["203.0.113.9"], 5, "203.0.113.9"), ([], 1, "192.0.2.1"),
     (["203.0.113.9:4711"], 1, "203.0.113.9"), (["[2001:db8::1]:4711"], 1, "2001:db8::1"), (["2001:db8::1"], 1, "2001:db8::1"), ([" , ,"], 1, "192.0.2.1")],
)  # fmt: skip
def test_whose_address_it_is(forwarded: list[str], proxies: int, address: str) -> None:
    headers = [(b"x-forwarded-for", value.encode()) for value in forwarded]
    assert address_of(headers, ("192.0.2.1", 1), proxies) == address
    assert address_of([], None, 0) == ""


def test_places(tmp_path: Path) -> None:
    countries = mmdb.write(
        tmp_path / "country.mmdb",
        {"203.0.113.0/24": {"country": {"iso_code": "PT"}}, "198.51.100.0/25": {"country": {"names": {}}}},
    )
    networks = mmdb.write(
        tmp_path / "asn.mmdb",
        {
            "203.0.113.0/25": {"autonomous_system_number": 2860, "autonomous_system_organization": "NOS"},
            "198.51.100.0/25": {"autonomous_system_number": 4_200_000_001},
        },
    )
    both = Places.of(Settings(geoip_file=str(countries), geoip_asn_file=str(networks)))
    found = {
        address: both.find(address)
        for address in (
            "203.0.113.9",
            "203.0.113.200",
            "198.51.100.1",
            "::ffff:203.0.113.9",
            "2001:db8::1",
            "unknown",
            "",
        )
    }
    assert found == {
        "203.0.113.9": ("PT", "AS2860 NOS"), "203.0.113.200": ("PT", ""), "198.51.100.1": ("", "AS4200000001"),
        "::ffff:203.0.113.9": ("PT", "AS2860 NOS"), "2001:db8::1": ("", ""), "unknown": ("", ""), "": ("", ""),
    }  # fmt: skip
    both.close()
    assert Places.of(Settings()).find("203.0.113.9") == ("", "")
    (tmp_path / "none.mmdb").write_text("no database")
    for path in (tmp_path / "none.mmdb", tmp_path / "missing.mmdb"):
        with pytest.raises(ConfigError) as caught:
            Places.of(Settings(geoip_asn_file=str(path)))
        assert caught.value.field == "PULSEGATE_GEOIP_ASN_FILE"
