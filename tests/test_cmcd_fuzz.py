"""Hostile CMCD: whatever comes between good lines, no answer is a 5xx and no good line is lost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from engine.cmcd.parser import LINES_MAX, of_request, parse_body
from engine.embedded import Server
from engine.keys import Keys
from engine.partitions import partition_of
from tests.harness import PARTITIONS
from tests.servers import ApiProcess, player
from tests.test_cmcd import CAPTURED, WIRE

PREFIX = "cmcd-fuzz"
REAL = [text.encode() for text in (WIRE, *CAPTURED)]
_accounts = itertools.count(1)

keys = st.sampled_from(
    ["e", "sta", "sid", "cid", "sn", "ts", "v", "br", "bl", "pt", "pr", "ec", "su", "bg", "com.example-x"]
) | st.text("abz-_.*019 ", min_size=1, max_size=8)
values = (
    st.integers().map(str) | st.floats().map(str) | st.text(max_size=20)
    | st.text(max_size=20).map(lambda text: f'"{text}"') | st.text("()\";=, ab1", max_size=20)
)  # fmt: skip
members = st.tuples(keys, values).map("=".join) | keys
made = st.lists(members, max_size=12).map(lambda parts: ",".join(parts).encode(errors="surrogatepass"))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A real report with some bytes replaced, cut out, doubled, or put in."""
    line = bytearray(draw(st.sampled_from(REAL)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(line)))
        to = min(len(line), at + draw(st.integers(0, 8)))
        line[at:to] = draw(
            st.binary(max_size=6) | st.sampled_from([b'"', b"(", b")", b",", b"=", b"\\", b";", bytes(line[at:to]) * 2])
        )
    return bytes(line)


garbage = st.lists(made | mutated() | st.binary(max_size=60), max_size=8).map(
    lambda lines: [part for line in lines for part in line.split(b"\n")]
)


def good(number: int) -> bytes:
    return f'cid="film",e=ps,sid="good",sn={number},sta=p,ts=1800000000000,v=2'.encode()


def between(noise: list[bytes]) -> bytes:
    """The noise, with a good line before and after each of it."""
    lines = [good(0)]
    for number, part in enumerate(noise, 1):
        lines += [part, good(number)]
    return b"\n".join(lines)


FUZZ = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@given(garbage)
@example([b"\xff\xfe", b'sid="', b"\r", b"\x00", b"v=3"])
@FUZZ
def test_no_noise_costs_a_good_line(noise: list[bytes]) -> None:
    parsed = parse_body(between(noise))
    wanted = [good(number) for number in range(len(noise) + 1)]
    assert [raw for report in parsed.reports if (raw := report.raw.encode()) in wanted] == wanted
    assert len(parsed.reports) + len(parsed.bad) + parsed.newer <= 2 * len(noise) + 1
    for report in parsed.reports:
        # JSON for every reader, and ids that Redis keys and envelopes may hold.
        assert json.loads(orjson.dumps(report.keys)) == report.keys
        sid, cid = report.text("sid"), report.text("cid")
        assert 1 <= len(sid) <= 64
        assert sid.isprintable()
        assert len(cid) <= 128
        assert cid.isprintable()


@given(made | mutated())
@FUZZ
def test_request_mode_reads_or_leaves_it(text: bytes) -> None:
    keys = of_request(text.decode(errors="surrogateescape"))
    assert json.loads(orjson.dumps(keys)) == keys


@given(st.binary(max_size=2000))
@FUZZ
def test_any_bytes_are_accounted_for(body: bytes) -> None:
    parsed = parse_body(body)
    assert len(parsed.reports) + len(parsed.bad) + parsed.newer <= LINES_MAX


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    room = {"outbox_high": 1_000_000, "outbox_max": 1_000_000}
    with ApiProcess(single.url, tmp_path_factory.mktemp("fuzz"), prefix=PREFIX, **room) as process:
        yield process


@given(garbage, st.sampled_from(["application/cmcd", "text/plain", ""]))
@settings(FUZZ, max_examples=150)
def test_no_body_makes_the_collector_fail_or_lose(
    api: ApiProcess, single: Server, noise: list[bytes], kind: str
) -> None:
    account = f"fuzz-{next(_accounts)}"
    asked = {"token": player(account), "kind": "vod"}
    answer = api.post("/v1/cmcd", params=asked, content=between(noise), headers={"content-type": kind} if kind else {})
    assert answer.status_code == 204, answer.text
    events = outbox(single, account)
    told = [event["data"]["raw"].encode() for event in events if event["type"] == "cmcd"]
    wanted = [good(number) for number in range(len(noise) + 1)]
    assert sorted(raw for raw in told if raw in wanted) == sorted(wanted)
    assert "good" in [event["session"] for event in events if event["type"] == "heartbeat"]


def outbox(server: Server, account: str) -> list[dict[str, Any]]:
    key = Keys(PREFIX, PARTITIONS).outbox(partition_of(account, PARTITIONS))
    with Redis.from_url(server.url) as client:
        found: Any = client.xrange(key)
    events = [json.loads(fields[b"e"]) for _, fields in found]
    return [event for event in events if event["account"] == account]
