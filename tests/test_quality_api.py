"""`/v1/quality` over HTTP: who may ask, what is refused, what is answered from a lake as the consumer writes it, and what happens when things go."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from engine.embedded import Server
from engine.events import read
from engine.lake import Lake
from engine.partitions import partition_of
from engine.quality.facts import Fact
from tests.harness import PARTITIONS, START
from tests.quality_plain import HOUR, figures, fill, seeded
from tests.servers import ApiProcess, _descendants, player, service, wait_for

READ = service("read")
SPAN = {"from": START - 2 * HOUR, "to": START + 2 * HOUR}


def told(root: Path, account: str, session: str, at: int) -> None:
    """Events of that session, and others', in the lake of events."""
    where = partition_of(account, PARTITIONS)
    written = []
    for n, (type_, who) in enumerate(
        [("view_start", session), ("heartbeat", session), ("heartbeat", "other"), ("cmcd", session)]
    ):
        payload = (
            f'{{"type":"{type_}","at":{at + n},"view":1,"started_at":{at},"account":"{account}","profile":"","device":"d","session":"{who}",'
            f'"content":"film","kind":"vod","v":1,"data":{{"n":{n}}}}}'
        )
        written.append(read(where, f"{START + n}-0", payload.encode()))
    Lake(root, partitions=PARTITIONS).append(written)


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return [f for f in seeded(11, 2_000) if f.fact != "end"]


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory, facts: list[Fact]) -> Iterator[ApiProcess]:
    lake = tmp_path_factory.mktemp("lake")
    fill(lake, facts)
    told(lake, facts[0].account, facts[0].session, facts[0].at)
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix="quality", lake_dir=lake) as process:
        yield process


def items(api: ApiProcess, path: str = "", **params: Any) -> list[dict[str, Any]]:
    answer = api.get(f"/v1/quality{path}", token=READ, params=SPAN | params)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return list(answer.json()["items"])


def test_figures_equal_plain_python(api: ApiProcess, facts: list[Fact]) -> None:
    names = [
        "sessions",
        "startup_time",
        "rebuffer_ratio",
        "bitrate",
        "playback_failure_rate",
        "dropped_frames",
        "score",
    ]
    (item,) = items(api, metrics=",".join(names))
    expected = figures(facts)
    assert list(item["metrics"]) == names
    for name in names:
        assert item["metrics"][name] == pytest.approx(expected[name]), name
    by = items(api, metrics="plays", by="label.plan,cdn", where="country!=PT;player=hls.js,shaka", interval="15m")
    groups: dict[Any, int] = {}
    for f in facts:
        if f.country != "PT" and f.player in ("hls.js", "shaka"):
            key = (f.at // 900_000 * 900_000, f.labels.get("plan", ""), f.cdn)
            groups[key] = groups.get(key, 0) + (f.fact == "start")
    assert {(i["at"], i["by"]["label.plan"], i["by"]["cdn"]): i["metrics"]["plays"]["value"] for i in by} == groups


def test_the_whole_answer(api: ApiProcess) -> None:
    said = api.get("/v1/quality", token=READ, params=SPAN | {"metrics": "plays", "interval": "1h", "limit": "1"}).json()
    assert {name: said[name] for name in said if name != "items"} == SPAN | {
        "interval": HOUR,
        "truncated": True,
        "next": None,
    }
    assert len(said["items"]) == 1


def test_the_last_hour_unless_said_otherwise(single: Server, tmp_path: Path, prefix: str) -> None:
    now = int(time.time() * 1000)
    ages = {"s1": 60_000, "s2": HOUR - 120_000, "s3": HOUR + 120_000, "s4": 25 * HOUR}
    made = [
        Fact(
            fact="start",
            at=now - age,
            account="a",
            session=s,
            partition=partition_of("a", PARTITIONS),
            stream_ms=now + n,
            ms=5,
        )
        for n, (s, age) in enumerate(ages.items())
    ]
    fill(tmp_path / "lake", made)
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path / "lake") as api:
        said = api.get("/v1/quality?metrics=plays", token=READ).json()
        assert said["to"] - said["from"] == HOUR
        assert abs(said["to"] - now) < 30_000
        assert said["items"][0]["metrics"]["plays"]["value"] == 2
        # A playback is asked for within a day.
        assert api.get("/v1/quality/sessions/s3?account=a", token=READ).status_code == 200
        assert api.get("/v1/quality/sessions/s4?account=a", token=READ).status_code == 404


def test_worst_and_players(api: ApiProcess, facts: list[Fact]) -> None:
    found = items(api, "/worst", metric="rebuffer_ratio", by="player")
    assert found
    assert all(item["hurt"] == pytest.approx(item["excess"] * item["sessions"]) for item in found)
    assert {name for item in items(api, "/worst", metric="rebuffer_ratio") for name in item["by"]} >= {
        "player",
        "cdn",
        "country",
    }
    shown = {item["player"]: item for item in items(api, "/players")}
    assert set(shown) == {f.player for f in facts}
    assert shown["dash.js"]["reports"]["bitrate"]["sessions"] == 0
    able = {(f.account, f.session) for f in facts if f.player == "hls.js" and f.fact == "play" and f.bits_ms}
    assert shown["hls.js"]["reports"]["bitrate"]["sessions"] == len(able)
    assert shown["hls.js"]["cmcd_sessions"] == len(
        {(f.account, f.session) for f in facts if f.player == "hls.js" and f.source == "cmcd"}
    )


def test_timeline(api: ApiProcess, facts: list[Fact]) -> None:
    account, session = facts[0].account, facts[0].session
    answer = api.get(f"/v1/quality/sessions/{session}", token=READ, params=SPAN | {"account": account})
    assert answer.status_code == 200, answer.text
    said = answer.json()
    mine = [f for f in facts if (f.account, f.session) == (account, session)]
    assert sorted((f["at"], f["fact"]) for f in said["facts"]) == sorted((f.at, f.fact) for f in mine)
    assert [(e["type"], e["data"]) for e in said["events"]] == [
        ("view_start", {"n": 0}),
        ("heartbeat", {"n": 1}),
        ("cmcd", {"n": 3}),
    ]
    assert {e["at"] for e in said["events"]} == {facts[0].at, facts[0].at + 1, facts[0].at + 3}
    assert said["dimensions"]["player"] in {f.player for f in mine}
    # An account's session is not another's of the same name.
    for params in ({"account": "somebody"}, {"account": account, "from": 10**11, "to": 10**11 + 1}):
        other = api.get(f"/v1/quality/sessions/{session}", token=READ, params=SPAN | params)
        assert (other.status_code, other.json()["error"]["field"]) == (404, "session")
    slash = api.get("/v1/quality/sessions/a/b?account=x", token=READ)
    assert (slash.status_code, slash.json()["error"]["code"]) == (404, "unknown_session")


def test_states_of_a_playback(single: Server, tmp_path: Path, prefix: str) -> None:
    """Start, play, stall, play, an ad, a pause, play: from pieces whose `at` is their end."""
    second = 0

    def fact(kind: str, at_s: float, **more: Any) -> Fact:
        nonlocal second
        second += 1
        return Fact(fact=kind, at=START + int(at_s * 1000), account="a", session="s", partition=partition_of("a", PARTITIONS),
                    stream_ms=START + second, content="film", **more)  # fmt: skip

    made = [
        fact("attempt", 0), fact("start", 2, ms=1_200, started=True), fact("play", 12, ms=10_000), fact("play", 22, ms=10_000),
        fact("stall", 25, ms=3_000, count=1), fact("play", 30, ms=5_000), fact("play", 45, ms=15_000, ad=True),
        fact("play", 100, ms=10_000), fact("error", 100, code="404", fatal=True, started=True),
    ]  # fmt: skip
    # A stall and the play before it, told of by one event.
    made.append(fact("play", 110, ms=6_000))
    made.append(fact("stall", 110, ms=4_000, count=1))
    made[-1].stream_ms, made[-1].part = made[-2].stream_ms, 1
    fill(tmp_path / "lake", made)
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path / "lake") as api:
        said = api.get("/v1/quality/sessions/s", token=READ, params=SPAN | {"account": "a"}).json()
    shown = [(s["state"], (s["from"] - START) / 1000, (s["to"] - START) / 1000, s["ad"]) for s in said["states"]]
    assert shown == [
        ("starting", 0.8, 2.0, False), ("playing", 2.0, 22.0, False), ("stalled", 22.0, 25.0, False), ("playing", 25.0, 30.0, False),
        ("playing", 30.0, 45.0, True), ("idle", 45.0, 90.0, False), ("playing", 90.0, 106.0, False), ("stalled", 106.0, 110.0, False),
    ]  # fmt: skip
    assert [f["fact"] for f in said["facts"]][-3:] == ["error", "play", "stall"]
    assert said["facts"][-3] == {
        "at": START + 100_000,
        "fact": "error",
        "content": "film",
        "code": "404",
        "fatal": True,
        "started": True,
        "view": 0,
    }


def test_who_may_ask(api: ApiProcess) -> None:
    for path in ("?metrics=plays", "/worst?metric=bitrate", "/players", "/sessions/s?account=a"):
        assert api.get(f"/v1/quality{path}").status_code == 401
        assert api.get(f"/v1/quality{path}", token=player("a")).status_code == 403
        assert api.get(f"/v1/quality{path}", token=service("signals")).status_code == 403


BAD = [
    ("", {}, "metrics"), ("", {"metrics": "x"}, "metrics"), ("", {"metrics": "plays", "by": "account"}, "by"),
    ("", {"metrics": "plays", "where": "x"}, "where"), ("", {"metrics": "plays", "where": "cdn=" + "x" * 10_000}, "where"),
    ("", {"metrics": "plays", "interval": "1y"}, "interval"), ("", {"metrics": "plays", "limit": "10001"}, "limit"),
    ("", {"metrics": "plays", "limit": "0"}, "limit"), ("", {"metrics": "plays", "from": "9" * 12, "to": "9" * 12}, "from"),
    ("", {"metrics": "plays", "from": "now"}, "from"), ("", {"metrics": "plays", "from": "0", "to": str(START)}, "from"),
    ("/worst", {}, "metric"), ("/worst", {"metric": "plays"}, "metric"), ("/worst", {"metric": "bitrate", "by": "x"}, "by"),
    ("/players", {"limit": "x"}, "limit"), ("/sessions/s", {}, "account"), ("/sessions/", {"account": "a"}, "session"),
    ("/sessions/" + "s" * 300, {"account": "a"}, "session"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "params", "field"), BAD)
def test_bad_questions(api: ApiProcess, path: str, params: dict[str, str], field: str) -> None:
    answer = api.get(f"/v1/quality{path}", token=READ, params=SPAN | params)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["field"] == field


@pytest.mark.parametrize(
    "text",
    ["'", "'; DROP VIEW facts; --", '" OR "1"="1', "') UNION SELECT account FROM facts --", "\\\\", "%00", "$p0"],
)
def test_injection(api: ApiProcess, text: str, facts: list[Fact]) -> None:
    value = text.replace(";", "\\;").replace("%00", "\x00")
    assert items(api, metrics="plays", where=f"cdn={value}") == []
    (item,) = items(api, metrics="sessions", where=f"cdn!={value}")
    assert item["metrics"]["sessions"]["value"] == len({(f.account, f.session) for f in facts})
    answer = api.get("/v1/quality", token=READ, params=SPAN | {"metrics": "plays", "by": f"label.{text}"})
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:
        assert [i["by"] for i in answer.json()["items"]] == [{f"label.{text}": ""}]
    assert (
        api.get(
            f"/v1/quality/sessions/{quote(text, safe='')}",
            token=READ,
            params=SPAN | {"account": text.replace("%00", "x")},
        ).status_code
        == 404
    )


def children(api: ApiProcess) -> list[int]:
    found = []
    for pid in _descendants(api.pid):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"engine.quality.server" in command:
            found.append(pid)
    return found


def test_the_process_is_killed_and_replaced(api: ApiProcess) -> None:
    items(api, metrics="plays")
    (pid,) = children(api)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: pid not in children(api), "it is dead")
    answers = [api.get("/v1/quality", token=READ, params=SPAN | {"metrics": "plays"}) for _ in range(2)]
    assert answers[0].status_code in (200, 503)
    assert answers[1].status_code == 200
    (other,) = children(api)
    assert other != pid


def test_no_lake_and_nothing_in_it(single: Server, tmp_path: Path, prefix: str) -> None:
    for lake in ("", tmp_path / "lake's [1]"):
        with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=lake) as api:
            assert children(api) == []
            assert items(api, metrics="plays") == []
            assert items(api, metrics="plays", by="cdn", interval="1m") == []
            assert items(api, "/worst", metric="bitrate") == items(api, "/players") == []
            assert api.get("/v1/quality/sessions/s?account=a", token=READ).status_code == 404


def test_compaction_and_erasure_in_between(single: Server, tmp_path: Path, prefix: str) -> None:
    """Files that the answers came from are merged, replaced and removed; what was remembered of them is not told again."""
    made = [f for f in seeded(12, 400) if f.fact != "end"]
    fill(tmp_path / "lake", made)
    lake = Lake(tmp_path / "lake" / "quality", partitions=PARTITIONS, clock=lambda: START + 9 * HOUR)
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path / "lake") as api:
        asked = {"metrics": "sessions,rebuffer_ratio", "interval": "5m"}
        before = items(api, **asked)
        assert lake.compact(0).merged
        assert items(api, **asked) == before
        name = made[0].account
        assert lake.erase(name).rows
        left = [f for f in made if f.account != name]
        assert items(api, metrics="sessions")[0]["sessions"] == figures(left)["sessions"]["value"]
        buckets = {f.at // 300_000 * 300_000 for f in left}
        after = items(api, **asked)
        assert {i["at"] for i in after} == buckets
        assert sum(i["sessions"] for i in after) == len({(f.at // 300_000, f.account, f.session) for f in left})


def test_who_goes_frees_the_process(single: Server, tmp_path: Path, prefix: str) -> None:
    """The caller closes its connection in the middle of a question that would take for ever."""
    fill(tmp_path / "lake", [f for f in seeded(13, 100) if f.fact != "end"])
    with ApiProcess(
        single.url, tmp_path, prefix=prefix, lake_dir=tmp_path / "lake", quality_queue=0, quality_timeout_s=60
    ) as api:
        items(api, metrics="plays")
        (pid,) = children(api)
        os.kill(pid, signal.SIGSTOP)  # it answers nothing, nor can it be interrupted
        path = f"/v1/quality?metrics=plays&from={SPAN['from']}&to={SPAN['to']}"
        asked = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {READ}\r\n\r\n".encode()

        with socket.create_connection(("127.0.0.1", api.port)) as caller:
            caller.sendall(asked)
            wait_for(lambda: "\npulsegate_questions 1.0\n" in api.get("/metrics").text, "the question is under way")
            assert api.get(path, token=READ).status_code == 429
        # Its caller has gone: it is interrupted, does not heed it, and is killed; the next question gets a new one.
        wait_for(lambda: pid not in children(api), "the stopped process is killed")
        wait_for(lambda: api.get(path, token=READ).status_code == 200, "others are answered again")


def test_too_slow_is_said(single: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path, quality_timeout_s=0.01) as api:
        answer = api.get("/v1/quality?metrics=plays", token=READ)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "query_too_slow")


def test_a_killed_api_leaves_no_process(single: Server, tmp_path: Path, prefix: str) -> None:
    api = ApiProcess(single.url, tmp_path, prefix=prefix, lake_dir=tmp_path)
    with api:
        items(api, metrics="plays")
        (pid,) = children(api)
        os.kill(api.pid, signal.SIGKILL)
        wait_for(
            lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes(),
            "the child has ended",
        )
