"""`make capacity`: the arithmetic of the sizing, the search for the knee, the open loop, the storm's judgement, and both commands for real."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.capacity.__main__ import main
from loadtest.capacity.crowd import PLAIN, Crowd, parse_mix
from loadtest.capacity.generator import OpenLoop, Step, percentile
from loadtest.capacity.herd import Herd, Seen
from loadtest.capacity.knee import LATE, Goal, find
from loadtest.capacity.measure import Spent, _slope
from loadtest.capacity.rig import heartbeat_share
from loadtest.capacity.sizing import VIEWERS, Assumed, Costs, arithmetic, size
from loadtest.capacity.timeline import Timeline
from loadtest.capacity.verdict import Normal, Plan, Result, Views, views_of
from loadtest.capacity.wire import bytes_a_heartbeat
from loadtest.http1 import Pool
from tests.listener import listening
from tests.servers import ROOT, clean_env

COSTS = Costs(
    knee_per_s=10_000, api_us=80, redis_us=15, log_us=10, worker_us=50, session_bytes=400, outbox_bytes=300, log_bytes=500,
    http_bytes=1_000, redis_bytes=800, work_bytes=2_000,
)  # fmt: skip


# sizing


def test_a_million_viewers_by_hand() -> None:
    found = size(1_000_000, COSTS, Assumed())
    assert found.heartbeats_per_s == 100_000
    assert found.api_cores == 20
    assert found.session_shards == 3
    assert found.worker_cores == 10
    assert found.log_servers == 2
    assert found.session_memory == pytest.approx((1e6 * 400 + 1e5 * 300 * 60) * 2)
    assert found.log_memory == pytest.approx(1e5 * 500 * 600 * 2)
    assert found.http_per_s == pytest.approx(1e5 * (1000 + 3 * 66))
    assert (found.redis_per_s, found.work_per_s) == (8e7, 2e8)


def test_it_grows_with_viewers_and_headroom_and_never_below_one_of_each() -> None:
    sizes = [size(viewers, COSTS, Assumed()) for viewers in VIEWERS]
    assert [each.api_cores for each in sizes] == [2, 20, 200, 1_200]
    few = size(1, COSTS, Assumed())
    assert (few.api_cores, few.session_shards, few.worker_cores, few.log_servers) == (1, 1, 1, 1)
    assert size(1_000_000, COSTS, Assumed(headroom=3)).api_cores == 30
    assert size(1_000_000, COSTS, Assumed(interval_s=20)).api_cores == 10


def test_every_result_stands_in_the_arithmetic_and_so_does_every_input() -> None:
    text = arithmetic(COSTS, Assumed(), at_least=True)
    for part in (
        "≥ 10,000",
        "headroom        2",
        "= 20.00 → 20",
        "= 3.00 → 3",
        "= 10.00 → 10",
        "= 2.00 → 2",
        "= 4.4 GB",
        "= 60.0 GB",
        "= 0.96 Gbit/s",
    ):
        assert part in text
    assert all(re.search(rf"^  {name}\b", text, re.MULTILINE) for name in vars(COSTS) if name != "knee_per_s")


@pytest.mark.parametrize("name", ["knee_per_s", "redis_us", "work_bytes"])
def test_a_cost_of_nothing_is_refused_by_name(name: str) -> None:
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=name):
            replace(COSTS, **{name: value})


def test_other_wrong_inputs_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="headroom"):
        Assumed(headroom=0.9)
    with pytest.raises(ValueError, match="interval_s"):
        Assumed(interval_s=0)
    with pytest.raises(ValueError, match="viewers"):
        size(0, COSTS, Assumed())


def test_what_is_spent_anyway_falls_out_of_what_a_heartbeat_costs() -> None:
    little, much = Spent(100, 1.0 + 0.01, 0.5, 1000, 7000), Spent(1_100, 1.0 + 0.11, 0.6, 51_000, 17_000)
    each = _slope(little, much)
    assert (each.worker_s, each.log_s, each.log_bytes, each.moved) == pytest.approx((1e-4, 1e-4, 50, 10))
    assert _slope(much, little).worker_s == pytest.approx(1.01 / 100)


# the knee


@dataclass(frozen=True)
class Fake:
    target_per_s: float
    achieved_per_s: float
    p99_ms: float
    requests: int = 1_000
    failed: int = 0
    late: bool = False


def queue(limit: float) -> Callable[[float], Fake]:
    """A server whose p99 goes up as it nears its limit."""
    return lambda rate: Fake(rate, min(rate, limit), 1.0 / max(1e-6, 1 - rate / limit))


def test_the_knee_of_a_queue_is_found_within_its_precision() -> None:
    found = find(queue(10_000), Goal(p99_ms=10), start=500, precision=0.02)
    assert 9_000 * 0.98 <= found.per_s <= 9_000
    assert not found.at_least
    assert found.why


def test_a_knee_below_the_first_step_is_found_too() -> None:
    found = find(queue(300), Goal(p99_ms=10), start=2_000, precision=0.05)
    assert 270 * 0.95 <= found.per_s <= 270


def test_the_most_that_was_asked_for_is_no_knee_but_a_bound() -> None:
    found = find(queue(1e9), Goal(), start=100, most=1_000)
    assert found.per_s == 1_000
    assert found.at_least


def test_a_neighbours_burst_is_no_knee() -> None:
    bursts = iter([True, False] * 100)
    smooth = queue(10_000)
    found = find(
        lambda rate: replace(smooth(rate), p99_ms=500.0) if next(bursts) else smooth(rate),
        Goal(p99_ms=10),
        start=500,
        precision=0.05,
    )
    assert found.per_s >= 9_000 * 0.95


def test_a_generator_that_is_late_says_nothing_of_the_server() -> None:
    found = find(lambda rate: replace(queue(1e9)(rate), late=rate > 3_000), Goal(), start=500, precision=0.05)
    assert 3_000 * 0.95 <= found.per_s <= 3_000
    assert found.at_least
    assert found.why == LATE


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (Fake(100, 100, 5, failed=2), "2 of 1000 failed"), (Fake(100, 90, 5), "achieved"), (Fake(100, 100, 51), "p99"),
        (Fake(100, 98, 49, failed=1), ""),
    ],
)  # fmt: skip
def test_what_breaks_the_goal_is_named(point: Fake, why: str) -> None:
    assert bool(Goal().broken(point)) == bool(why)
    assert why in Goal().broken(point)


# the open loop

Answerer = Callable[[str], Awaitable[tuple[int, bytes]]]
ALLOW = b'{"decision":"allow","degraded":false}'


@contextlib.asynccontextmanager
async def tiny(answer: Answerer) -> AsyncIterator[int]:
    """An HTTP server: `answer` gets head and body, and gives status and body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(length[1]) if length else 0)
                status, text = await answer(head + body.decode())
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(text), text))

    async with listening(serve) as (_, port):
        yield port


def test_a_stalled_server_shows_in_latency_from_the_schedule() -> None:
    """It stalls once, for 400 ms. Who counts from send, one request after another, sees one slow answer; its viewers see 40."""
    stall_s, began = 0.4, 0.0

    async def answer(request: str) -> tuple[int, bytes]:
        left = began + 0.3 + stall_s - time.perf_counter()
        if 0 < left < stall_s:
            await asyncio.sleep(left)
        return 200, ALLOW

    async def run() -> Any:
        nonlocal began
        async with tiny(answer) as port:
            loop = OpenLoop(f"http://127.0.0.1:{port}", Crowd(50, PLAIN, sign=lambda account: account), connections=1)
            began = time.perf_counter()
            report = await loop.run(Step(100, 1.0, poisson=False), late_ms=1000)
            loop.close()
            return report

    report = asyncio.run(run())
    assert report.requests >= 95
    assert report.failed == 0
    assert report.sent_p50_ms >= report.p50_ms - 0.5 or report.p50_ms > 0
    assert report.p90_ms >= 200
    assert report.max_ms >= 300


def test_wrong_answers_are_counted_by_what_is_wrong() -> None:
    answers = iter(
        [(200, b'{"decision":"block"}'), (429, b""), (200, b'{"decision":"allow","degraded":true}')]
        + [(200, ALLOW)] * 100
    )

    async def answer(request: str) -> tuple[int, bytes]:
        return next(answers)

    async def run() -> Any:
        async with tiny(answer) as port:
            loop = OpenLoop(f"http://127.0.0.1:{port}", Crowd(5, PLAIN, sign=lambda account: account))
            report = await loop.run(Step(100, 0.3, poisson=False), late_ms=1000)
            loop.close()
            return report

    assert asyncio.run(run()).wrong == {"block": 1, "429": 1, "degraded": 1}


def test_a_schedule_is_the_same_for_the_same_seed_and_as_dense_as_asked() -> None:
    dues = list(Step(1_000, 2.0, 1.0, seed=3).dues())
    assert dues == list(Step(1_000, 2.0, 1.0, seed=3).dues()) != list(Step(1_000, 2.0, 1.0, seed=4).dues())
    assert dues == sorted(dues)
    assert len(dues) == pytest.approx(3_000, rel=0.1)
    with pytest.raises(ValueError, match="rate"):
        Step(0, 1)


def test_the_crowd_sends_what_the_mix_says() -> None:
    mix = parse_mix("plain=90,zap=5,stop=2,join=2,check=1")
    crowd = Crowd(200, mix, sign=lambda account: account)
    kinds = [crowd.next().kind for _ in range(5_000)]
    assert kinds.count("zap") / 5_000 == pytest.approx(0.05, abs=0.015)
    assert {"plain", "stop", "join", "check"} <= set(kinds)
    assert heartbeat_share(mix) == pytest.approx(0.97)
    for text, what in (
        ("plain=90", "add up to 90"),
        ("plain=100,fly=0", "fly"),
        ("plain=x", "plain=x"),
        ("plain=101,zap=-1", "plain=101"),
    ):
        with pytest.raises(ValueError, match=what):
            parse_mix(text)
    with pytest.raises(ValueError, match="no heartbeats"):
        heartbeat_share({"stop": 100.0})


def test_percentiles_are_by_nearest_rank() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 2.0
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.99) == 4.0
    assert percentile([], 0.5) == 0.0


def test_bytes_on_the_wire_are_all_that_goes_over_it() -> None:
    seen: list[int] = []

    async def answer(request: str) -> tuple[int, bytes]:
        seen.append(len(request))
        return 200, ALLOW

    async def run() -> tuple[float, float]:
        async with tiny(answer) as port:
            return await asyncio.to_thread(bytes_a_heartbeat, port, Crowd(3, PLAIN, sign=lambda account: account), 6)

    sent, received = asyncio.run(run())
    assert sent == pytest.approx(sum(seen) / 6)
    assert received == len(b"HTTP/1.1 200 X\r\nContent-Length: 37\r\n\r\n") + len(ALLOW)


# the storm


def evening(slow_s: int) -> Timeline:
    """Ten usual seconds, an outage of ten, `slow_s` slow ones, and twenty usual ones."""
    found = Timeline(0.0)
    for second in range(-10, 41):
        if 0 <= second < 10:
            found.at(second).failed["away"] += 50
            continue
        each = found.at(second)
        each.answered = 100
        each.latencies.extend([0.9 if 10 <= second < 10 + slow_s else 0.004] * 100)
    return found


def test_normal_again_is_when_five_seconds_in_a_row_are_as_before() -> None:
    assert evening(7).normal((-10, 0), 10.2).after_s == pytest.approx(17 - 10.2)
    assert evening(0).normal((-10, 0), 10.2).after_s == pytest.approx(11 - 10.2)
    assert evening(28).normal((-10, 0), 10.2).after_s is None
    assert evening(7).normal((-10, 0), 10.2).limit_ms == 10.0
    few = evening(0)
    for second in range(10, 41):
        few.at(second).answered = 80
    assert few.normal((-10, 0), 10.2).after_s is None
    with pytest.raises(ValueError, match="before"):
        Timeline(0.0).normal((-10, 0), 10)


def test_the_outage_is_one_line_of_the_timeline() -> None:
    lines = evening(1).sheet([(0.0, "killed"), (10.0, "back")]).lines
    assert [line[0] for line in lines][9:14] == ["-1", "0", "1…9", "10", "11"]
    assert lines[10][-1].startswith("killed")


GOOD = Result(
    Plan(), Seen(refused=5), Timeline(0.0), Normal(1, 4, 10, 3.0), Views(100, 0, {}, 0, 0), (10, 0), players=100, waiting=0, back_s=61.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seen": Seen(refused=5, false_blocks=1)}, "false blocks"), ({"seen": Seen(refused=5, let_in=1)}, "given away"),
        ({"seen": Seen()}, "given away"), ({"views": Views(100, 0, {"timeout": 1}, 0, 0)}, "view ends"),
        ({"views": Views(100, 1, {}, 0, 0)}, "again"), ({"views": Views(99, 0, {}, 1, 0)}, "no view"),
        ({"views": Views(100, 0, {}, 0, 1)}, "given away"), ({"sampled": (10, 1)}, "GET /v1/views"),
        ({"normal": Normal(1, 4, 10, 61.0)}, "percentiles"), ({"normal": Normal(1, 4, 10, None)}, "percentiles"),
        ({"waiting": 2}, "without an answer"),
    ],
)  # fmt: skip
def test_each_goal_of_the_storm_can_be_missed(change: dict[str, Any], what: str) -> None:
    assert GOOD.passed
    result = replace(GOOD, **change)
    assert [verdict.what for verdict in result.verdicts if not verdict.ok and what in verdict.what]
    assert not result.passed


def test_what_became_of_the_views_is_read_from_events() -> None:
    async def run() -> Herd:
        return Herd(4, 1.0, Pool("http://127.0.0.1:1"), sign=lambda account: account)

    herd = asyncio.run(run())
    one, two, three, _ = herd.players
    events: list[dict[str, object]] = [
        {"type": "view_start", "session": one.session, "at": 1}, {"type": "view_start", "session": two.session, "at": 1},
        {"type": "view_end", "session": two.session, "at": 50, "data": {"reason": "timeout"}},
        {"type": "view_reopen", "session": two.session, "at": 60}, {"type": "view_start", "session": three.session, "at": 2},
        {"type": "view_end", "session": one.session, "at": 101, "data": {"reason": "timeout"}},
        {"type": "view_start", "session": herd.others[0].session, "at": 30}, {"type": "view_end", "session": "not ours", "at": 3},
    ]  # fmt: skip
    assert views_of(events, herd.players, herd.others, 100) == Views(3, 1, {"timeout": 1}, 1, 1)


def test_players_retry_come_back_at_once_and_every_false_block_is_seen() -> None:
    """The server blocks one of them, and lets a further device in."""
    times: list[tuple[float, str]] = []

    async def run() -> tuple[Herd, float]:
        async def answer(request: str) -> tuple[int, bytes]:
            session = json.loads(request.partition("\r\n\r\n")[2])["session"]
            times.append((time.perf_counter(), session))
            return 200, b'{"decision":"block"}' if session == herd.players[3].session else ALLOW

        async with tiny(answer) as port:
            herd = Herd(6, 0.5, pool := Pool(f"http://127.0.0.1:{port}"), sign=lambda account: account)
            herd.start()
            await asyncio.sleep(1.2)
            herd.away()
            asked = len(times)
            await asyncio.sleep(0.6)
            assert len(times) == asked
            back = time.perf_counter()
            herd.back(0.05)
            await asyncio.sleep(0.3)
            herd.check()
            herd.stop()
            pool.close()
            return herd, back

    herd, back = asyncio.run(run())
    again = {session for at, session in times if back <= at < back + 0.2}
    assert {player.session for player in herd.players} <= again
    assert herd.seen.false_blocks == sum(session == herd.players[3].session for _, session in times)
    assert herd.seen.let_in == sum(session == herd.others[0].session for _, session in times) > 0
    assert herd.seen.wrong["nobody listens"] >= 12
    assert herd.waiting() == 0


# the commands


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--players", "0"], "--players/--accounts: expected at least 1"), (["--seconds", "0"], "--seconds: expected above 0"),
        (["--mix", "stop=100"], "--mix: no heartbeats"), (["--mix", "fly=1"], "'fly' is none of"), (["flood"], "invalid choice"),
        (["--start", "9", "--most", "8"], "--start: 9 is above --most"), (["--headroom", "0.5"], "--headroom: expected at least 1"),
        (["storm", "--rate", "nan"], "--rate: expected above 0"), (["storm", "--outage", "soon"], "--outage: expected a number"),
    ],
)  # fmt: skip
def test_wrong_use_names_the_argument(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 2
    assert said in capsys.readouterr().err


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "loadtest.capacity", *words], cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=110
    )  # fmt: skip


def test_capacity_for_real(tmp_path: Path) -> None:
    done = command("--quick", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    raw = json.loads((tmp_path / "out.json").read_text())
    sizing = raw["sizing"]
    costs, assumed = Costs(**sizing["costs"]), Assumed(**sizing["assumed"])
    assert [each["viewers"] for each in sizing["sizes"]] == list(VIEWERS)
    assert [each["api_cores"] for each in sizing["sizes"]] == [size(n, costs, assumed).api_cores for n in VIEWERS]
    assert arithmetic(costs, assumed, at_least=raw["knee"]["at_least"]) in done.stdout
    # What is told is what was measured: a heartbeat is about 200 bytes in a request with a browser's headers.
    assert 600 < costs.http_bytes < 3_000
    assert 200 < costs.session_bytes < 5_000
    assert costs.knee_per_s == pytest.approx(raw["knee"]["requests_per_s"] * 0.97)
    assert len(raw["half"]["ours_ms"]) == len(raw["half"]["bare_ms"]) == 2


def test_the_storm_for_real(tmp_path: Path) -> None:
    done = command("storm", "--quick", "--json", str(tmp_path / "out.json"))
    raw = json.loads((tmp_path / "out.json").read_text())
    missed = {each["what"] for each in raw["verdicts"] if not each["ok"]}
    # How soon percentiles are as before is the machine's affair as well.
    assert missed <= {"percentiles as before, after the return"}, done.stdout + done.stderr
    assert done.returncode == bool(missed)
    assert raw["views"]["started"] == raw["players"] == 150
    # There was an outage, and load after it.
    assert sum(second["answered"] for second in raw["timeline"] if 1 <= second["s"] < 4) == 0
    assert raw["seen"]["wrong"]["nobody listens"] > 300
    assert sum(second["answered"] for second in raw["timeline"] if second["s"] > raw["back_s"]) > 400
