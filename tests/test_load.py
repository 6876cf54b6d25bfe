"""`make load`: shapes over time, what was due against what was answered, thresholds, and the whole of it against a real engine.

Locust patches the process that imports it, so here it runs in processes of its own; what needs no Locust is tested directly.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.embedded import Server
from loadtest import load, locust_goals, locust_report
from loadtest.locust_outage import Outage
from loadtest.locust_people import Person, Player, Reply
from loadtest.locust_shapes import MINUTES, SHAPES, Moment, moment, outages
from loadtest.locust_tally import END, Tally, percentile
from tests.servers import ROOT, SECRET, ApiProcess, clean_env, wait_for

FEW = ("--players", "80", "--people", "5")
LENIENT = "heartbeat:p50=2000 heartbeat-due:p99=20000"


# shapes


def players(shape: str, peak: int = 1000, total_s: float = 120.0) -> list[int]:
    """Of each half second."""
    found = []
    for half in range(round(2 * total_s)):
        now = moment(shape, half / 2, total_s, peak)
        assert now is not None
        found.append(now.players)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_reaches_its_peak_stays_within_it_and_ends(shape: str) -> None:
    found = players(shape)
    assert max(found) == 1000
    assert found[0] < 20
    assert moment(shape, 120.0, 120.0, 1000) is None
    assert sum(phase.share for phase in SHAPES[shape]) == pytest.approx(1.0)
    assert set(MINUTES) == set(SHAPES)


def test_a_premiere_is_a_flood_after_a_trickle() -> None:
    found = players("premiere")
    before, flood = found[: 2 * 18], found[2 * 18 : 2 * 60]
    assert max(before) == 100
    steps = [b - a for a, b in itertools.pairwise(flood)]
    assert min(steps) > 0
    assert max(steps) < 20
    assert found[2 * 61] == 1000
    now = moment("premiere", 30.0, 120.0, 1000)
    assert now is not None
    assert now.hit


def test_in_a_mass_exit_nine_of_ten_go_at_once() -> None:
    found = players("exit")
    falls = [a - b for a, b in itertools.pairwise(found)]
    assert sorted(falls)[-2:] == [0, 900]


def test_a_zapping_storm_changes_what_they_do_and_not_how_many_they_are() -> None:
    calm, storm = moment("zapping", 50.0, 120.0, 1000), moment("zapping", 60.0, 120.0, 1000)
    assert calm is not None
    assert storm is not None
    assert storm.players == calm.players == 1000
    assert storm.zap_s < calm.zap_s / 10


def test_players_keep_on_through_an_outage_of_a_minute() -> None:
    found = [moment("reconnect", second, 210.0, 1000) for second in range(210)]
    away = [now for now in found if now is not None and now.outage]
    assert 60 <= len(away) <= 66
    assert {now.players for now in away} == {1000}
    assert outages("reconnect") == {"outage"}


def test_the_final_has_it_all_and_an_unknown_shape_is_refused() -> None:
    assert [phase.name for phase in SHAPES["final"]] == [
        "before", "premiere", "steady", "zapping storm", "mass exit", "after",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"shape: expected one of steady, .* got 'party'"):
        moment("party", 0.0, 120.0, 1000)


# what was due, and what was answered


def test_a_heartbeat_is_due_by_the_clock_whoever_is_late() -> None:
    tally, now = Tally(), time.monotonic()
    tally.advance(now, "steady")
    tally.plan(now + 1.25)
    tally.plan(now + 1.75)
    tally.plan(now + 9.0)
    tally.advance(now + 1.5)
    assert tally.total().due == 1
    tally.unplan(now + 1.75)
    tally.unplan(now + 1.25)
    tally.advance(now + 2.0)
    assert tally.total().due == 1
    tally.plan(now + 0.5)
    assert tally.total().due == 2
    tally.answered(now + 1.25, now + 4.0, now + 4.05)
    total = tally.total()
    assert total.answered == 1
    assert percentile(total.from_send, 99) == pytest.approx(50, rel=0.05)
    assert percentile(total.from_due, 99) == pytest.approx(2800, rel=0.05)


def test_heartbeats_belong_to_the_phase_in_which_they_were_due() -> None:
    tally, now = Tally(), time.monotonic()
    tally.advance(now, "steady")
    for at in (0.5, 1.5):
        tally.plan(now + at)
    tally.advance(now + 1.0, "outage")
    tally.advance(now + 2.0, END)
    tally.answered(now + 0.5, now + 0.5, now + 2.5)
    assert {name: (each.due, each.answered) for name, each in tally.phases.items()} == {
        "steady": (1, 1), "outage": (1, 0), END: (0, 0),
    }  # fmt: skip
    assert tally.total({"outage"}).due == 1


def test_the_master_adds_up_what_its_generators_count() -> None:
    master, workers, now = Tally(), [Tally(), Tally()], time.monotonic()
    for n, worker in enumerate(workers):
        worker.live[str(n)] = 50
        for turn in range(3):
            at = now + 0.1 + turn
            worker.advance(at - 0.1, "steady")
            worker.plan(at)
            worker.advance(at)
            worker.answered(at, at, at + 0.01)
            master.merge(worker.drain())
    assert (master.total().due, master.total().answered, master.players) == (6, 6, 100)
    assert percentile(master.total().from_send, 50) == 10
    assert sum(due for due, _ in master.seconds.values()) == 6
    assert not workers[0].total().due


class Stage:
    """A scene whose server answers as `answers` says, and where sleeping moves nothing."""

    def __init__(self, *answers: Reply) -> None:
        self.tally = Tally()
        self.moment = Moment("steady", 0, 480.0, False, False)
        self.asked: list[tuple[str, str, bytes]] = []
        self.slept: list[float] = []
        self._answers, self._number = list(answers), 0

    def ask(self, name: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply:
        self.asked.append((name, path, body))
        return self._answers.pop(0) if self._answers else ALLOWED

    def number(self) -> int:
        self._number += 1
        return self._number

    def name(self, number: int) -> str:
        return f"viewer-{number}"

    def token(self, **claims: object) -> dict[str, str]:
        return {"X-Account": str(claims["sub"])}

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def viewer(self, draw: random.Random) -> Player | None:
        return None


ALLOWED = Reply(200, {"decision": "allow", "next_heartbeat_ms": 10_000}, "")
SILENCE = Reply(0, None, "TimeoutError")


def test_a_player_repeats_an_unanswered_heartbeat_and_is_due_by_the_clock_all_the_same() -> None:
    stage, at = Stage(SILENCE, SILENCE), time.monotonic()
    player = Player(stage, random.Random(1), at)
    stage.tally.advance(at, "steady")
    player.act()
    bodies = {body for _, _, body in stage.asked}
    assert len(stage.asked) == 3
    assert len(bodies) == 1
    assert [round(each) for each in stage.slept] == [2, 4]
    assert player.due == at + 10.0
    assert stage.tally.counts("").attempts_failed + stage.tally.counts("steady").attempts_failed == 2


def test_a_player_keeps_the_pace_that_it_is_asked_for() -> None:
    at = time.monotonic()
    stage = Stage(Reply(200, {"decision": "allow", "next_heartbeat_ms": 25_000}, ""))
    player = Player(stage, random.Random(1), at)
    player.act()
    assert player.due == at + 25.0
    stage.tally.advance(at + 24.0, "steady")
    assert stage.tally.counts("").due == 1
    stage.tally.advance(at + 26.0)
    assert stage.tally.total().due == 1


def test_a_player_who_zaps_beats_at_once_instead_of_later() -> None:
    stage, at = Stage(), time.monotonic() - 5.0
    player = Player(stage, random.Random(1), at)
    player.act()
    watched = player.content
    player.zap_at = player.due = at + 3.0
    player.act()
    assert player.content != watched
    assert player.beat_at == at + 13.0
    stage.tally.advance(at + 12.5)
    assert stage.tally.counts("").due == 2


def test_who_leaves_owes_nothing_more_and_half_say_so() -> None:
    stage, at = Stage(), time.monotonic()
    loud, quiet = (Player(stage, random.Random(n), at + 1.0) for n in range(2))
    loud.leave(stop=True)
    quiet.leave(stop=False)
    stage.tally.advance(at + 20.0)
    assert stage.tally.counts("").due == 0
    assert [path for _, path, _ in stage.asked] == [f"/v1/sessions/{loud.session}/stop"]


def test_accounts_have_two_players_at_most() -> None:
    stage = Stage()
    accounts = [Player(stage, random.Random(n), 0.0).headers["X-Account"] for n in range(400)]
    counts = {accounts.count(account) for account in accounts}
    assert counts == {1, 2}


def test_others_are_due_by_the_clock_and_make_up_for_one_at_most() -> None:
    class Late(Person):
        every_s = 5.0

        def do(self) -> None:
            pass

    now = time.monotonic()
    person = Late(Stage(), random.Random(1), now - 2.0)
    person.act()
    assert person.due == now + 3.0
    person.due = now - 60.0
    person.act()
    assert now - 5.0 <= person.due <= time.monotonic() - 5.0


# thresholds


def test_limits_are_read_and_nonsense_is_named() -> None:
    assert locust_goals.limits("heartbeat:p50=50,p99.9=500 check:p99=80") == {
        "heartbeat": {50: 50, 99.9: 500}, "check": {99: 80},
    }  # fmt: skip
    for text, named in (("heart:p50=5", "heart"), ("check", "check"), ("check:50=5", "50=5"), ("check:p0=5", "p0=5")):
        with pytest.raises(ValueError, match=f"--max-ms: .*{re.escape(named)}"):
            locust_goals.limits(text)


def test_thresholds_are_judged() -> None:
    measured = {("heartbeat", 50): 40.0, ("heartbeat", 99): 600.0}
    verdicts = locust_goals.judge_latency(
        locust_goals.limits("heartbeat:p50=50,p99=500 check:p99=80"),
        lambda name, percent: measured.get((name, percent)),
    )
    assert [verdict.ok for verdict in verdicts] == [True, False, None]
    assert [str(each) for each in locust_goals.missed(verdicts)] == ["heartbeat p99: 600 ms, wanted ≤ 500 ms"]
    assert locust_goals.judge_achieved(98, 100, 0.98).ok
    assert locust_goals.judge_achieved(97, 100, 0.98).ok is False
    assert locust_goals.judge_achieved(0, 0, 0.98).ok is False
    assert locust_goals.judge_failures(2, 1000, 0.001).ok is False
    assert locust_goals.judge_count("false blocks", 1).ok is False


def test_the_report_says_what_was_missed_before_locusts_own() -> None:
    tally, now = Tally(), time.monotonic() - 10
    tally.advance(now, "steady <b>")
    for n in range(8):
        tally.plan(now + n + 0.5)
    tally.advance(now + 9)
    tally.answered(now + 1, now + 1, now + 1.02)
    verdicts = [locust_goals.judge_achieved(1, 8, 0.98)]
    told = locust_report.document(tally, "steady", (), verdicts)
    page = locust_report.into_report("<html><body><p>Locust", locust_report.block(told, verdicts))
    assert page.startswith("<html><body><section")
    assert page.endswith("<p>Locust")
    assert "missed: achieved ÷ target: 0.125 (1 of 8), wanted ≥ 0.98" in page
    assert "steady &lt;b&gt;" in page
    assert "<svg" in page
    assert "achieved" in locust_report.line(told, 9.0)


# the outage


def test_an_outage_lasts_until_the_api_is_ready(tmp_path: Path) -> None:
    ready: list[bool] = []
    mark = tmp_path / "away"
    program = f"import pathlib, signal\npathlib.Path({str(mark)!r}).touch()\nsignal.pause()"
    outage = Outage(f'{sys.executable} -c "{program}"', lambda: bool(ready))
    assert not outage.hold(False)
    assert outage.hold(True)
    deadline = time.monotonic() + 10
    while not mark.exists():
        assert time.monotonic() < deadline
        assert outage.hold(True)
        time.sleep(0.02)
    assert outage.hold(False)
    ready.append(True)
    assert not outage.hold(False)


# the whole


@contextlib.contextmanager
def making_load(tmp_path: Path, *args: str, **env: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m loadtest.load`, which leaves nothing behind."""
    command = [sys.executable, "-m", "loadtest.load", "--report", str(tmp_path / "report.html"), *args]
    process = subprocess.Popen(
        command, cwd=ROOT, env=clean_env() | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)


def test_make_load_holds_through_an_outage_and_says_what_was_achieved(tmp_path: Path) -> None:
    args = ("--headless", "--shape", "reconnect", "--minutes", "0.14", *FEW)
    limits = ("--min-achieved", "0.9", "--max-ms", LENIENT)
    with making_load(
        tmp_path, *args, *limits, PULSEGATE_INTERVAL_MS="1000", PULSEGATE_REDIS_TIMEOUT_MS="5000"
    ) as process:
        said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    table = {
        line.split("  ")[0]: line.split() for line in said.splitlines() if re.match(r"[a-z].*  +[\d,]+  +[\d,]+", line)
    }
    assert {"join", "steady", "outage", "reconnect", "all but the outage"} <= set(table), said
    assert re.search(r"POST +heartbeat \(outage\) +\d+ +[1-9]", said), said
    assert "ok      false blocks: 0" in said
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "all thresholds held" in page
    assert "achieved ÷ target" in page
    assert "<title>Locust" in page


def test_a_run_against_a_deployment_shows_itself_and_fails_by_the_name_of_the_threshold(
    single: Server, prefix: str, tmp_path: Path
) -> None:
    args = ("--shape", "steady", "--minutes", "0.07", "--stay", "0", "--web-port", "0", *FEW)
    limits = ("--max-ms", f"check:p50=0.001 {LENIENT}")
    with (
        ApiProcess(single.url, tmp_path, prefix=prefix, redis_timeout_ms=5000) as api,
        making_load(tmp_path, *args, *limits, PULSEGATE_URL=api.base, PULSEGATE_JWT_SECRET=SECRET) as process,
    ):
        assert process.stdout is not None
        said = ""
        while "live page: " not in said:
            said += process.stdout.readline()
        base = said.split("live page: ")[1].split("/load")[0]
        told = watched(base)
        said += process.communicate(timeout=60)[0]
    assert process.returncode == 1, said
    assert "threshold missed: check p50: " in said
    assert said.count("threshold missed: ") == 1, said
    assert "missed: check p50: " in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert told["target"] > 0
    assert told["achieved"] > 0


def watched(base: str) -> dict[str, Any]:
    """What the live page told once heartbeats were answered; the tab in Locust's own page tells it, too."""

    def tell() -> dict[str, Any] | None:
        try:
            told = dict(client.get("/load/data").json())
        except httpx.TransportError:
            return None
        return told if told["achieved"] and told["players"] else None

    with httpx.Client(base_url=base, trust_env=False, timeout=10) as client:
        told = wait_for(tell, "heartbeats are answered", 30)
        assert "achieved: answered" in client.get("/load").text
        tab = client.get("/stats/requests").json()["extended_stats"][0]
        assert tab["data"][-1]["due"] > 0
        assert '"Achieved"' in client.get("/").text
    return told


def test_wrong_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtest/locustfile.py",
        "--headless",
        "--host",
        "http://127.0.0.1:1",
    ]
    done = subprocess.run(
        [*command, "--max-ms", "beat:p50=1"], cwd=ROOT, env=clean_env(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "--max-ms: 'beat:p50=1'" in done.stderr
    monkeypatch.setenv("PULSEGATE_URL", "http://127.0.0.1:1")
    monkeypatch.delenv("PULSEGATE_JWT_SECRET", raising=False)
    assert load.main(["--report", str(tmp_path / "report.html")]) == 2
    assert "PULSEGATE_JWT_SECRET: missing" in capsys.readouterr().err
