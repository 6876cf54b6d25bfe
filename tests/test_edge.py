"""`GET /v1/edge/authorize` against a real API process: tokens, what counts as evidence, and what it never answers."""

from __future__ import annotations

import itertools
import socket
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.embedded import Server
from tests.servers import ApiProcess, player, service, wait_for

AUTHORIZE = "/v1/edge/authorize"
SEGMENT = "/vod/film/0001.ts"
REASONS = {"x-pulsegate-reason", "x-pulsegate-rule", "x-pulsegate-retry-at"}
_accounts = itertools.count(1)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    directory = tmp_path_factory.mktemp("edge")
    pattern = r"^/(?:t/(?P<token>[^/]+)/)?(?:d/(?P<device>[^/]+)/)?(?P<kind>live|vod)/(?P<content>[^/]+)"
    with ApiProcess(single.url, directory, prefix="edge", edge_uri=pattern) as process:
        yield process


@pytest.fixture
def account() -> str:
    return f"a{next(_accounts)}"


def ask(api: ApiProcess, uri: str = SEGMENT, token: str = "", method: str = "GET", **headers: str) -> httpx.Response:
    """What nginx would ask for a viewer's request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.get(AUTHORIZE, token=token, headers={"X-Original-URI": uri, "X-Original-Method": method} | named)


def status(api: ApiProcess, uri: str = SEGMENT, token: str = "", **more: str) -> tuple[int, str | None]:
    answer = ask(api, uri, token, **more)
    return answer.status_code, answer.headers.get("x-pulsegate-reason")


def devices(api: ApiProcess, account: str) -> list[str]:
    return [session["device"] for session in api.sessions(account)]


# where the token is


def test_a_token_in_header_cookie_query_or_path(api: ApiProcess, account: str) -> None:
    token = player(account)
    assert status(api, token=token) == (204, None)
    assert status(api, Cookie=f"pulsegate={token}") == (204, None)
    assert status(api, f"{SEGMENT}?x=1&token={token}") == (204, None)
    assert status(api, f"/t/{token}{SEGMENT}") == (204, None)
    assert len(api.sessions(account)) == 1


def test_header_before_cookie_before_query_before_path(api: ApiProcess) -> None:
    names = [f"p{next(_accounts)}" for _ in range(4)]
    header, cookie, query, path = (player(name) for name in names)
    uri = f"/t/{path}{SEGMENT}?token={query}"
    for seen, more in (
        (0, {"token": header, "Cookie": f"pulsegate={cookie}"}),
        (1, {"Cookie": f"pulsegate={cookie}"}),
        (2, {}),
    ):
        assert [len(api.sessions(name)) for name in names] == [int(n in range(seen)) for n in range(4)]
        assert ask(api, uri, **more).status_code == 204
    assert [len(api.sessions(name)) for name in names] == [1, 1, 1, 0]
    # A header that carries something else than a bearer token is not ours.
    assert status(api, Authorization="Basic eDp5", Cookie=f"pulsegate={cookie}") == (204, None)


def test_a_cookie_among_neighbours_that_break_the_rules(api: ApiProcess, account: str) -> None:
    token = player(account)
    for cookie in (
        f'prefs={{"a": [1, 2]}}; pulsegate={token}',
        f"a b c; ;=; pulsegate=; pulsegate={token}; z",
        f'x="unclosed; pulsegate="{token}"',
        f"xpulsegate=1; pulsegate2=2;pulsegate={token}",
    ):
        assert status(api, Cookie=cookie) == (204, None), cookie
    assert status(api, Cookie=f"xpulsegate={token}") == (401, "token_missing")


def test_no_token(api: ApiProcess) -> None:
    for answer in (ask(api), ask(api, "/"), ask(api, "/t//vod/film/1.ts"), api.get(AUTHORIZE)):
        assert (answer.status_code, answer.headers["x-pulsegate-reason"]) == (401, "token_missing")
        assert answer.headers["www-authenticate"] == "Bearer"


def test_tokens_that_do_not_hold(api: ApiProcess, account: str) -> None:
    assert status(api, token="x.y.z") == (401, "token_invalid")
    assert status(api, token=player(account) + "x") == (401, "token_invalid")
    assert status(api, token=player(account, nbf=int(time.time()) + 600)) == (401, "token_not_yet_valid")
    assert status(api, token=service("signals")) == (403, "account")
    revoked = player(account, jti=f"j-{account}")
    assert status(api, token=revoked) == (204, None)
    done = api.post("/v1/tokens/revoke", token=service("admin"), json={"jti": f"j-{account}"})
    assert done.status_code == 204
    assert status(api, token=revoked) == (401, "token_revoked")


def test_expired_it_passes_for_ten_minutes_where_its_device_is_admitted(api: ApiProcess, account: str) -> None:
    expired, long_expired = (player(account, device="tv", ttl_s=60, now=time.time() - ago) for ago in (120, 900))
    assert status(api, token=expired) == (401, "token_expired")
    assert status(api, token=player(account, device="tv")) == (204, None)
    assert status(api, token=expired) == (204, None)
    assert status(api, token=long_expired) == (401, "token_expired")
    other = player(account, device="phone", ttl_s=60, now=time.time() - 120)
    assert status(api, token=other) == (401, "token_expired")


def test_an_expired_token_without_a_device_passes_where_it_was_used(api: ApiProcess, account: str) -> None:
    expired = player(account, ttl_s=60, now=time.time() - 120)
    assert status(api, token=expired) == (401, "token_expired")
    assert status(api, f"/d/tv{SEGMENT}", player(account)) == (204, None)
    assert status(api, f"/d/tv{SEGMENT}", expired) == (204, None)
    assert status(api, f"/d/phone{SEGMENT}", expired) == (401, "token_expired")


# who and what


def test_manifest_and_segment(api: ApiProcess, account: str) -> None:
    token = player(account, device="tv", max_streams=1)
    assert status(api, "/vod/film/index.m3u8?x=.ts", token) == (204, None)
    for uri, evidence in (("/vod/film/stream.mpd", "manifest"), ("/vod/film/1.m4s?a=.m3u8", "segment")):
        assert status(api, uri, token) == (204, None)
        refused = api.get(
            "/v1/check", token=player(account, max_streams=1), params={"device": "x", "content": "film", "kind": "vod"}
        ).json()
        assert [conflict["last_evidence"] for conflict in refused["conflicts"]] == [evidence]


def test_the_tokens_claims_win_over_the_uri(api: ApiProcess, account: str) -> None:
    assert status(api, "/d/phone/live/news/1.ts", player(account, device="tv", content="film", kind="vod")) == (
        204,
        None,
    )
    [session] = api.sessions(account)
    assert (session["device"], session["content"], session["kind"]) == ("tv", "film", "vod")


def test_the_uri_says_what_the_token_does_not(api: ApiProcess, account: str) -> None:
    token = player(account)
    assert status(api, "/d/phone/live/caf%C3%A9%20noir/1.ts", token) == (204, None)
    raw = ((b"X-Original-URI", "/d/phone/live/café noir/1.ts".encode()), (b"Authorization", f"Bearer {token}".encode()))
    assert raw_ask(api, *raw) == (204, "")
    [session] = api.sessions(account)
    assert (session["device"], session["content"], session["kind"]) == ("phone", "café noir", "live")


def test_without_a_device_a_token_is_a_device(api: ApiProcess, account: str) -> None:
    first, second = (player(account, max_streams=1, n=n) for n in range(2))
    assert status(api, token=first) == (204, None)
    assert status(api, "/vod/film/0002.ts", first) == (204, None)
    assert status(api, token=second) == (403, "limit_reached")
    [device] = devices(api, account)
    assert device.startswith("token:")
    assert first not in device


def test_what_no_id_can_be_is_refused(api: ApiProcess, account: str) -> None:
    token = player(account)
    for content in ("x" * 129, "a%00b", "a%0Ab", "a%FF"):
        assert status(api, f"/vod/{content}/1.ts", token) == (403, "invalid"), content
    assert status(api, f"/vod/{'x' * 128}/1.ts", token) == (204, None)


def test_head_counts_and_a_preflight_passes(api: ApiProcess, account: str) -> None:
    assert status(api, method="OPTIONS") == (204, None)
    assert status(api, method="HEAD") == (401, "token_missing")
    assert status(api, token=player(account), method="HEAD") == (204, None)
    assert len(api.sessions(account)) == 1


def test_envoy_appends_the_path_keeps_the_method_and_wants_200(api: ApiProcess, account: str) -> None:
    token, other = (player(account, device=device, max_streams=1) for device in ("tv", "phone"))
    for method in ("GET", "HEAD"):
        assert api.request(method, f"{AUTHORIZE}/vod/film%201/1.ts?x=1", token=token).status_code == 200
    assert [session["content"] for session in api.sessions(account)] == ["film 1"]
    assert api.request("OPTIONS", f"{AUTHORIZE}/vod/film/1.ts").status_code == 200
    assert api.request("POST", f"{AUTHORIZE}/vod/film/1.ts").status_code == 401
    assert api.get(f"{AUTHORIZE}/t/{token}/vod/film%201/1.ts").status_code == 200
    assert api.get(f"{AUTHORIZE}/vod/film%201/1.ts?token={other}").status_code == 403
    # Nobody but the proxy may say what was asked for.
    forged = {"X-Original-URI": "/", "X-Original-Method": "OPTIONS"}
    assert api.get(f"{AUTHORIZE}/vod/film/1.ts", token=other, headers=forged).status_code == 403


def test_traefik_and_caddy_use_other_names(api: ApiProcess, account: str) -> None:
    token = player(account)
    forwarded = {"X-Forwarded-Uri": f"{SEGMENT}?token={token}", "X-Forwarded-Method": "GET"}
    assert api.get(AUTHORIZE, headers=forwarded).status_code == 204
    assert [session["content"] for session in api.sessions(account)] == ["film"]


# the decision


def test_a_block_says_why_by_which_rule_and_until_when(api: ApiProcess, account: str) -> None:
    tv, phone = (player(account, device=device, max_streams=1) for device in ("tv", "phone"))
    assert status(api, token=tv) == (204, None)
    refused = ask(api, token=phone)
    assert refused.status_code == 403
    assert refused.headers["x-pulsegate-reason"] == "limit_reached"
    assert refused.headers["x-pulsegate-rule"] == "streams"
    now = time.time() * 1000
    assert now + 20_000 < int(refused.headers["x-pulsegate-retry-at"]) < now + 31_000
    assert refused.content == b""
    assert not REASONS & ask(api, token=tv).headers.keys()


def test_an_evicted_player_is_cut(api: ApiProcess, account: str) -> None:
    tv, phone = (player(account, device=device, plan="oldest") for device in ("tv", "phone"))
    assert api.beat(tv, "s1", "tv")["decision"] == "allow"
    assert api.beat(phone, "s2", "phone")["decision"] == "allow"
    assert status(api, token=tv) == (403, "evicted")
    assert status(api, "/vod/other/1.ts", tv) == (403, "limit_reached")
    assert devices(api, account) == ["phone"]


def test_requests_never_evict(api: ApiProcess, account: str) -> None:
    tv, phone = (player(account, device=device, plan="oldest") for device in ("tv", "phone"))
    assert status(api, token=tv) == (204, None)
    assert status(api, token=phone) == (403, "limit_reached")
    assert devices(api, account) == ["tv"]


def test_a_player_and_its_segments_count_once(api: ApiProcess, account: str) -> None:
    tv = player(account, device="tv", max_streams=1)
    assert status(api, "/vod/film/index.m3u8", tv) == (204, None)
    assert api.beat(tv, "s1", "tv")["decision"] == "allow"
    assert status(api, token=tv) == (204, None)
    assert [session["session"] for session in api.sessions(account)] == ["s1"]
    # Named by its own id the session is found, too, and a token's id is no second stream.
    assert status(api, token=player(account, device="tv", max_streams=1, sid="s1")) == (204, None)
    assert status(api, token=player(account, device="tv", max_streams=1, jti="j1")) == (204, None)
    assert len(api.sessions(account)) == 1
    assert status(api, token=player(account, device="phone", max_streams=1)) == (403, "limit_reached")


def test_a_stop_voids_what_came_before(api: ApiProcess, account: str) -> None:
    tv, phone = (player(account, device=device, max_streams=1) for device in ("tv", "phone"))
    assert api.beat(tv, "s1", "tv")["decision"] == "allow"
    assert status(api, token=tv) == (204, None)
    (running,) = api.sessions(account)
    # Stragglers are let through for as long as the view has lasted, seconds at most.
    wait_for(lambda: time.time() * 1000 > running["started_at"] + 4_000, "the view has lasted for a while")
    assert api.post("/v1/sessions/s1/stop", token=tv).status_code == 204
    assert status(api, token=tv) == (204, None)  # a segment that was under way
    assert devices(api, account) == []
    assert status(api, token=phone) == (204, None)
    assert devices(api, account) == ["phone"]


def test_late_segments_after_a_zap_evict_nobody_and_are_not_refused(api: ApiProcess, account: str) -> None:
    tv, phone = (player(account, device=device, max_streams=2) for device in ("tv", "phone"))
    assert api.beat(tv, "s1", "tv", "news", kind="live")["decision"] == "allow"
    assert status(api, "/live/news/1.ts", tv) == (204, None)
    assert api.beat(phone, "s2", "phone")["decision"] == "allow"
    assert api.beat(tv, "s1", "tv", "sport", kind="live")["decision"] == "allow"
    for number in range(2, 6):
        assert status(api, f"/live/news/{number}.ts", tv) == (204, None)
        assert status(api, f"/live/sport/{number}.ts", tv) == (204, None)
    running = {(session["device"], session["content"]) for session in api.sessions(account)}
    assert running == {("tv", "sport"), ("phone", "film")}
    assert api.beat(tv, "s1", "tv", "sport", kind="live")["decision"] == "allow"
    assert api.beat(phone, "s2", "phone")["decision"] == "allow"


def test_the_next_episodes_first_segments_ride_along(api: ApiProcess, account: str) -> None:
    tv = player(account, device="tv", max_streams=1)
    assert api.beat(tv, "s1", "tv", "episode-1")["decision"] == "allow"
    assert status(api, "/vod/episode-2/1.ts", tv) == (204, None)
    assert [session["content"] for session in api.sessions(account)] == ["episode-1"]
    assert api.beat(tv, "s1", "tv", "episode-2")["decision"] == "allow"
    assert [session["content"] for session in api.sessions(account)] == ["episode-2"]


# what it never answers

QUIET = settings(
    derandomize=True, deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Bytes that may stand in a header: everything but what ends it.
header_bytes = st.binary(max_size=200).map(lambda raw: raw.translate(None, b"\r\n\0").strip(b" \t"))
uri_pieces = st.sampled_from(
    ["/", "//", "..", ".", "%2f", "%2e", "%", "%zz", "%00", "?", "#", "&", "=", "token=", "token=;", "[", "]", "@", ":",
     "vod", "live", "t", "film", "x.m3u8", "é", "\x01", "\x7f", " ", "http:", "eyJ", "a" * 300]
)  # fmt: skip
uris = st.lists(uri_pieces, max_size=12).map(lambda parts: "".join(parts).encode("latin-1"))


def raw_ask(api: ApiProcess, *headers: tuple[bytes, bytes]) -> tuple[int, str]:
    """Sends headers byte for byte; the status and reason of the answer."""
    lines = [b"GET " + AUTHORIZE.encode() + b" HTTP/1.1", b"Host: edge", b"Connection: close"]
    lines += [name + b": " + value for name, value in headers if value]
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(b"\r\n".join([*lines, b"", b""]))
        with connection.makefile("rb") as answer:
            head = answer.read().split(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    found = dict(line.lower().split(": ", 1) for line in head[1:])
    return int(head[0].split()[1]), found.get("x-pulsegate-reason", "")


def fits_http(*values: bytes) -> bool:
    """Whether HTTP allows these bytes in a header; if not, the server refuses the request before it reaches us."""
    return all((byte >= 0x20 and byte != 0x7F) or byte == 0x09 for value in values for byte in value)


@QUIET
@given(uri=st.one_of(uris, header_bytes), cookie=header_bytes, authorization=header_bytes, method=header_bytes)
def test_nonsense_is_refused_and_nothing_else(
    api: ApiProcess, uri: bytes, cookie: bytes, authorization: bytes, method: bytes
) -> None:
    code, reason = raw_ask(
        api, (b"X-Original-URI", uri), (b"Cookie", b"pulsegate=" + cookie), (b"Authorization", authorization),
        (b"X-Original-Method", b"X" + method),
    )  # fmt: skip
    if fits_http(uri, cookie, authorization, method):
        assert code in (401, 403)
        assert reason
    else:
        assert code == 400


@QUIET
@given(uri=st.one_of(uris, header_bytes), cookie=header_bytes)
def test_with_a_good_token_any_uri_is_answered(api: ApiProcess, uri: bytes, cookie: bytes) -> None:
    bearer = b"Bearer " + player("fuzz", device="tv").encode()
    code, reason = raw_ask(api, (b"X-Original-URI", uri), (b"Cookie", cookie), (b"Authorization", bearer))
    if not fits_http(uri, cookie):
        assert code == 400
    else:
        assert (code, reason) in ((204, ""), (403, "invalid")), reason


@QUIET
@given(path=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_path_behind_envoy(api: ApiProcess, path: str) -> None:
    url = f"{AUTHORIZE}/{quote(path).replace('.', '%2E')}"  # the client itself would resolve dots
    assert api.get(url, token=player("fuzz", device="tv")).status_code in (200, 403)
    assert api.get(url).status_code == 401


def bombs() -> list[str]:
    """Tokens whose header is JSON that parsers stumble over."""
    heads = (
        b"[" * 3000,
        b'{"a":' * 1000,
        b'{"alg":"HS256","kid":' + b"9" * 5000 + b"}",
        b'{"alg":["HS256"]}',
        b'"x"',
        b"null",
    )
    return [urlsafe_b64encode(head).rstrip(b"=").decode() + ".e30.x" for head in heads]


def test_a_token_that_upsets_the_parser_is_no_way_in(api: ApiProcess) -> None:
    for token in (*bombs(), "é", "\x80.\x81.\x82", ".", "..", "a.b", "=" * 4000):
        encoded = f"Bearer {token}".encode("latin-1", "replace")
        assert raw_ask(api, (b"X-Original-URI", SEGMENT.encode()), (b"Authorization", encoded)) == (
            401,
            "token_invalid",
        )


def test_nobody_answered_429_or_5xx_and_no_token_was_logged(api: ApiProcess, account: str) -> None:
    """Runs last: what the process counted and said over all the tests above."""
    token = player(account)
    assert status(api, f"/t/{token}{SEGMENT}") == (204, None)
    lines = [line for line in api.get("/metrics").text.splitlines() if line.startswith("pulsegate_requests_total")]
    answered = {line.split('status="')[1][:3] for line in lines if AUTHORIZE in line}
    assert answered <= {"200", "204", "401", "403"}
    assert token not in api.said()
    assert "Traceback" not in api.said()
    assert '"edge_' not in api.said()


def test_a_bad_pattern_stops_the_start(single: Server, tmp_path: Path) -> None:
    process = ApiProcess(single.url, tmp_path, prefix="edge-bad", edge_uri="(")
    try:
        with pytest.raises(AssertionError, match="ended"):
            process.start()
        assert "PULSEGATE_EDGE_URI" in process.said()
        assert process.wait() not in (0, None)
    finally:
        process.close()
