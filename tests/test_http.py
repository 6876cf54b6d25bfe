"""The API as a caller meets it: refusals that name the field, limits, beacons, request ids, CORS, logs, metrics."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from engine.embedded import VOLATILE, Server
from engine.keys import Keys
from engine.partitions import partition_of
from engine.settings import Settings
from engine.wire import EVENTS_MAX, ID_MAX, NESTING_MAX, OWN_TYPES, SIGNALS_MAX
from tests.conftest import tool
from tests.harness import PARTITIONS
from tests.servers import ROOT, ApiProcess, player, service, wait_for

PREFIX = "http"
LIMIT = Settings().body_max_bytes
ORIGIN = "https://player.example"
PLAYER_ROUTES = [
    ("POST", "/v1/heartbeats"), ("GET", "/v1/check"), ("POST", "/v1/sessions/s/stop"), ("DELETE", "/v1/sessions/s"),
    ("POST", "/v1/sessions/s/takeover"), ("GET", "/v1/accounts/a/sessions"), ("GET", "/v1/trending"), ("GET", "/v1/trending/stream"),
    ("GET", "/v1/contents/c/audience"),
]  # fmt: skip

_accounts = itertools.count(1)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix=PREFIX, log_level="debug") as process:
        yield process


@pytest.fixture
def account() -> str:
    return f"account-{next(_accounts)}"


@pytest.fixture
def events(single: Server, account: str) -> Iterator[Callable[..., list[bytes]]]:
    """The JSON of the account's events so far, as it lies in the outbox."""
    with Redis.from_url(single.url) as client:

        def read(*types: str) -> list[bytes]:
            key = Keys(PREFIX, PARTITIONS).outbox(partition_of(account, PARTITIONS))
            said = [fields[b"e"] for _, fields in client.xrange(key)]
            mine = [(text, json.loads(text)) for text in said]
            return [text for text, e in mine if e["account"] == account and (not types or e["type"] in types)]

        yield read


def beat(**fields: Any) -> dict[str, Any]:
    """A good heartbeat; None leaves a field out."""
    said = {
        "session": "s1", "device": "d1", "content": "film", "kind": "vod", "position": 1.5, "state": "playing", "seq": 0,
    }  # fmt: skip
    return {name: value for name, value in (said | fields).items() if value is not None}


def a_signal(account: str, /, **fields: Any) -> dict[str, Any]:
    said = {"account": account, "device": "d1", "content": "film", "kind": "vod", "evidence": "segment"}
    return {name: value for name, value in (said | fields).items() if value is not None}


def refused(answer: httpx.Response, status: int, field: str, code: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["field"] == field, error
    assert error["message"]
    assert code in (None, error["code"]), error


# refusals

LONG = "x" * (ID_MAX + 1)
BAD_BEATS: list[tuple[dict[str, Any], str]] = [
    *(({name: None}, name) for name in ("session", "device", "content", "kind", "position", "state", "seq")),
    *(({name: LONG}, name) for name in ("session", "device", "content", "profile", "device_type", "provider")),
    *(({name: ""}, name) for name in ("session", "device", "content", "profile")),
    *(({name: "a\nb"}, name) for name in ("session", "device", "content", "profile", "device_type", "provider")),
    ({"session": "a\x00"}, "session"), ({"session": "\x7f"}, "session"), ({"session": "a\u202eb"}, "session"),
    ({"session": 7}, "session"), ({"kind": "radio"}, "kind"), ({"state": "dancing"}, "state"),
    ({"seq": -1}, "seq"), ({"seq": 10**14}, "seq"), ({"seq": "0"}, "seq"), ({"seq": True}, "seq"), ({"seq": 1.5}, "seq"),
    ({"position": -0.001}, "position"), ({"position": 1e9}, "position"), ({"position": "1"}, "position"),
    ({"duration": -1}, "duration"), ({"rate": -1}, "rate"), ({"rate": 17}, "rate"), ({"title": "x" * 513}, "title"),
    ({"events": {}}, "events"), ({"events": [{"type": "custom"}] * (EVENTS_MAX + 1)}, "events"),
    ({"events": [{"type": "custom"}, 1]}, "events[1]"), ({"events": [{}]}, "events[0].type"),
    ({"events": [{"type": "Custom"}]}, "events[0].type"), ({"events": [{"type": "custom\n"}]}, "events[0].type"),
    ({"events": [{"type": "x" * 65}]}, "events[0].type"), ({"events": [{"type": "custom", "at": -1}]}, "events[0].at"),
    *(({"events": [{"type": name}]}, "events[0].type") for name in sorted(OWN_TYPES)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "field"), BAD_BEATS, ids=lambda value: str(value)[:40])
def test_a_bad_heartbeat_names_its_field(api: ApiProcess, fields: dict[str, Any], field: str) -> None:
    refused(api.post("/v1/heartbeats", token=player("bad"), content=json.dumps(beat(**fields))), 400, field, "invalid")


TEXT = json.dumps(beat(x="@"))
BAD_JSON = [
    (b"", "body"), (b"   ", "body"), (b"{", "body"), (b"[]", "body"), (b"1", "body"), (b"null", "body"), (b'"x"', "body"),
    (b"\xef\xbb\xbf" + TEXT.encode(), "body"), (TEXT.encode() + b"x", "body"), (TEXT.encode("utf-16"), "body"),
    (TEXT.replace("@", "\\ud800").encode(), "body"), (TEXT.replace("@", "\\udc00\\ud800").encode(), "body"),
    (TEXT.replace("film", "\\ud800").encode(), "body"), (TEXT.encode().replace(b"@", b"\xff"), "body"),
    (TEXT.encode().replace(b"@", b"\xed\xa0\x80"), "body"), (TEXT.encode().replace(b"@", b"\xc0\xaf"), "body"),
    (TEXT.encode().replace(b"@", b"a\nb"), "body"), (TEXT.encode().replace(b"@", b"\x00"), "body"),
    *((TEXT.replace('"@"', number).encode(), "body") for number in ("NaN", "Infinity", "-Infinity", "1e999", "01", "9" * 400)),
    *((TEXT.replace("1.5", number).encode(), "body") for number in ("NaN", "-Infinity")), (TEXT.replace("1.5", "1e999").encode(), "position"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "field"), BAD_JSON, ids=lambda value: repr(value)[-40:])
def test_what_is_not_json_is_refused(api: ApiProcess, account: str, body: bytes, field: str, events: Any) -> None:
    refused(api.post("/v1/heartbeats", token=player(account), content=body), 400, field)
    assert events() == []


def test_every_other_call_names_the_field_too(api: ApiProcess) -> None:
    mine, signals, admin = player("bad"), service("signals"), service("admin")

    def sent(method: str, path: str, token: str, body: Any = None) -> httpx.Response:
        return api.request(method, path, token=token, content=None if body is None else json.dumps(body))

    for query, field in (
        ("", "content"), ("content=&device=d", "content"), ("content=f", "device"), (f"content={LONG}&device=d", "content"),
        ("content=f&device=d&kind=radio", "kind"), (f"content=f&device={LONG}", "device"), ("content=f&device=%0A", "device"),
        (f"content=f&device=d&session={LONG}", "session"), ("content=f&device=d&provider=%E2%80%AE", "provider"),
    ):  # fmt: skip
        refused(sent("GET", f"/v1/check?{query}", mine), 400, field)
    for path in (
        f"/v1/sessions/{LONG}/stop",
        "/v1/sessions/%0A/stop",
        "/v1/sessions//stop",
        "/v1/sessions/%FF%00/stop",
    ):
        refused(sent("POST", path, mine), 400, "session")
    for body, field in (
        ({"seq": "x"}, "seq"),
        ({"request_id": LONG}, "request_id"),
        ([], "body"),
        ({"token": "\n"}, "token"),
    ):
        refused(sent("POST", "/v1/sessions/s/stop", mine, body), 400, field)
        refused(sent("DELETE", "/v1/sessions/s", mine, body), 400, field)
    refused(sent("DELETE", f"/v1/sessions/{LONG}", mine), 400, "session")
    refused(sent("POST", "/v1/sessions/s/stop", admin), 400, "account")
    for body, field in (({}, "stop"), ({"stop": ""}, "stop"), ({"stop": "x", "kind": "radio"}, "kind"), ("x", "body")):
        refused(sent("POST", "/v1/sessions/s/takeover", mine, body), 400, field)
    refused(sent("POST", "/v1/sessions/s/takeover", mine, {"stop": "oldest"}), 409, "session", "unknown_session")
    for changed, field in (
        ({"account": None}, "account"), ({"device": None}, "device"), ({"evidence": "rumour"}, "evidence"), ({"ttl_s": 0}, "ttl_s"),
        ({"at": -1}, "at"), ({"content": "\x01"}, "content"), ({"max_streams": 1001}, "max_streams"), ({"kind": "radio"}, "kind"),
    ):  # fmt: skip
        bad = a_signal("bad", **changed)
        refused(sent("POST", "/v1/signals", signals, bad), 400, field)
        refused(sent("POST", "/v1/signals", signals, [a_signal("bad"), bad]), 400, f"[1].{field}")
    refused(sent("POST", "/v1/signals", signals, [1]), 400, "[0]")
    refused(sent("POST", "/v1/signals", signals, [{}] * (SIGNALS_MAX + 1)), 400, "body")
    refused(sent("POST", "/v1/signals", signals), 400, "body")
    refused(sent("POST", "/v1/tokens/revoke", admin, {}), 400, "jti")
    refused(sent("POST", "/v1/tokens/revoke", admin, {"jti": "x", "expires_at": "soon"}), 400, "expires_at")
    refused(sent("GET", f"/v1/accounts/{LONG}/sessions", service("read")), 400, "account")
    for path in ("/v1/heartbeats/", "/v1", "/healthz/", "/v1/sessions/s/pause"):
        refused(sent("GET", path, mine), 404, "path", "not_found")
    for method, path, allowed in (("GET", "/v1/heartbeats", "POST"), ("PUT", "/v1/check", "GET, HEAD"), ("GET", "/v1/sessions/s", "DELETE")):  # fmt: skip
        answer = sent(method, path, mine)
        refused(answer, 405, "method", "method_not_allowed")
        assert sorted(answer.headers["allow"].split(", ")) == sorted(allowed.split(", "))


def test_a_takeover_of_a_session_that_does_not_run(api: ApiProcess, account: str) -> None:
    token = player(account, max_streams=1)
    api.beat(token, "s1", "d1")
    assert api.beat(token, "s2", "d2")["decision"] == "block"
    answer = api.post("/v1/sessions/s2/takeover", token=token, content='{"stop": "s9"}')
    refused(answer, 404, "stop", "unknown_session")


def test_another_account_is_out_of_reach(api: ApiProcess, account: str) -> None:
    api.beat(player(account), "s1", "d1")
    other, asked = player("other"), f"/v1/accounts/{account}/sessions"
    refused(api.get(asked, token=other), 403, "account", "other_account")
    for path in ("/v1/sessions/s1/stop", "/v1/sessions/s1/takeover"):
        body = json.dumps({"account": account, "stop": "s1"})
        refused(api.post(path, token=other, content=body), 403, "account", "other_account")
    refused(api.get(asked, token=service("signals")), 403, "authorization", "scope")
    refused(api.post("/v1/signals", token=player(account), content="{}"), 403, "authorization", "scope")
    assert api.post("/v1/sessions/s1/stop", token=other).status_code == 204  # a session id is scoped to its account
    assert [item["session"] for item in api.get(asked, token=player(account)).json()["items"]] == ["s1"]


def test_a_token_bound_to_device_and_profiles(api: ApiProcess, account: str) -> None:
    token = player(account, device="d1", profiles=["kids"])
    refused(
        api.post("/v1/heartbeats", token=token, content=json.dumps(beat(device="d2"))), 403, "device", "other_device"
    )
    refused(
        api.post("/v1/heartbeats", token=token, content=json.dumps(beat(profile="adult"))),
        403,
        "profile",
        "other_profile",
    )
    assert (
        api.post("/v1/heartbeats", token=token, content=json.dumps(beat(device=None, profile="kids"))).status_code
        == 200
    )


# limits


def test_ids_of_the_full_length_and_any_script_are_good(api: ApiProcess, account: str) -> None:
    for number, name in enumerate(("x" * ID_MAX, "äöü 漢字 🎬", "a/b", "!~@#$%^&*()")):
        body = beat(session=name, device=f"d{number}", content=name, profile=name)
        answer = api.post("/v1/heartbeats", token=player(account, max_streams=9), content=json.dumps(body))
        assert (answer.status_code, answer.json()["session"]) == (200, name)
        path = httpx.URL(f"/v1/sessions/{httpx.QueryParams({'': name})}".replace("/=", "/") + "/stop")
        assert api.post(str(path).replace("+", "%20"), token=player(account)).status_code == 204
    assert api.sessions(account) == []


def test_a_title_may_hold_what_titles_hold(api: ApiProcess, account: str) -> None:
    body = beat(title="L’été\u00a0: la suite 👩\u200d🚀")
    assert api.post("/v1/heartbeats", token=player(account), content=json.dumps(body)).status_code == 200


def sized(size: int) -> bytes:
    """A good heartbeat of exactly that many bytes."""
    start = json.dumps(beat(x=""))[:-2]
    return (start + "x" * (size - len(start) - 2) + '"}').encode()


@pytest.mark.parametrize("path", ["/v1/heartbeats", "/v1/sessions/s/stop", "/v1/sessions/s/takeover", "/v1/signals", "/v1/tokens/revoke"])  # fmt: skip
def test_a_large_body_is_refused_before_it_is_parsed(api: ApiProcess, path: str) -> None:
    token = service("signals", "admin") if path in ("/v1/signals", "/v1/tokens/revoke") else player("large")
    halves = [b"x" * (LIMIT // 2), b"x" * (LIMIT // 2), b"x"]
    refused(api.post(path, token=token, content=b"x" * (LIMIT + 1)), 413, "body", "too_large")
    refused(api.post(path, token=token, content=iter(halves)), 413, "body", "too_large")
    assert api.post(path, token=token, content=b"x" * LIMIT).json()["error"]["code"] == "invalid_json"
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=5)
    connection.putrequest("POST", path)
    connection.putheader("Authorization", f"Bearer {token}")
    connection.putheader("Content-Length", str(10**12))
    connection.endheaders()  # and not a byte of body
    assert connection.getresponse().status == 413
    connection.close()


def test_the_largest_body_and_the_most_events_are_good(api: ApiProcess, account: str) -> None:
    token = player(account)
    assert api.post("/v1/heartbeats", token=token, content=sized(LIMIT)).status_code == 200
    assert api.post("/v1/heartbeats", token=token, content=sized(LIMIT + 1)).status_code == 413
    full = beat(seq=1, events=[{"type": "custom", "n": n} for n in range(EVENTS_MAX)])
    assert api.post("/v1/heartbeats", token=token, content=json.dumps(full)).status_code == 200


def test_a_body_cut_short_does_nothing(api: ApiProcess, account: str, events: Any) -> None:
    api.beat(player(account), "s1", "d1")
    before = events()
    head = f"POST /v1/sessions/s1/stop HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {player(account)}\r\nContent-Length: 9\r\n\r\n "
    with socket.create_connection(("127.0.0.1", api.port)) as connection:
        connection.sendall(head.encode())
    assert [item["session"] for item in api.sessions(account)] == ["s1"]
    assert events() == before


def nested(depth: int) -> bytes:
    return json.dumps(beat(x="@")).replace('"@"', "[" * (depth - 1) + "]" * (depth - 1)).encode()


def test_nesting_is_bounded(api: ApiProcess, account: str) -> None:
    token = player(account)
    assert api.post("/v1/heartbeats", token=token, content=nested(NESTING_MAX)).status_code == 200
    refused(api.post("/v1/heartbeats", token=token, content=nested(NESTING_MAX + 1)), 400, "body", "too_deep")
    refused(api.post("/v1/heartbeats", token=token, content=b"[" * LIMIT), 400, "body", "too_deep")
    flat = json.dumps(beat(seq=1, x=[[] for _ in range(5_000)], y="[" * 5_000)).encode()
    assert api.post("/v1/heartbeats", token=token, content=flat).status_code == 200


def test_a_hostile_body_costs_no_more_than_its_length(api: ApiProcess) -> None:
    body = b"[" * NESTING_MAX + b'"' + b'\\"' * (LIMIT // 2 - NESTING_MAX)
    started = time.monotonic()
    assert api.post("/v1/heartbeats", token=player("hostile"), content=body).status_code == 400
    assert time.monotonic() - started < 1


# what is kept


def test_unknown_fields_are_kept_byte_for_byte(api: ApiProcess, account: str, events: Any) -> None:
    strange = '{ "x" : 1.50e+2 ,"y":[1 ,\t{"\\u00e9":null}],"big":12345678901234567890,"x":"again","é":"\\/"}'
    event = f'{{"type": "ad_start","at":1800000000000, "more":{strange}}}'
    body = json.dumps(beat(events="@", quality="@")).replace('"@"', f"[{event}]", 1).replace('"@"', strange)
    assert api.post("/v1/heartbeats", token=player(account), content=body.encode()).status_code == 200
    (heard,), (own,) = events("heartbeat"), events("ad_start")
    assert heard.endswith(b',"data":' + body.encode() + b"}")
    assert own.endswith(b',"data":' + event.encode() + b"}")
    said = (
        f'{{"evidence":"segment", "account":"{account}","device":"d1","content":"film","kind":"vod" ,"cdn":{strange}}}'
    )
    for body in (said, f"[ {said}\n]"):
        assert api.post("/v1/signals", token=service("signals"), content=body.encode()).status_code == 200
        assert events("evidence")[-1].endswith(b',"data":' + said.encode() + b"}")


def test_no_cache_may_keep_a_decision(api: ApiProcess, account: str) -> None:
    for path in ("/v1/check?content=f&device=d", f"/v1/accounts/{account}/sessions", "/readyz"):
        assert api.get(path, token=player(account)).headers["cache-control"] == "no-store"


def test_of_a_key_given_twice_the_last_counts(api: ApiProcess, account: str, events: Any) -> None:
    body = json.dumps(beat())[:-1] + ', "session": "s2", "events": [{"type": "block", "type": "custom"}]}'
    assert api.post("/v1/heartbeats", token=player(account), content=body).json()["session"] == "s2"
    assert [json.loads(text)["session"] for text in events("heartbeat", "custom")] == ["s2", "s2"]
    twice = json.dumps(beat())[:-1] + ', "events": [{"type": "custom", "type": "block"}]}'
    refused(api.post("/v1/heartbeats", token=player(account), content=twice), 400, "events[0].type")


def test_a_list_with_one_bad_signal_writes_nothing(api: ApiProcess, account: str, events: Any) -> None:
    good, bad = a_signal(account), a_signal(account, device="d\n")
    refused(api.post("/v1/signals", token=service("signals"), content=json.dumps([good, good, bad])), 400, "[2].device")
    assert events() == []
    assert api.sessions(account) == []
    answer = api.post(
        "/v1/signals", token=service("signals"), content=json.dumps([good, a_signal(account, content="other")])
    )
    assert [item["decision"] for item in answer.json()] == ["allow", "allow"]
    assert api.post("/v1/signals", token=service("signals"), content="[]").json() == []


# stopping, taking over, repeating


def test_a_beacon_stops_with_its_token_in_body_or_query(api: ApiProcess, account: str) -> None:
    token, plain = player(account), {"Content-Type": "text/plain;charset=UTF-8"}
    ways: list[tuple[str, str | None]] = [
        ("/v1/sessions/s1/stop", json.dumps({"token": token})), (f"/v1/sessions/s1/stop?token={token}", None),
        (f"/v1/sessions/s1/stop?x=1&token={token}", "{}"), (f"/v1/sessions/s1/stop?token={token}", " \n"),
    ]  # fmt: skip
    for path, body in ways:
        api.beat(token, "s1", "d1")
        assert [item["session"] for item in api.sessions(account)] == ["s1"]
        assert api.post(path, headers=plain, content=body).status_code == 204
        assert api.sessions(account) == []
    refused(api.post("/v1/sessions/s1/stop"), 401, "authorization", "token_missing")
    refused(api.post("/v1/sessions/s1/stop?token=", content='{"token": ""}'), 401, "authorization", "token_missing")
    refused(api.post("/v1/sessions/s1/stop?token=x"), 401, "authorization", "token_invalid")
    # Only there: elsewhere a token in the query would end up in other people's logs.
    refused(api.get(f"/v1/check?content=f&device=d&token={token}"), 401, "authorization", "token_missing")


def test_a_repeated_stop_does_not_stop_what_started_since(api: ApiProcess, account: str) -> None:
    token, stop = player(account), json.dumps({"request_id": "r1"})
    api.beat(token, "s1", "d1")
    for _ in range(2):
        assert api.post("/v1/sessions/s1/stop", token=token, content=stop).status_code == 204
        assert api.sessions(account) == []
    api.beat(token, "s1", "d1")
    assert api.post("/v1/sessions/s1/stop", token=token, content=stop).status_code == 204
    assert [item["session"] for item in api.sessions(account)] == ["s1"]
    assert api.request("DELETE", "/v1/sessions/s1", token=token, content='{"request_id": "r2"}').status_code == 204
    assert api.sessions(account) == []


def test_a_repeated_takeover_does_not_take_again(api: ApiProcess, account: str) -> None:
    token, ask = player(account, max_streams=1), json.dumps({"stop": "oldest", "request_id": "r1"})
    api.beat(token, "s1", "d1")
    assert api.beat(token, "s2", "d2")["reason"] == "limit_reached"
    first = api.post("/v1/sessions/s2/takeover", token=token, content=ask).json()
    assert (first["decision"], [item["session"] for item in api.sessions(account)]) == ("allow", ["s2"])
    back = api.post("/v1/sessions/s1/takeover", token=token, content='{"stop": "s2"}').json()
    assert (back["decision"], [item["session"] for item in api.sessions(account)]) == ("allow", ["s1"])
    assert api.post("/v1/sessions/s2/takeover", token=token, content=ask).json() == first
    assert [item["session"] for item in api.sessions(account)] == ["s1"]


def test_a_repeated_signal_counts_once(api: ApiProcess, account: str, events: Any) -> None:
    said = json.dumps(a_signal(account, request_id="r1"))
    first = api.post("/v1/signals", token=service("signals"), content=said).json()
    assert api.post("/v1/signals", token=service("signals"), content=f"[{said}, {said}]").json() == [first, first]
    assert len(events("evidence")) == 1


# CORS


def test_every_answer_of_a_player_route_may_be_read_across_origins(api: ApiProcess) -> None:
    for method, path in PLAYER_ROUTES:
        preflight = api.request("OPTIONS", path, headers={"Origin": ORIGIN, "Access-Control-Request-Method": method})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "*"
        assert preflight.headers["access-control-max-age"] == "7200"
        assert method in preflight.headers["access-control-allow-methods"]
        assert {"authorization", "content-type", "x-request-id"} <= set(
            preflight.headers["access-control-allow-headers"].lower().split(", ")
        )
        for token in ("", "wrong", player("cors"), service("read")):
            answer = api.request(method, path, token=token, headers={"Origin": ORIGIN})
            assert answer.headers["access-control-allow-origin"] == "*", (path, answer.status_code)
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
    good = api.post("/v1/heartbeats", token=player("cors"), headers={"Origin": ORIGIN}, content=json.dumps(beat()))
    assert (good.status_code, good.headers["access-control-allow-origin"]) == (200, "*")
    gone = api.get("/v1/sessions/nothing/at/all", headers={"Origin": ORIGIN})
    assert (gone.status_code, gone.headers["access-control-allow-origin"]) == (404, "*")
    for path in ("/v1/signals", "/metrics", "/v1/tokens/revoke"):
        assert "access-control-allow-origin" not in api.get(path, headers={"Origin": ORIGIN}).headers


def test_only_the_allowed_origins(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, cors_origins=f"{ORIGIN},https://tv.example") as api:
        for origin, allowed in (
            (ORIGIN, True),
            ("https://tv.example", True),
            ("https://evil.example", False),
            ("null", False),
        ):
            for method, path in (("OPTIONS", "/v1/heartbeats"), ("POST", "/v1/heartbeats"), ("GET", "/v1/check")):
                answer = api.request(method, path, headers={"Origin": origin})
                assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
                assert answer.headers.get("vary") == "Origin"


# seen from outside


def test_request_ids(api: ApiProcess) -> None:
    good, token = json.dumps(beat()), player("ids")
    for method, path in [*PLAYER_ROUTES, ("GET", "/healthz"), ("GET", "/nothing")]:
        answer = api.request(method, path, headers={"X-Request-Id": "abc 123"})
        assert answer.headers["x-request-id"] == "abc 123"
        for bad in ("", "x" * 129, "é"):
            made = api.request(method, path, headers={"X-Request-Id": bad.encode("latin-1")}).headers["x-request-id"]
            assert made not in ("", bad)
    assert (
        api.post("/v1/heartbeats", token=token, content=good, headers={"X-Request-Id": "mine"}).headers["x-request-id"]
        == "mine"
    )
    ids = [api.get("/v1/check").headers["x-request-id"] for _ in range(3)]
    assert len(set(ids)) == 3
    wait_for(
        lambda: all(f'"{name}"' in api.said() for name in ids), "the failures are in the log under the ids answered"
    )


def test_logs_are_json_and_never_hold_a_token(api: ApiProcess, account: str) -> None:
    tokens = [player(account, jti=f"log-{number}") for number in range(8)]
    header, body, query, cookie, uri, path, expired, garbled = tokens
    expired, garbled = player(account, ttl_s=1, now=1_000_000_000), garbled[:-8] + "AAAAAAAA"
    api.beat(header, "s1", "d1")
    api.post("/v1/heartbeats", token=header, content="{")
    api.post("/v1/sessions/s1/stop", content=json.dumps({"token": body}))
    api.post("/v1/sessions/s1/stop", content=json.dumps({"token": body, "seq": "x"}))
    api.post("/v1/sessions/s1/stop", content=json.dumps({"token": [body]}))
    api.post(f"/v1/sessions/s1/stop?token={query}")
    api.get(f"/nothing?token={query}")
    api.get(
        "/v1/edge/authorize", headers={"Cookie": f"pulsegate={cookie}", "X-Original-URI": f"/vod/film/1.ts?token={uri}"}
    )
    api.get("/v1/edge/authorize", headers={"X-Original-URI": f"/t/{path}/vod/film/1.ts?token={uri}"})
    api.get(f"/v1/edge/authorize/t/{path}/vod/film/1.ts")
    for token in (expired, garbled):
        assert api.post("/v1/heartbeats", token=token, content=json.dumps(beat())).status_code == 401
        api.get("/v1/check?content=film", token=token)
    last = api.get("/v1/check", token=header).headers["x-request-id"]
    wait_for(lambda: f'"{last}"' in api.said(), "the last request is in the log")
    lines = [json.loads(line) for line in api.said().splitlines()]
    assert all({"at", "level", "logger", "event"} <= line.keys() for line in lines)
    assert sum("request_id" in line for line in lines if line["logger"] == "pulsegate.requests") >= 10
    for token in (header, body, query, cookie, uri, path, expired, garbled):
        for part in (token, *token.split(".")[1:]):
            assert part not in api.said()


def counted(api: ApiProcess, name: str, **labels: str) -> float:
    """The sum over all series of a metric that carry these labels."""
    families = text_string_to_metric_families(api.get("/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@pytest.mark.parametrize("processes", [1, 2])
def test_metrics_add_up(single: Server, tmp_path: Path, prefix: str, processes: int) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, processes=processes) as api:
        wait_for(lambda: api.get("/readyz").json()["api_processes"] == processes, "all processes are there")
        pids: set[str] = set()
        sent = 0

        def beaten() -> bool:
            """A heartbeat on a connection of its own, until every process has answered some."""
            nonlocal sent
            with httpx.Client(base_url=api.base, trust_env=False) as client:
                pids.add(client.get("/healthz").headers["x-request-id"].split("-")[0])
                token = {"Authorization": f"Bearer {player(f'm{sent % 2}', max_streams=0 if sent % 2 else 2)}"}
                answer = client.post("/v1/heartbeats", headers=token, content=json.dumps(beat(seq=sent)))
            assert answer.status_code == 200
            sent += 1
            return sent >= 20 and sent % 2 == 0 and len(pids) == processes

        wait_for(beaten, "every process has answered", every_s=0)
        route = {"route": "/v1/heartbeats", "status": "200"}
        wait_for(lambda: counted(api, "pulsegate_requests_total", **route) == sent, "all heartbeats are counted")
        assert counted(api, "pulsegate_decisions_total", outcome="allow") == sent / 2
        assert (
            counted(api, "pulsegate_decisions_total", outcome="block", reason="limit_reached", rule="streams")
            == sent / 2
        )
        assert counted(api, "pulsegate_request_seconds_count", route="/v1/heartbeats") == sent
        assert counted(api, "pulsegate_redis_up") == 1
        assert api.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_metrics_behind_a_token(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, metrics_public="false") as api:
        refused(api.get("/metrics"), 401, "authorization", "token_missing")
        refused(api.get("/metrics", token=player("a")), 403, "authorization", "scope")
        assert api.get("/metrics", token=service("read")).status_code == 200


# when Redis is away, and when there is too much to do


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may pause."""
    server = Server(tmp_path / "valkey", VOLATILE)
    server.start()
    yield server
    os.kill(server.pid, signal.SIGCONT)
    server.stop()


def test_while_redis_is_away_every_answer_is_one_of_the_contract(
    own_server: Server, tmp_path: Path, prefix: str
) -> None:
    with ApiProcess(own_server.url, tmp_path, prefix=prefix) as api:
        token = player("ann", max_streams=1)
        late = player("ann", ttl_s=60, now=time.time() - 100)
        api.beat(token, "s1", "d1")
        assert api.get("/readyz").json() == {
            "ready": True, "redis": "up", "memory": "ok", "plans": "ok", "api_processes": 1
        }  # fmt: skip
        os.kill(own_server.pid, signal.SIGSTOP)
        wait_for(lambda: api.get("/readyz").status_code == 503, "readyz is red")
        # `slow` first: what does not answer in time is given up only when it stays silent.
        wait_for(lambda: api.get("/readyz").json()["redis"] == "down", "and says why")
        assert api.get("/healthz").status_code == 200
        for held in (token, late):
            assert api.beat(held, "s2", "d2")["degraded"] is True
        assert api.get("/v1/check?content=f&device=d9", token=token).json()["degraded"] is True
        assert (
            api.post("/v1/signals", token=service("signals"), content=json.dumps(a_signal("ann"))).json()["degraded"]
            is True
        )
        assert api.get("/v1/edge/authorize", token=token).headers["x-pulsegate-degraded"] == "1"
        calls = [
            ("POST", "/v1/sessions/s1/stop", token, None), ("DELETE", "/v1/sessions/s1", token, None),
            ("POST", "/v1/sessions/s2/takeover", token, '{"stop": "s1"}'), ("GET", "/v1/accounts/ann/sessions", token, None),
            ("POST", "/v1/tokens/revoke", service("admin"), '{"jti": "x"}'),
        ]  # fmt: skip
        for method, path, held, body in calls:
            answer = api.request(method, path, token=held, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable"), path
        os.kill(own_server.pid, signal.SIGCONT)
        wait_for(lambda: api.get("/readyz").status_code == 200, "readyz is green")
        assert wait_for(lambda: not api.beat(token, "s1", "d1")["degraded"], "decisions are real again")


def test_too_many_at_once_are_told_when_to_come_back(own_server: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(own_server.url, tmp_path, prefix=prefix, inflight_max=1, redis_timeout_ms=8000) as api:
        token = player("ann", max_streams=1)
        api.beat(token, "s1", "d1")
        os.kill(own_server.pid, signal.SIGSTOP)
        first: list[dict[str, Any]] = []
        waiting = threading.Thread(target=lambda: first.append(api.beat(token, "s1", "d1")))
        waiting.start()
        with httpx.Client(
            base_url=api.base, trust_env=False, headers={"Authorization": f"Bearer {token}", "Origin": ORIGIN}
        ) as client:

            def turned_away() -> httpx.Response | None:
                answer = client.get("/v1/check?content=f&device=d1", timeout=0.5)
                return answer if answer.status_code == 429 else None

            check = wait_for(turned_away, "429")
            calls = [
                client.post("/v1/heartbeats", content=json.dumps(beat())), client.get("/v1/accounts/ann/sessions"),
                client.post("/v1/sessions/s1/stop"), client.post("/v1/sessions/s1/takeover", content='{"stop": "oldest"}'),
            ]  # fmt: skip
            assert client.get("/v1/edge/authorize").status_code == 204
        for answer in [check, *calls]:
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["access-control-allow-origin"] == "*"
        os.kill(own_server.pid, signal.SIGCONT)
        waiting.join(10)
        assert [said["decision"] for said in first] == ["allow"]
        assert counted(api, "pulsegate_overloaded_total") >= 6


# the guide


def test_the_guides_examples_work(single: Server, tmp_path: Path, prefix: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = [part.split("\n```", 1)[0] for part in text.split("```sh\n")[1:]]
    assert len(blocks) >= 10
    with ApiProcess(single.url, tmp_path, prefix=prefix, ask_wait_s=0) as api:  # no worker answers here
        given = {
            "BASE": api.base,
            "TOKEN": player("ann", max_streams=1),
            "SERVICE": service("signals", "read", "admin"),
        }
        for block in blocks:
            script = f"set -euo pipefail\n{block.replace('curl ', tool('curl') + ' -fsS ')}"
            done = subprocess.run(
                ["bash", "-c", script], env=os.environ | given, capture_output=True, text=True, timeout=30
            )
            assert done.returncode == 0, (block, done.stderr)
