"""Chaos: players beat and send events while everything behind the API is killed at random; afterwards nothing may be
missing, twice, or ahead of the truth.

    python -m tests.chaos --seconds 300 --seed 7

`run` is the whole of it, short in CI (`tests/test_chaos.py`) and long by `make chaos`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from engine.embedded import DURABLE, Server
from engine.events import order
from engine.keys import Keys
from engine.lake import Lake
from tests.harness import PARTITIONS
from tests.servers import ROOT, ApiProcess, Child, player, service, wait_for

QUICK = {"interval_ms": 1000, "lifetime_ms": 2500, "gone_after_ms": 2000, "lake_roll_s": 0.5, "log_keep_s": 86_400}
"""Leases of 2.5 s, so that views end while we watch; the log keeps all, to be compared with the lake."""
PREFIX = "chaos"
DISASTERS = ("truncated", "replica")
"""How the session Redis loses its tail: its file is cut short, or a replica is promoted that lagged."""
SETTLE_S = 60.0
TAIL_S = 3.0
"""What a truncated file may have lost: the second that was not yet on disk, and the bytes cut off."""
TAIL_BYTES = 60_000


Beat = tuple[str, str, int]
"""Account, session, seq."""


@dataclass
class Truth:
    """What the API has accepted."""

    beats: dict[Beat, float] = field(default_factory=dict)
    """When each was acknowledged, on the monotonic clock."""
    events: dict[tuple[str, str], float] = field(default_factory=dict)
    """Account and the id that the player gave → when it was acknowledged."""
    positions: dict[tuple[str, str], tuple[float, Beat]] = field(default_factory=dict)
    """Account and content → where it was seen last, and by which heartbeat."""
    seen: dict[tuple[str, str], set[float]] = field(default_factory=dict)
    """Account and content → everywhere it was seen."""
    unsure: set[Beat] = field(default_factory=set)
    """Heartbeats whose answer was lost or degraded, or that the session Redis may have forgotten."""
    unsure_events: set[tuple[str, str]] = field(default_factory=set)

    def forget_since(self, moment: float) -> None:
        """What was acknowledged after that may be gone."""
        self.unsure |= {beat for beat, at in self.beats.items() if at >= moment}
        self.unsure_events |= {event for event, at in self.events.items() if at >= moment}


class Receiver:
    """A webhook's receiver: counts deliveries by event id, and is moody."""

    def __init__(self, random_: random.Random) -> None:
        self.seen: Counter[str] = Counter()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if random_.random() < 0.1:
                    self.send_response(503)
                else:
                    receiver.seen.update(item["id"] for item in body["items"])
                    self.send_response(204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class Player:
    """One device of one account; every player has an account of its own, so that nobody is blocked."""

    def __init__(self, number: int, base: str, truth: Truth, random_: random.Random) -> None:
        self._account = f"account-{number}"
        self._token = player(self._account)
        self._truth, self._random, self._base = truth, random_, base
        self._session, self._seq = 0, 0
        self._content, self._position = f"film-{number % 7}", 600.0
        self._events = 0

    def act(self, client: httpx.Client) -> None:
        chance = self._random.random()
        if chance < 0.03:
            self._session, self._seq = self._session + 1, 0
        elif chance < 0.06:
            self._content, self._position = f"film-{self._random.randrange(7)}", 600.0 + self._random.randrange(100)
        elif chance < 0.10:
            time.sleep(0.02)
        if chance > 0.8:
            self._send(client)
        self._beat(client)

    def _beat(self, client: httpx.Client) -> None:
        session = f"s{self._session}"
        self._position += 1
        body = {
            "session": session, "device": "tv", "content": self._content, "kind": "vod", "state": "playing",
            "position": self._position, "duration": 50_000, "seq": self._seq,
        }  # fmt: skip
        beat = self._account, session, self._seq
        self._seq += 1
        try:
            answer = self._post(client, "/v1/heartbeats", body)
        except httpx.HTTPError:
            self._truth.unsure.add(beat)
            return
        assert answer.status_code == 200, answer.text
        said = answer.json()
        if said["degraded"]:
            self._truth.unsure.add(beat)
            return
        assert said["decision"] == "allow", said
        if not said["duplicate"]:
            self._truth.beats[beat] = time.monotonic()
            place = self._account, self._content
            self._truth.positions[place] = self._position, beat
            self._truth.seen.setdefault(place, set()).add(self._position)

    def _send(self, client: httpx.Client) -> None:
        """A batch of tracking events, sometimes twice, as a player that got no answer does."""
        names = [f"e{self._events + n}" for n in range(self._random.randint(1, 4))]
        self._events += len(names)
        events = [{"type": "custom", "id": name, "data": {"n": 1.0}} for name in names]
        for _ in range(self._random.choice((1, 1, 2))):
            while True:
                answer = self._post(client, "/v1/events", {"session": f"s{self._session}", "events": events})
                if answer.status_code != 503:
                    break
                time.sleep(0.1)
            assert answer.status_code == 202, answer.text
        self._truth.events |= {(self._account, name): time.monotonic() for name in names}

    def _post(self, client: httpx.Client, path: str, body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token}"}
        return client.post(self._base + path, json=body, headers=headers)


class Chaos:
    """The deployment under test, its players and its assassin."""

    def __init__(
        self, directory: Path, seed: int, players: int, say: Callable[[str], None], disaster: str = ""
    ) -> None:
        self._disaster, self._tail_lost = disaster, bool(disaster)
        self._random, self._say, self._seed = random.Random(seed), say, seed
        self._directory = directory
        self._session = Server(directory / "session", DURABLE)
        self._log = Server(directory / "log", DURABLE)
        self._receiver = Receiver(random.Random(seed + 1))
        self._lake = directory / "lake"
        self.truth = Truth()
        self._players = players
        self.killed: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Raises AssertionError that says what was lost, repeated or wrong."""
        self._session.start()
        self._log.start()
        if self._disaster == "replica":
            self._replica = Server(
                self._directory / "replica", DURABLE | {"replicaof": f"127.0.0.1 {self._session.port}"}
            )
            self._replica.start()
        settings = QUICK | {
            "log_redis_url": self._log.url, "lake_dir": self._lake, "webhook_url": self._receiver.url,
            "webhook_secret": "s" * 40, "worker_processes": 2,
        }  # fmt: skip
        api = ApiProcess(self._session.url, self._directory, prefix=PREFIX, **settings)
        cli = [sys.executable, "-m", "engine.cli"]
        self._workers = Child([*cli, "worker"], self._directory / "worker.log", api.env)
        self._scheduler = Child([*cli, "scheduler"], self._directory / "scheduler.log", api.env)
        try:
            with api, self._workers, self._scheduler:
                self._storm(api, seconds)
                # While views still go on, and when all have ended.
                self._check_audience(api)
                self._settle(api)
                self._check_audience(api)
                self._check(api)
        finally:
            self._receiver.close()
            self._log.stop()
            self._session.stop()

    # the storm

    def _storm(self, api: ApiProcess, seconds: float) -> None:
        until = time.monotonic() + seconds
        failures: list[BaseException] = []

        def play(numbers: range) -> None:
            players = [Player(n, api.base, self.truth, random.Random(self._seed * 1000 + n)) for n in numbers]
            try:
                with httpx.Client(timeout=10, trust_env=False) as client:
                    while time.monotonic() < until and not failures:
                        for each in players:
                            each.act(client)
            except BaseException as error:
                failures.append(error)

        half = self._players // 2
        threads = [threading.Thread(target=play, args=(r,)) for r in (range(half), range(half, self._players))]
        for thread in threads:
            thread.start()
        half_time = time.monotonic() + seconds / 2
        while time.monotonic() < until and not failures:
            time.sleep(self._random.uniform(0.2, 1.2))
            self._strike()
            if self._disaster and time.monotonic() >= half_time:
                self._lose_tail(self._disaster)
                self._disaster = ""
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def _strike(self) -> None:
        victim = self._random.choices(("worker", "scheduler", "all workers", "log"), (6, 2, 2, 2))[0]
        self.killed[victim] += 1
        if victim == "scheduler":
            self._scheduler.kill()
            self._scheduler.start()
        elif victim == "log":
            self._log.kill()
            self._log.start()
        else:
            found = _children(self._workers.pid)
            for pid in found if victim == "all workers" else found[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _lose_tail(self, how: str) -> None:
        """The session Redis dies and comes back without the last it had acknowledged."""
        self.killed[f"session Redis, {how}"] += 1
        lost_since = time.monotonic() - TAIL_S
        if how == "truncated":
            self._session.kill()
            file = max(self._session.directory.glob("appendonlydir/*.incr.aof"))
            os.truncate(file, max(0, file.stat().st_size - TAIL_BYTES))
        else:
            # The replica is promoted a second before the primary dies; what the primary did in that second is gone.
            lost_since = self._promote()
            time.sleep(1)
            self._session.kill()
            self._replica.stop()
            self._session.directory = self._replica.directory
        self.truth.forget_since(lost_since)
        self._session.start()
        self.truth.forget_since(lost_since)

    def _promote(self) -> float:
        """When the replica had followed at least so far, on the monotonic clock."""
        with Redis.from_url(self._session.url) as primary, Redis.from_url(self._replica.url) as replica:
            wait_for(lambda: primary.info("replication")["connected_slaves"] == 1, "the replica follows")
            followed = time.monotonic() - 0.5
            replica.replicaof("NO", "ONE")
            return followed

    # afterwards

    def _settle(self, api: ApiProcess) -> None:
        """Until every view has ended and everything has arrived everywhere."""
        if not self._log.running:
            self._log.start()

        said: list[str] = []

        def quiet() -> bool:
            # Twice: what was mirrored after the first had looked for lag is seen by the second.
            said.append(self._unsettled(api))
            return said[-2:] == ["", ""]

        try:
            wait_for(quiet, "everything has arrived everywhere", SETTLE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {said[-1]}") from None

    def _unsettled(self, api: ApiProcess) -> str:
        """What has not arrived yet; '' if everything has."""
        found = subprocess.run(
            [sys.executable, "-m", "engine.cli", "status", "--json"], env=api.env, cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if found.returncode:
            return found.stderr
        lags = {lag["name"]: lag["events"] for lag in json.loads(found.stdout)["lags"]}
        missing = {"resume", "views", "lake", "webhook"} - lags.keys()
        if missing or any(lags.values()):
            return f"lag {lags}, never seen {missing}"
        if not self._outboxes_mirrored():
            return "an outbox is not mirrored"
        running = [view for n in range(self._players) for view in self._views(api, f"account-{n}") if view["running"]]
        return f"{len(running)} views go on: {running[:3]}" if running else ""

    def _outboxes_mirrored(self) -> bool:
        with Redis.from_url(self._session.url) as session, Redis.from_url(self._log.url) as log:
            mirrored: Any = log.hgetall(f"{PREFIX}:{{log}}:mirrored")
            lasts = {b"%d" % p: session.xrevrange(key, count=1) for p, key in self._keys("outbox")}
            return all(
                not last or order(last[0][0].decode()) <= order(mirrored.get(p, b"0-0").decode())
                for p, last in lasts.items()
            )

    def _keys(self, what: str) -> list[tuple[int, str]]:
        keys = Keys(PREFIX, PARTITIONS)
        return [(p, keys.outbox(p) if what == "outbox" else keys.log(p, what)) for p in range(PARTITIONS)]

    def _views(self, api: ApiProcess, account: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        cursor = ""
        while True:
            answer = self._answer(api, "/v1/views", account=account, limit=500, cursor=cursor)
            assert answer.status_code == 200, (account, answer.text)
            found += answer.json()["items"]
            cursor = answer.json()["next"]
            if not cursor:
                return found

    @staticmethod
    def _answer(api: ApiProcess, path: str, **params: Any) -> httpx.Response:
        """The answer, asked for again while the API says that it cannot reach a Redis in time: the machine is busy."""
        answers: list[httpx.Response] = []

        def answered() -> bool:
            answers.append(api.get(path, params=params, token=service("read")))
            return answers[-1].status_code != 503

        wait_for(answered, f"{path} is answered", SETTLE_S)
        return answers[-1]

    def _check_audience(self, api: ApiProcess) -> None:
        """Sessions, partitions and totals agree; after a lost tail as soon as all partitions have been recounted."""
        said: list[str] = []

        def agreed() -> bool:
            command = [sys.executable, "-m", "engine.cli", "verify", "audience"]
            found = subprocess.run(command, env=api.env, cwd=ROOT, capture_output=True, text=True, check=False)
            said[:] = [found.stdout + found.stderr]
            return found.returncode == 0

        try:
            wait_for(agreed, "the audience is counted right", SETTLE_S)
        except AssertionError as error:
            raise AssertionError(f"{error}; {said[0]}") from None

    def _check(self, api: ApiProcess) -> None:
        in_log = Counter(self._log_ids())
        events = list(Lake(self._lake).read())
        in_lake = Counter(event.id for event in events)
        assert in_lake == in_log, f"log and lake differ: {_differences(in_log, in_lake)}"
        assert not [id_ for id_, n in in_lake.items() if n > 1]

        beats = Counter((e.account, e.session, e.seq) for e in events if e.type == "heartbeat")
        assert not [beat for beat, n in beats.items() if n > 1], "a heartbeat is there twice"
        missing = self.truth.beats.keys() - beats.keys() - self.truth.unsure
        assert not missing, f"{len(missing)} heartbeats are lost: {sorted(missing)[:5]}"
        strangers = beats.keys() - self.truth.beats.keys() - self.truth.unsure
        assert not strangers, f"heartbeats nobody sent: {sorted(strangers)[:5]}"

        sent = Counter((e.account, json.loads(bytes(e.data))["id"]) for e in events if e.type == "custom")
        told = Counter(self.truth.events.keys())
        sure = told - Counter(self.truth.unsure_events)
        assert not sure - sent, f"tracking events are lost: {_differences(sure, sent)}"
        assert not sent - told, f"tracking events are there twice: {_differences(told, sent)}"

        self._check_views(api, events)
        self._check_resume(api)
        wanted = {e.id for e in events if e.topic == "events"}
        assert wanted <= self._receiver.seen.keys(), (
            f"{len(wanted - self._receiver.seen.keys())} never reached the webhook"
        )
        assert self._receiver.seen.keys() <= in_lake.keys()
        self._check_replay(api)
        self._say(
            f"seed {self._seed}: {len(events):,} events, {len(self.truth.beats):,} heartbeats, {len(self.truth.events):,} "
            f"tracking events, killed {dict(self.killed)}"
        )

    def _log_ids(self) -> list[str]:
        with Redis.from_url(self._log.url) as log:
            streams = [(p, key) for topic in ("heartbeats", "events") for p, key in self._keys(topic)]
            return [f"{p}-{id_.decode()}" for p, key in streams for id_, _ in log.xrange(key)]

    def _check_views(self, api: ApiProcess, events: list[Any]) -> None:
        ends = Counter((e.account, e.session, e.started_at, e.revision) for e in events if e.type == "view_end")
        twice = [end for end, n in ends.items() if n > 1]
        # A session Redis that has forgotten an end may tell it again, under the same event_id.
        assert not twice or self._tail_lost, f"ended twice: {twice[:5]}"
        ids = {e.export_id for e in events if e.type == "view_end"}
        assert len(ids) == len(ends), "one event_id for each end"
        started = {(e.account, e.session, e.started_at) for e in events if e.type == "view_start"}
        ended = {end[:3] for end in ends}
        assert started == ended, (
            f"started and never ended: {sorted(started - ended)[:5]}, ended only: {sorted(ended - started)[:5]}"
        )
        records = Counter(
            (view["account"], view["session"], view["started_at"])
            for n in range(self._players)
            for view in self._views(api, f"account-{n}")
        )
        assert records == Counter(started), _differences(Counter(started), records)

    def _check_resume(self, api: ApiProcess) -> None:
        for (account, content), (position, beat) in self.truth.positions.items():
            found = self._answer(api, f"/v1/resume/{content}", account=account)
            if beat in self.truth.unsure and found.status_code == 404:
                continue
            assert found.status_code == 200, (account, content, found.text)
            got = found.json()["position"]
            # Where the last heartbeat may be lost, the viewer goes on from one before it.
            good = got in self.truth.seen[account, content] if beat in self.truth.unsure else got == position
            assert good, f"{account} {content}: resumes at {got}, was seen at {position}"

    def _check_replay(self, api: ApiProcess) -> None:
        replayed = subprocess.run(
            [sys.executable, "-m", "engine.cli", "replay"],
            env=api.env,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def _differences(left: Counter[Any], right: Counter[Any]) -> str:
    return f"missing {sorted((left - right).items())[:5]}, too many {sorted((right - left).items())[:5]}"


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Kills everything behind the API at random, and counts afterwards.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--players", type=int, default=40)
    parser.add_argument("--disaster", choices=("", *DISASTERS), default="", help="at half time, to the session Redis")
    args = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="pulsegate-chaos-")
    print(f"seed {args.seed}, logs in {directory}", flush=True)
    Chaos(Path(directory), args.seed, args.players, print, args.disaster).run(args.seconds)


if __name__ == "__main__":
    main()
