"""The simulator: the same for the same seed, true to itself, and a household alone does what it does among all."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from engine import cli
from loadtest import bench_rig
from loadtest.http1 import Answer, Pool
from loadtest.simulator import curves, network, surges
from loadtest.simulator.__main__ import main
from loadtest.simulator.plans import PLANS, toml
from loadtest.simulator.run import Options, Run, RunError
from loadtest.simulator.truth import Truth
from loadtest.truth.deployment import Deployment, deployment
from loadtest.truth.truth import Truth as Read
from tests.listener import listening

SECRET = "the secret of the tests, 32 bytes or more"
LIFETIME_MS = 30_000
Line = dict[str, Any]


@functools.cache
def account_of(token: str) -> str:
    return str(jwt.decode(token, SECRET, algorithms=["HS256"]).get("sub", ""))


class Engine:
    """Answers like an engine that knows nothing but leases: each session of an account has one for 30 s, and an account two."""

    def __init__(self, *, virtual: bool = True) -> None:
        self.now, self.virtual = 0, virtual
        self.bodies: list[Line] = []
        self._leases: dict[str, dict[str, int]] = defaultdict(dict)

    def send(
        self, method: str, path: str, body: bytes = b"", headers: bytes = b"", token: str = ""
    ) -> asyncio.Future[Answer]:
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        status, said = self._answer(method, path.partition("?")[0], body, token)
        future.set_result(Answer(status, json.dumps(said).encode() if status == 200 else b""))
        return future

    def _answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Line]:
        if path == "/v1/clock":
            if not self.virtual:
                return 404, {}
            if method == "POST":
                then, self.now = self.now, json.loads(body)["now"]
                assert self.now >= then, "the clock goes back"
            return 200, {"now": self.now or None, "settled": True}
        if path in ("/readyz", "/v1/contents"):
            return 200, {}
        if path.endswith("/audience"):
            return 200, {"concurrent": 0}
        if path == "/v1/trending":
            return 200, {"items": []}
        account = account_of(token) if token else ""
        return self._decide(path, json.loads(body) if body else {}, account)

    def _decide(self, path: str, said: Line, account: str) -> tuple[int, Line]:
        self.bodies.append(said)
        if path.endswith("/stop"):
            account = account or account_of(said["token"])
            self._leases[account].pop(path.split("/")[3], None)
            return 204, {}
        edge = path == "/v1/edge/authorize"
        session = said.get("session") or said.get("device") or "box"
        leases = self._leases[account or said.get("account", "")]
        held = [each for each, until in leases.items() if until > self.now and each != session]
        if len(held) >= 2:
            if path.endswith("/takeover"):
                leases.pop(held[0])
            elif edge:
                return 403, {}
            else:
                retry = min(leases[each] for each in held)
                return 200, {
                    "decision": "block",
                    "reason": "limit_reached",
                    "retry_at": retry,
                    "conflicts": [{"session": held[0]}],
                }
        if path != "/v1/check":
            leases[session] = self.now + LIFETIME_MS
        return (
            (204, {})
            if edge
            else (200, {"decision": "allow", "next_heartbeat_ms": 10_000, "last_seq": said.get("seq")})
        )


def simulated(path: Path, engine: Engine | None = None, **options: Any) -> list[Line]:
    """The lines of a run against that engine."""
    wanted = Options(**({"seed": 5, "minutes": 8.0, "households": 60, "surges": 0} | options))

    async def whole() -> None:
        with Truth(path) as truth:
            await Run(wanted, engine or Engine(), truth, SECRET).whole()

    asyncio.run(whole())
    return [json.loads(line) for line in path.read_text().splitlines()]


def of(lines: list[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["type"] == kind]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine()


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> list[Line]:
    """Long and large enough that everything happens."""
    return simulated(tmp_path_factory.mktemp("simulated") / "truth", engine, minutes=30.0, households=150)


@pytest.fixture(scope="module")
def surged(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    return simulated(tmp_path_factory.mktemp("surged") / "truth", households=5, surges=None, minutes=4.0)


def overlaps(spans: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    spans.sort()
    for before, after in itertools.pairwise(spans):
        if after[0] < before[1]:
            yield before, after


class TestSeeds:
    def test_the_same_seed_gives_the_same_truth(self, tmp_path: Path) -> None:
        assert simulated(tmp_path / "one") == simulated(tmp_path / "two")

    def test_another_seed_gives_another(self, tmp_path: Path) -> None:
        one, two = simulated(tmp_path / "one"), simulated(tmp_path / "two", seed=6)
        assert of(one, "household") != of(two, "household")

    @pytest.mark.parametrize("number", [3, 17, 42])
    def test_a_household_alone_does_what_it_does_among_all(self, tmp_path: Path, number: int) -> None:
        account = f"household-{number}"
        together = [line for line in simulated(tmp_path / "all") if line.get("account") == account]
        alone = [line for line in simulated(tmp_path / "alone", only=account) if "account" in line]
        assert alone == together
        assert len(of(alone, "request")) > 10

    def test_so_does_a_member_of_a_crowd(self, tmp_path: Path, surged: list[Line]) -> None:
        account = f"crowd-{surges.SURGES}-{surges.BASE + 3}"
        alone = simulated(tmp_path / "alone", households=5, surges=None, minutes=4.0, only=account)
        assert [line for line in alone if "account" in line] == [
            line for line in surged if line.get("account") == account
        ]
        assert of(alone, "play")


class TestTruth:
    def test_the_scoreboard_can_read_it(self, tmp_path: Path) -> None:
        simulated(tmp_path / "truth", minutes=2.0)
        truth = Read.read(tmp_path / "truth")
        assert truth.seed == 5
        assert len(truth.households) == 60
        assert truth.end.counts["call heartbeat"] == sum(
            r.call == "heartbeat" for each in truth.requests.values() for r in each
        )

    def test_a_machine_does_one_thing_at_a_time(self, lines: list[Line]) -> None:
        spans = defaultdict(list)
        for play in of(lines, "play"):
            assert play["ended_at"] > play["started_at"]
            spans[play["account"], play["machine"]].append((play["started_at"], play["ended_at"]))
        assert [pair for each in spans.values() for pair in overlaps(each)] == []

    def test_a_view_has_played_what_its_stretches_have(self, lines: list[Line]) -> None:
        played: Counter[tuple[str, str, str]] = Counter()
        for play in of(lines, "play"):
            if play["state"] == "playing":
                assert play["to_position"] - play["from_position"] == pytest.approx(
                    (play["ended_at"] - play["started_at"]) / 1000, abs=0.26
                )
                played[play["account"], play["session"], play["content"]] += play["ended_at"] - play["started_at"]
        said: Counter[tuple[str, str, str]] = Counter()
        views = Counter((view["account"], view["session"], view["content"]) for view in of(lines, "view"))
        for view in of(lines, "view"):
            said[view["account"], view["session"], view["content"]] += view["played_ms"]
        assert set(played) <= set(views)
        # A title ends a fraction of a tick before the tick that notices.
        assert all(abs(played[key] - said[key]) <= 250 * views[key] for key in views)

    def test_honest_households_keep_to_their_plan(self, lines: list[Line]) -> None:
        honest = {line["account"]: line["limit"] for line in of(lines, "household") if line["honest"]}
        most: Counter[str] = Counter()
        edges: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for play in of(lines, "play"):
            edges[play["account"]] += [(play["started_at"], 1), (play["ended_at"], -1)]
        for account, each in edges.items():
            there = 0
            for _, step in sorted(each):
                there += step
                most[account] = max(most[account], there)
        assert {account for account, limit in honest.items() if most[account] > limit} == set()
        assert {a for a in most if a not in honest and most[a] > PLANS[_plan(lines, a)].limit}, "and the cheats do not"

    def test_what_reached_the_server_is_numbered(self, lines: list[Line]) -> None:
        numbers = defaultdict(list)
        for request in of(lines, "request"):
            assert request["sent_at"] <= request["at"]
            assert request["late"] == (request["sent_at"] < request["at"]) or request["repeated"]
            numbers[request["account"]].append(request["n"])
        assert all(each == list(range(1, len(each) + 1)) for each in numbers.values())

    def test_the_last_word_that_was_heard(self, lines: list[Line]) -> None:
        views = [view for view in of(lines, "view") if view["admitted"]]
        assert len(views) > 500
        for view in views:
            assert view["delivered"] > 0
            assert view["started_at"] <= view["last_delivered_at"] <= view["ended_at"] + network.LATE_MS[1] + 250

    def test_samples_count_those_who_play(self, lines: list[Line]) -> None:
        plays = [play for play in of(lines, "play") if play["state"] == "playing"]
        samples = of(lines, "sample")
        assert len(samples) == 60
        for sample in samples[1::20]:
            at = sample["at"]
            playing = Counter(p["content"] for p in plays if p["started_at"] <= at < p["ended_at"])
            assert sample["viewers"] == dict(playing)


def _plan(lines: list[Line], account: str) -> str:
    return next(str(line["plan"]) for line in of(lines, "household") if line["account"] == account)


class TestPopulation:
    def test_everything_happens(self, lines: list[Line]) -> None:
        assert {play["state"] for play in of(lines, "play")} == {
            "starting", "playing", "paused", "buffering", "seeking", "ad",
        }  # fmt: skip
        assert {view["end"] for view in of(lines, "view")} == {
            "stop", "power_off", "sleep", "zap", "finished", "error", "blocked", "crash", "still_running",
        }  # fmt: skip
        requests = of(lines, "request")
        assert {r["call"] for r in requests} == {"heartbeat", "edge", "signal", "stop", "check", "takeover"}
        assert {r["evidence"] for r in requests if r["call"] == "signal"} == {"licence", "manifest", "segment"}
        for flag in ("late", "repeated", "lost_answer"):
            assert any(r[flag] for r in requests), flag
        assert any(r["attempt"] == 2 for r in requests + of(lines, "lost"))
        assert {line["plan"] for line in of(lines, "household")} == set(PLANS)
        assert any(line["completed"] for line in of(lines, "view"))

    def test_heartbeats_come_every_interval_and_at_once(self, lines: list[Line]) -> None:
        """A player that plays is never silent for longer than an interval."""
        sent: dict[str, list[int]] = defaultdict(list)
        for request in of(lines, "request") + of(lines, "lost"):
            if request["call"] == "heartbeat" and not request["repeated"]:
                sent[request["session"]].append(request["sent_at"])
        for play in of(lines, "play"):
            if (
                play["state"] == "playing"
                and not play["session"].startswith("edge:")
                and play["ended_at"] < lines[-1]["at"]
            ):
                times = sorted(t for t in sent[play["session"]] if play["started_at"] <= t <= play["ended_at"])
                assert times[0] == play["started_at"]
                steps = zip(times, [*times[1:], play["ended_at"]], strict=True)
                assert max(b - a for a, b in steps) <= 10_000

    def test_clocks_are_wrong_by_hours(self, lines: list[Line], engine: Engine) -> None:
        skewed = [abs(d["skew_ms"]) for line in of(lines, "household") for d in line["devices"]]
        assert max(skewed) > 3_600_000
        assert sorted(skewed)[len(skewed) // 2] == 0
        told = [body["sent_at"] for body in engine.bodies if "sent_at" in body]
        assert max(told) > engine.now + 3_600_000

    def test_more_people_watch_in_the_evening(self) -> None:
        monday = 2_209_075_200_000
        hours = [curves.watching(monday + hour * 3_600_000) for hour in range(24)]
        assert hours.index(max(hours)) == 20
        assert max(hours) > 3 * min(hours)
        assert curves.watching(monday + 5 * curves.DAY_MS) > hours[0]

    def test_links_lose_and_delay_as_they_say(self) -> None:
        rng, link = random.Random(1), network.LINKS[-1][1]
        fates = Counter(
            "lost"
            if f.lost
            else "answer"
            if f.answer_lost
            else "late"
            if f.delay_ms
            else "repeat"
            if f.repeat_ms
            else ""
            for f in (link.fate(rng) for _ in range(20_000))
        )
        for name, share in (
            ("lost", link.loss),
            ("answer", link.answer_loss),
            ("late", link.late),
            ("repeat", link.repeat),
        ):
            assert fates[name] / 20_000 == pytest.approx(share, rel=0.2)


class TestSurges:
    def test_as_many_come_as_is_said(self, surged: list[Line]) -> None:
        shows = of(surged, "surge")
        assert [(s["kind"], s["decoy"]) for s in shows] == [("live", False), ("live", True)]
        for show in shows:
            plays = [p for p in of(surged, "play") if p["content"] == show["content"] and p["state"] == "playing"]
            before = sum(p["started_at"] < show["from"] <= p["ended_at"] for p in plays)
            after = sum(p["started_at"] < show["from"] + 60_000 <= p["ended_at"] for p in plays)
            assert before == show["viewers_before"] >= 50
            assert after / before == pytest.approx(show["factor"], abs=0.01)
            assert show["factor"] >= 3

    def test_a_decoy_was_there_a_week_before_and_a_surge_was_not(self, surged: list[Line]) -> None:
        (prelude, part), (start, _) = of(surged, "run")[0]["parts"]
        assert prelude // 3_600_000 + 168 == start // 3_600_000
        for show in of(surged, "surge"):
            early = {
                p["account"] for p in of(surged, "play") if p["content"] == show["content"] and p["ended_at"] < part
            }
            assert len(early) == (round(show["factor"] * surges.BASE) if show["decoy"] else surges.BASE)

    def test_real_time_has_no_week_before(self) -> None:
        shows = surges.planned(1, 0, 600_000, None, prelude=None)
        assert [show.decoy for show in shows] == [False, False]

    def test_none_if_none_are_wanted(self) -> None:
        assert surges.planned(1, 0, 600_000, 0, prelude=0) == []

    def test_a_long_run_has_all_of_them_in_its_first_hour(self) -> None:
        shows = surges.planned(1, 0, 10 * 3_600_000, None, prelude=-1)
        assert max(show.until for show in shows) <= 3_600_000
        assert Counter((show.decoy, show.prelude) for show in shows) == {
            (False, False): 4, (False, True): 4, (True, False): 2, (True, True): 2,
        }  # fmt: skip


class TestCommand:
    @pytest.mark.parametrize(
        ("words", "named"),
        [
            ([], "--base"),
            (["--base", "engine:80"], "--base"),
            (["--base", "http://x", "--minutes", "0"], "--minutes"),
            (["--base", "http://x", "--minutes", "nan"], "--minutes"),
            (["--base", "http://x", "--minutes", "0.001"], "--minutes"),
            (["--base", "http://x", "--households", "-1"], "--households"),
            (["--base", "http://x", "--surges", "21"], "--surges"),
            (["--base", "http://x", "--start", "1234"], "--start"),
            (["--base", "http://x", "--start", "2209075200000", "--time", "real"], "--start"),
            (["--base", "http://x", "--seed", "one"], "--seed"),
        ],
    )
    def test_a_wrong_argument_is_named(
        self, words: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PULSEGATE_SECRET", SECRET)
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert f"error: {named}" in capsys.readouterr().err.replace("argument ", "")

    def test_without_the_secret(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("PULSEGATE_SECRET", raising=False)
        with pytest.raises(SystemExit):
            main(["--base", "http://x"])
        assert "PULSEGATE_SECRET" in capsys.readouterr().err

    def test_no_engine_there(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PULSEGATE_SECRET", SECRET)
        assert main(["--base", "http://127.0.0.1:1", "--minutes", "1"]) == 1
        assert "does not answer" in capsys.readouterr().err

    def test_no_such_household(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PULSEGATE_SECRET", SECRET)
        assert main(["--base", "http://127.0.0.1:1", "--only", "household-9999"]) == 2
        assert "household-9999" in capsys.readouterr().err

    def test_the_plans_it_needs(self, tmp_path: Path) -> None:
        assert main(["--write-plans", str(tmp_path / "plans.toml")]) == 0
        assert (tmp_path / "plans.toml").read_text() == toml()
        assert main(["--write-plans", str(tmp_path / "nowhere" / "plans.toml")]) == 1

    def test_by_the_main_command(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("PULSEGATE_SECRET", raising=False)
        words = ["simulate", "--data", str(tmp_path), "--base", "http://127.0.0.1:1", "--minutes", "1"]
        assert cli.main(words) == 1
        assert "no secret" in capfd.readouterr().err
        (tmp_path / "secret").write_text(SECRET)
        assert cli.main(words) == 1
        assert "does not answer" in capfd.readouterr().err

    def test_an_engine_of_the_other_time_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RunError, match="--time virtual"):
            simulated(tmp_path / "one", Engine(virtual=False))
        with pytest.raises(RunError, match="--time real"):
            simulated(tmp_path / "two", virtual=False)

    def test_a_clock_that_is_further_already(self, tmp_path: Path) -> None:
        engine = Engine()
        engine.now = 4_000_000_000_000
        with pytest.raises(RunError, match="--start"):
            simulated(tmp_path / "truth", engine)

    def test_real_time_is_paced_by_the_clock_on_the_wall(self, tmp_path: Path) -> None:
        lines = simulated(tmp_path / "truth", Engine(virtual=False), virtual=False, minutes=0.03, households=100)
        (run,) = of(lines, "run")
        assert run["parts"][0][1] - run["parts"][0][0] == 1_000
        assert of(lines, "request")


def test_a_pool_that_closes_leaves_no_connection_that_was_still_opening() -> None:
    async def go() -> None:
        ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.read() == b""
            ended.set()

        async with listening(serve) as (host, port):
            pool = Pool(f"http://{host}:{port}")
            answer = pool.send("GET", "/")
            pool.close()
            assert (await answer).status == 0
            await ended.wait()
            assert (await pool.send("GET", "/")).status == 0

    asyncio.run(asyncio.wait_for(go(), 30))


class TestRealEngine:
    def test_a_minute_against_a_deployment(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PULSEGATE_SECRET", bench_rig.SECRET)
        path = tmp_path / "truth"
        with deployment("node", toml()) as deployed:
            words = ["--base", deployed.base, "--seed", "3", "--minutes", "1", "--households", "25", "--surges", "0"]
            assert main([*words, "--truth", str(path)]) == 0
            truth = Read.read(path)
            assert deployed.now() == truth.run.spans[-1][1]
            records = asyncio.run(_views(deployed))
        assert "0 failed" in capsys.readouterr().out
        answers = [r for each in truth.requests.values() for r in each]
        assert {r.status for r in answers} <= {200, 204, 403}
        assert sum(r.decision == "allow" for r in answers) > 100
        assert not any(r.degraded for r in answers)
        admitted = {
            view.session for each in truth.views.values() for view in each if not view.session.startswith("edge:")
        }
        assert admitted == {str(r["session"]) for r in records if not str(r["session"]).startswith("~")}
        concurrent = [each.concurrent for each in truth.observed if each.concurrent]
        assert sum(concurrent[-1].values()) > 5


async def _views(deployed: Deployment) -> list[Line]:
    pool = Pool(deployed.base)
    try:
        now = deployed.now()
        answer = await pool.send("GET", f"/v1/views?from={now - 3_600_000}&to={now}&limit=500", token=deployed.token)
        return list(json.loads(answer.body)["items"])
    finally:
        pool.close()
