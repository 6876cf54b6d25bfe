"""Lines of a CDN's log become signals: both formats, every place a part may stand, and any garbage."""

from __future__ import annotations

import contextlib
import hashlib
import json
import string
from datetime import UTC, datetime
from typing import Any

import jwt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.cdnlog.batch import Batch, Entry, encode
from engine.cdnlog.errors import BadLine
from engine.cdnlog.formats import NAMES, parse_time
from engine.cdnlog.options import parse_pairs
from engine.cdnlog.signals import Parser, Rules
from engine.edge_rules import compiled
from engine.errors import ConfigError
from engine.wire import SIGNALS_MAX

SECRET = b"a secret that is long enough for HS256"
COLUMNS = (
    "date time x-edge-location sc-bytes c-ip cs-method cs(Host) cs-uri-stem sc-status cs(Referer) "
    "cs(User-Agent) cs-uri-query cs(Cookie) x-edge-result-type x-edge-request-id"
)
AT = int(datetime(2026, 3, 1, 20, 15, 7, tzinfo=UTC).timestamp() * 1000)


def token(**claims: Any) -> str:
    return jwt.encode({"sub": "ann", "sid": "s-1"} | claims, SECRET, algorithm="HS256")


def w3c(stem: str = "/live/news/seg1.ts", **over: str) -> str:
    """A line in CloudFront's order; `over` replaces columns, dashes and brackets written as underscores."""
    values = {
        "date": "2026-03-01", "time": "20:15:07", "x_edge_location": "FRA56-P1", "sc_bytes": "188000",
        "c_ip": "203.0.113.9", "cs_method": "GET", "cs_Host_": "d111.cloudfront.net", "cs_uri_stem": stem,
        "sc_status": "200", "cs_Referer_": "-", "cs_User_Agent_": "Mozilla/5.0%20(X11)", "cs_uri_query": "-",
        "cs_Cookie_": "-", "x_edge_result_type": "Hit", "x_edge_request_id": "abc==",
    }  # fmt: skip
    return "\t".join((values | over).values())


def parser(columns: str = COLUMNS, **rules: Any) -> Parser:
    return Parser(Rules(**({"secret": SECRET} | rules)), columns.split())


def parsed(line: str, columns: str = COLUMNS, **rules: Any) -> dict[str, Any]:
    signal = parser(columns, **rules).parse(line)
    assert isinstance(signal, dict), signal
    return signal


def reason(line: str, **rules: Any) -> str:
    with pytest.raises(BadLine) as caught:
        parser(**rules).parse(line)
    return caught.value.code


def test_a_cloudfront_line_becomes_a_signal() -> None:
    signal = parsed(w3c(cs_uri_query=f"x=1&token={token(device='tv')}"))
    assert signal.pop("request_id").startswith("log-")
    assert signal == {
        "account": "ann", "device": "tv", "content": "news", "kind": "live", "session": "s-1",
        "evidence": "segment", "at": AT,
    }  # fmt: skip


@pytest.mark.parametrize("stem", ["/vod/film/master.m3u8", "/vod/film/a/b.mpd"])
def test_playlists_are_manifests(stem: str) -> None:
    assert parsed(w3c(stem, cs_uri_query=f"token={token()}"))["evidence"] == "manifest"


def test_the_order_of_fields_may_change_within_a_file() -> None:
    p = parser("")
    assert p.parse("#Version: 1.0") is None
    assert p.parse("#Fields: " + COLUMNS) is None
    first = p.parse(w3c(cs_uri_query=f"token={token()}"))
    assert p.parse("#Fields: sc-status cs-uri-stem cs-method time date cs-uri-query") is None
    second = p.parse(f"206\t/vod/film/1.ts\tGET\t20:15:08\t2026-03-01\ttoken={token()}")
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert (first["content"], second["content"], second["at"]) == ("news", "film", AT + 1000)


def test_an_unreadable_header_forgets_the_order_before_it() -> None:
    p = parser()
    with pytest.raises(BadLine, match="names no fields"):
        p.parse("#Fields:")
    with pytest.raises(BadLine) as caught:
        p.parse(w3c())
    assert caught.value.code == "no_fields"


def test_values_are_decoded_from_the_log_and_then_from_the_url() -> None:
    # CloudFront logs a client's %20 as %2520.
    line = w3c("/vod/le%2520caf%25C3%25A9/1.ts", cs_uri_query="acc=o%2527hara&dev=a+b")
    signal = parsed(line, query={"account": "acc", "device": "dev"})
    assert (signal["content"], signal["account"], signal["device"]) == ("le café", "o'hara", "a b")


@pytest.mark.parametrize("stem", ["//vod//film/1.ts", "/x/../vod/./film/1.ts", "/vod%252Ffilm/1.ts", "/../vod/film/"])
def test_every_spelling_of_a_path_is_the_same_stream(stem: str) -> None:
    signal = parsed(w3c(stem, cs_uri_query=f"token={token()}"))
    assert (signal["kind"], signal["content"]) == ("vod", "film")


def test_ids_that_are_not_utf8_do_not_fall_together() -> None:
    assert reason(w3c("/vod/caf%25E9/1.ts", cs_uri_query=f"token={token()}")) == "bad_content"
    assert (
        reason(w3c(b"/vod/caf\xe9/1.ts".decode(errors="surrogateescape"), cs_uri_query=f"token={token()}"))
        == "bad_content"
    )


def test_newer_logs_give_the_time_in_ms() -> None:
    columns = "timestamp(ms) cs-method sc-status cs-uri-stem cs-uri-query"
    signal = parsed(f"{AT + 123}\tGET\t200\t/live/news/1.ts\ttoken={token()}", columns)
    assert signal["at"] == AT + 123


def test_real_time_logs_have_names_of_their_own() -> None:
    columns = "timestamp sc-status cs-method cs-uri-stem cs-cookie"
    in_query = parsed(f"{AT // 1000}.250\t200\tGET\t/live/news/1.ts?token={token()}\t-", columns)
    in_cookie = parsed(f"{AT // 1000}.250\t200\tGET\t/live/news/1.ts\tpulsegate={token()}", columns)
    assert in_query == in_cookie
    assert in_query["at"] == AT + 250


@pytest.mark.parametrize(
    ("over", "skip"),
    [
        ({"cs_method": "POST"}, "method"),
        ({"cs_method": "HEAD"}, "method"),
        ({"sc_status": "404"}, "status"),
        ({"sc_status": "000"}, "status"),
        ({"cs_uri_stem": "/favicon.ico"}, "path"),
    ],
)
def test_what_is_no_sign_of_a_stream_is_skipped(over: dict[str, str], skip: str) -> None:
    assert parser().parse(w3c(**over)) == skip


@pytest.mark.parametrize("status", ["200", "206", "304"])
def test_successful_requests_count(status: str) -> None:
    assert parsed(w3c(sc_status=status, cs_uri_query=f"token={token()}"))["account"] == "ann"


def test_methods_are_configurable() -> None:
    methods = frozenset({"POST"})
    assert parser(methods=methods).parse(w3c()) == "method"
    assert parsed(w3c(cs_method="post", cs_uri_query=f"token={token()}"), methods=methods)["account"] == "ann"


def test_a_poster_with_the_viewers_cookie_is_no_sign_of_a_stream() -> None:
    assert parser().parse(w3c("/posters/film.jpg", cs_Cookie_=f"pulsegate={token()}")) == "path"


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"date": "2026-02-30"}, "bad_time"),
        ({"time": "-"}, "bad_time"),
        ({"date": "1960-01-01"}, "bad_time"),
        ({"sc_status": "OK"}, "bad_status"),
        ({"sc_status": "-"}, "missing_field"),
        ({"cs_uri_query": "-"}, "no_account"),
        ({"cs_uri_query": "token=opaque"}, "no_account"),
        ({"cs_uri_query": "token=a.b.c"}, "bad_token"),
        ({"cs_uri_query": f"token={token()}x"}, "bad_token"),
        ({"cs_uri_query": "token=" + token(sub=["ann"])}, "bad_field"),
        ({"cs_uri_query": "token=" + token(sub="")}, "no_account"),
        ({"cs_uri_query": "token=" + token(sub="a" * 129)}, "bad_account"),
        ({"cs_uri_query": "token=" + token(kind="radio")}, "bad_kind"),
        ({"cs_uri_query": "token=" + "a" * 20_000 + ".b.c"}, "bad_token"),
    ],
)
def test_bad_lines_say_why(over: dict[str, str], why: str) -> None:
    assert reason(w3c(**over)) == why


def test_garbage_is_bad() -> None:
    assert reason("200\tGET") == "field_count"
    assert reason("{") == "bad_json"
    assert reason("{}") == "missing_field"
    assert reason('{"a": ' * 5000) == "bad_json"


def test_blank_lines_and_directives_are_nothing() -> None:
    assert [parser().parse(line) for line in ("", "  \r", "#Version: 1.0", "#", "\ufeff#Software: x")] == [None] * 5


def test_a_token_may_ride_in_the_path_a_cookie_or_the_query() -> None:
    ann, ben = token(), token(sub="ben")
    assert parsed(w3c(f"/t/{ann}/live/news/1.ts"))["account"] == "ann"
    assert parsed(w3c(cs_Cookie_=f'a=b;%20pulsegate="{ann}"'))["account"] == "ann"
    # The edge looks in the same order.
    assert parsed(w3c(f"/t/{ben}/live/news/1.ts", cs_Cookie_=f"pulsegate={ann}"))["account"] == "ann"
    assert parsed(w3c(cs_uri_query=f"jwt={ann}"), query={"token": "jwt"})["account"] == "ann"


def test_the_first_of_a_repeated_argument_or_cookie_counts() -> None:
    query = {"account": "acc", "device": "dev"}
    assert parsed(w3c(cs_uri_query="acc=ann&acc=ben&dev=tv"), query=query)["account"] == "ann"
    cookies = f"pulsegate=;%20pulsegate={token()};%20pulsegate={token(sub='ben')}"
    assert parsed(w3c(cs_Cookie_=cookies))["account"] == "ann"


def test_one_token_is_one_device() -> None:
    shown = token()
    assert (
        parsed(w3c(cs_uri_query=f"token={shown}"))["device"]
        == "token:" + hashlib.sha256(shown.encode()).hexdigest()[:16]
    )
    opaque = parsed(w3c(cs_uri_query="token=opaque&acc=ann"), query={"token": "token", "account": "acc"})
    assert opaque["device"] == "token:" + hashlib.sha256(b"opaque").hexdigest()[:16]
    assert reason(w3c(cs_uri_query="acc=ann"), query={"account": "acc"}) == "no_device"


def test_claims_win_over_what_the_viewer_can_write() -> None:
    shown = token(device="tv", content="film", kind="vod", jti="j")
    line = w3c("/live/news/1.ts", cs_uri_query=f"token={shown}&acc=ben&dev=phone&ses=x")
    signal = parsed(line, query={"token": "token", "account": "acc", "device": "dev", "session": "ses"})
    assert [signal[n] for n in ("account", "device", "content", "kind", "session")] == [
        "ann",
        "tv",
        "film",
        "vod",
        "s-1",
    ]
    assert parsed(w3c(cs_uri_query=f"token={token(sid=None, jti='j')}"))["session"] == "j"


def test_tokens_are_read_only_if_verified_or_trusted() -> None:
    forged = jwt.encode({"sub": "ann"}, b"another secret, long enough for HS256", algorithm="HS256")
    line = w3c(cs_uri_query=f"token={forged}")
    assert reason(line) == "bad_token"
    assert reason(line, secret=None) == "token_unverified"
    assert parsed(line, secret=None, trust_tokens=True)["account"] == "ann"
    assert reason(line, trust_tokens=True) == "bad_token"
    unsigned = jwt.encode({"sub": "ann"}, None, algorithm="none")
    assert reason(w3c(cs_uri_query=f"token={unsigned}")) == "bad_token"


def test_an_expired_token_still_tells_who_watched() -> None:
    assert parsed(w3c(cs_uri_query=f"token={token(exp=1, nbf=2**40, aud='x')}"))["account"] == "ann"


def test_a_path_of_ones_own() -> None:
    path = compiled(
        "--path",
        r"^/(?P<account>\w+)/(?P<device>\w+)/(?P<session>\w+)/(?P<kind>\w+)/",
        groups=NAMES,
    )
    signal = parsed(w3c("/ann/tv/s9/vod/1.ts"), path=path)
    assert [signal.get(n) for n in ("account", "device", "session", "kind", "content")] == [
        "ann",
        "tv",
        "s9",
        "vod",
        None,
    ]
    # As at the edge, a kind that is none of ours is left out.
    assert "kind" not in parsed(w3c("/ann/tv/s9/radio/1.ts"), path=path)


MAPPING = {
    "time": "ts", "path": "request.uri", "method": "request.method", "status": "status",
    "account": "claims.sub", "device": "claims.dev", "session": "sid.with.dots",
}  # fmt: skip


def record(**over: Any) -> str:
    base = {
        "ts": AT / 1000, "request": {"uri": "https://cdn.example/vod/film/1.m3u8?x=1", "method": "GET"},
        "status": 200, "claims": {"sub": "ann", "dev": 7}, "sid.with.dots": "s",
    }  # fmt: skip
    return json.dumps(base | over)


def test_json_lines_by_mapping() -> None:
    signal = parsed(record(), mapping=MAPPING)
    del signal["request_id"]
    assert signal == {
        "account": "ann", "device": "7", "content": "film", "kind": "vod", "session": "s",
        "evidence": "manifest", "at": AT,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("over", "why"),
    [
        ({"ts": None}, "missing_field"),
        ({"ts": True}, "bad_time"),
        ({"ts": "yesterday"}, "bad_time"),
        ({"ts": 1e300}, "bad_time"),
        ({"status": "2xx"}, "bad_status"),
        ({"status": [200]}, "bad_field"),
        ({"request": "GET /"}, "missing_field"),
        ({"claims": {"sub": "ann", "dev": {}}}, "bad_field"),
        ({"claims": {"sub": "a\nb", "dev": "tv"}}, "bad_account"),
        ({"claims": None}, "no_account"),
    ],
)
def test_bad_json_lines_say_why(over: dict[str, Any], why: str) -> None:
    assert reason(record(**over), mapping=MAPPING) == why


def test_other_evidence_than_requests_for_media() -> None:
    mapping = {"time": "t", "account": "a", "device": "d", "content": "c", "evidence": "e"}
    line = json.dumps({"t": AT, "a": "ann", "d": "tv", "c": "film", "e": "licence"})
    assert parsed(line, mapping=mapping, ttl_s=90.0)["evidence"] == "licence"
    assert parsed(line, mapping=mapping, ttl_s=90.0)["ttl_s"] == 90.0
    assert parsed(line, mapping=mapping, evidence="token")["evidence"] == "token"
    assert reason(line.replace("licence", "rumour"), mapping=mapping) == "bad_evidence"


def test_cloudfronts_json_needs_no_mapping() -> None:
    line = json.dumps(
        dict(zip(COLUMNS.split(), w3c(cs_uri_query=f"token={token()}").split("\t"), strict=True)) | {"x": {"y": 1}}
    )
    assert parsed(line, "") | {"request_id": ""} == parsed(w3c(cs_uri_query=f"token={token()}")) | {"request_id": ""}


@pytest.mark.parametrize(
    "value",
    [
        AT, AT / 1000, str(AT), f"{AT // 1000}.0", "2026-03-01T20:15:07Z", "2026-03-01T21:15:07+01:00",
        "2026-03-01 20:15:07", "2026-03-01T20:15:07.000",
    ],
)  # fmt: skip
def test_times(value: object) -> None:
    assert parse_time(value) == AT


def entry(n: int = 0, at: int = AT, **over: Any) -> Entry:
    signal = {"account": "ann", "device": "tv", "content": f"c{n}", "evidence": "segment", "at": at} | over
    return Entry(signal, n, "")


def test_like_signals_are_coalesced_to_the_newest() -> None:
    batch = Batch(5000)
    start = AT // 5000 * 5000
    outcomes = [batch.add(entry(at=start + s * 1000)) for s in (1, 3, 2, 5, 9)]
    assert outcomes == ["new", "like", "like", "new", "like"]
    assert [e.signal["at"] - start for e in batch.take()] == [3000, 9000]
    assert len(batch) == 0


def test_only_like_signals_are_coalesced() -> None:
    batch = Batch(5000)
    for other in (
        {},
        {"account": "ben"},
        {"device": "tablet"},
        {"content": "x"},
        {"evidence": "manifest"},
        {"session": "s"},
    ):
        assert batch.add(entry(**other)) == "new"
    unlike = Batch(0)
    assert [unlike.add(entry()), unlike.add(entry())] == ["new", "new"]


def test_a_batch_is_taken_oldest_first() -> None:
    batch = Batch(5000)
    for n, at in ((1, AT + 60_000), (2, AT), (3, AT + 30_000)):
        batch.add(entry(n, at))
    assert [e.number for e in batch.take()] == [2, 3, 1]


def test_a_batch_fits_the_servers_limits() -> None:
    small = Batch(5000)
    while small.add(entry(len(small))) == "new":
        pass
    assert len(small) == SIGNALS_MAX
    assert small.add(entry(0)) == "like", "one that adds nothing always fits"

    large = Batch(5000)
    while large.add(entry(len(large), account="é" * 128, device="\U0001f600" * 128)) == "new":
        pass
    body = encode(large.take())
    assert 59_000 < len(body) <= 60_000
    assert large.add(entry()) == "new"


def test_the_same_line_gives_the_same_request_id() -> None:
    line = w3c(cs_uri_query=f"token={token()}")
    assert parsed(line)["request_id"] == parsed(line)["request_id"]
    assert parsed(line)["request_id"] != parsed(line.replace("20:15:07", "20:15:08"))["request_id"]


def test_options_are_refused_by_name() -> None:
    for option, build in (
        ("--path", lambda: compiled("--path", "(", ())),
        ("--path", lambda: compiled("--path", "(?P<colour>.)", ("token",))),
        ("--map", lambda: parse_pairs("--map", ["colour=red"], ("account",))),
        ("--query", lambda: parse_pairs("--query", ["account"], ("account",))),
    ):
        with pytest.raises(ConfigError) as caught:
            build()  # type: ignore[no-untyped-call]
        assert caught.value.field == option
        assert option in caught.value.message


GOOD = w3c(cs_uri_query=f"token={token()}")
_cell = st.one_of(
    st.sampled_from(
        [
            "-",
            "GET",
            "200",
            "/live/news/1.ts",
            "/t/a.b.c/vod/x/1.mpd",
            "token=a.b.c",
            "2026-03-01",
            "%",
            "%25E9",
        ]
    ),
    st.text(max_size=30),
)
_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(["ts", "request", "status", "claims", "sid.with.dots", "uri", "method", "sub", "dev"])
_lines = st.one_of(
    st.text(max_size=200),
    st.binary(max_size=200).map(lambda raw: raw.decode(errors="surrogateescape")),
    st.lists(_cell, min_size=15, max_size=15).map("\t".join),
    st.dictionaries(_keys, _values | st.dictionaries(_keys, _values, max_size=3), max_size=6).map(json.dumps),
    st.builds(lambda at, junk: GOOD[:at] + junk + GOOD[at:], st.integers(0, len(GOOD)), st.text(max_size=3)),
    st.builds(
        lambda at, c: GOOD[:at] + c + GOOD[at + 1 :],
        st.integers(0, len(GOOD) - 1),
        st.sampled_from(string.printable),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_lines, max_size=8), st.sampled_from([{}, MAPPING]), st.booleans())
@example([json.dumps({"ts": "1" * 5000})], MAPPING, True)
@example(['{"ts": ' + "9" * 5000 + "}", "\ud800", "#Fields: \ud800"], MAPPING, True)
def test_no_line_raises_anything_but_bad_line(lines: list[str], mapping: dict[str, str], trust: bool) -> None:
    p = parser(mapping=mapping, secret=None if trust else SECRET, trust_tokens=trust)
    batch = Batch(5000)
    for number, line in enumerate(lines):
        with contextlib.suppress(BadLine):
            found = p.parse(line)
            if isinstance(found, dict):
                batch.add(Entry(found, number, line))
        # A good line beside a bad one survives, as long as no header changed the order.
        p.columns = tuple(COLUMNS.split())
        assert isinstance(p.parse(GOOD), dict)
    if entries := batch.take():
        assert json.loads(encode(entries)) == [e.signal for e in entries]
