"""Whole processes: several API processes at once, kill −9, Redis away, workers taking over, `pulsegate run`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from redis import Redis

from engine.embedded import DURABLE, Server, free_port
from engine.events import TOPICS
from engine.keys import Keys
from tests.harness import PARTITIONS, PLANS, start_cluster
from tests.servers import ROOT, ApiProcess, Child, clean_env, environment, player, service, wait_for

DEVICES = 200
QUICK = {"interval_ms": 1000, "lifetime_ms": 2500, "gone_after_ms": 2000}
"""Settings under which a lease lives 2.5 s, so that tests of passing time are short."""
PATIENT = {"redis_timeout_ms": 8000, "account_inflight_max": 1000}
"""The machine may be slow, and one account may ask at once as often as the test does."""
"""For tests of who is admitted: on a crowded machine a decision made without Redis would say nothing about it."""


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A durable server that the test may stop, pause and kill."""
    server = Server(tmp_path / "redis", DURABLE)
    server.start()
    yield server
    if server.running:
        os.kill(server.pid, signal.SIGCONT)
    server.stop()


def events(server: Server, prefix: str, *types: str) -> list[dict[str, Any]]:
    """What happened, wherever it is by now: in an outbox, in the log, or in both."""
    keys = Keys(prefix, PARTITIONS)
    found: dict[tuple[int, bytes], dict[str, Any]] = {}
    with Redis.from_url(server.url) as client:
        for p in range(PARTITIONS):
            for stream in (keys.outbox(p), *(keys.log(p, topic) for topic in TOPICS)):
                found |= {(p, id_): orjson.loads(fields[b"e"]) for id_, fields in client.xrange(stream)}
    return [event for _, event in sorted(found.items()) if not types or event["type"] in types]


class TestNeverOverTheLimit:
    @pytest.mark.parametrize("kind", ["single", "cluster"])
    def test_200_first_heartbeats_at_once_admit_exactly_n(
        self, kind: str, request: pytest.FixtureRequest, tmp_path: Path, prefix: str
    ) -> None:
        servers = request.getfixturevalue(kind)
        url = (servers if kind == "single" else servers[0]).url
        with (
            ApiProcess(url, tmp_path, prefix=prefix, **PATIENT) as one,
            ApiProcess(url, tmp_path, prefix=prefix, **PATIENT) as two,
            ApiProcess(url, tmp_path, prefix=prefix, **PATIENT) as three,
        ):
            for limit in range(1, 6):
                answers = asyncio.run(self.storm([one.base, two.base, three.base], f"final-{limit}", limit))
                assert len(answers) == DEVICES
                assert not any(answer["degraded"] for answer in answers)
                assert sum(answer["decision"] == "allow" for answer in answers) == limit
                assert len(one.sessions(f"final-{limit}")) == limit

    @staticmethod
    async def storm(bases: list[str], account: str, limit: int) -> list[dict[str, Any]]:
        token = player(account, max_streams=limit)
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(limits=limits, timeout=30, trust_env=False) as client:

            async def first(n: int) -> dict[str, Any]:
                beat = {
                    "session": f"s{n}",
                    "device": f"d{n}",
                    "content": "final",
                    "kind": "live",
                    "state": "playing",
                    "seq": 0,
                }
                headers = {"Authorization": f"Bearer {token}"}
                answer = await client.post(f"{bases[n % len(bases)]}/v1/heartbeats", json=beat, headers=headers)
                return dict(answer.json())

            return list(await asyncio.gather(*(first(n) for n in range(DEVICES))))


class TestApiAway:
    def test_killed_and_back_blocks_nobody_and_ends_no_view(
        self, own_server: Server, tmp_path: Path, prefix: str
    ) -> None:
        token = player("ann", max_streams=1)
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api:
            lease = api.beat(token, "s1", "d1")["lease_expires_at"]
            api.kill()
        wait_for(lambda: time.time() * 1000 > lease + 1000, "the lease has long run out")
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api:
            assert api.beat(token, "s2", "d2")["decision"] == "block", "the viewer of before is still reconnecting"
            assert api.beat(token, "s1", "d1")["decision"] == "allow"
        assert events(own_server, prefix, "view_end") == []

    def test_one_of_two_killed(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        token = player("ann", max_streams=1)
        with (
            ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as one,
            ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as two,
        ):
            one.beat(token, "s1", "d1")
            one.kill()
            keys = Keys(prefix, PARTITIONS)
            with Redis.from_url(own_server.url) as client:
                wait_for(lambda: client.hget(keys.outage, "ended"), "the other noticed")
            assert two.beat(token, "s2", "d2")["decision"] == "block"
            assert two.beat(token, "s1", "d1")["decision"] == "allow"

    def test_an_orderly_stop_is_no_outage(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        with ApiProcess(own_server.url, tmp_path, prefix=prefix) as one:
            with ApiProcess(own_server.url, tmp_path, prefix=prefix) as two:
                assert two.stop() == 0
            keys = Keys(prefix, PARTITIONS)
            with Redis.from_url(own_server.url) as client:
                wait_for(lambda: client.zcard(keys.processes) == 1, "it has signed off")
                last = float(client.hget(keys.outage, "last") or 0)
                wait_for(lambda: float(client.hget(keys.outage, "last") or 0) > last + 2000, "others go on announcing")
                assert client.hget(keys.outage, "ended") is None
            assert one.get("/readyz").json()["api_processes"] == 1


class TestRedisAway:
    def test_fails_open_quickly_and_recovers_by_itself(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        token = player("ann", max_streams=1)
        spool = tmp_path / "spool"
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, spool_dir=spool, **QUICK) as api:
            assert api.beat(token, "s1", "d1", seq=1)["degraded"] is False
            own_server.kill()
            took = []
            for n in range(2, 12):
                started = time.perf_counter()
                answer = api.beat(token, "s1", "d1", seq=n)
                took.append(time.perf_counter() - started)
                assert (answer["decision"], answer["degraded"]) == ("allow", True)
            assert statistics.median(took) < 0.25
            assert api.get("/readyz").status_code == 503
            assert api.get("/healthz").status_code == 200
            assert api.post("/v1/sessions/s1/stop", token=token).status_code == 503
            own_server.start()
            wait_for(lambda: api.get("/readyz").status_code == 200, "ready again")
            wait_for(lambda: not api.beat(token, "s1", "d1", seq=12)["degraded"], "decides again")
            wait_for(lambda: not list(spool.glob("*/*/*.jsonl")), "the spool was applied")
            kept = {event["seq"] for event in events(own_server, prefix, "heartbeat")}
            assert kept >= set(range(1, 13)), "nothing is lost"
            metrics = api.get("/metrics").text
            assert 'pulsegate_spooled_heartbeats_total{fate="applied"}' in metrics

    def test_a_stalled_server_counts_as_away(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        token = player("ann", max_streams=1)
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api:
            api.beat(token, "s1", "d1")
            os.kill(own_server.pid, signal.SIGSTOP)

            def at_once() -> bool:
                started = time.perf_counter()
                assert api.beat(token, "s1", "d1")["degraded"]
                return time.perf_counter() - started < 0.1

            # The first wait for their deadlines; when all has been silent for a second, the others find the breaker open.
            wait_for(at_once, "the breaker is open")
            os.kill(own_server.pid, signal.SIGCONT)
            wait_for(lambda: not api.beat(token, "s1", "d1")["degraded"], "decides again")

    def test_leases_of_before_win_when_redis_comes_back(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        token = player("ann", max_streams=1)
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api:
            lease = api.beat(token, "s1", "d1")["lease_expires_at"]
            # Let the append-only file reach the disk: it is synced every second.
            wait_for(lambda: time.time() * 1000 > lease - 1000, "a second and a half")
            own_server.kill()
            wait_for(lambda: time.time() * 1000 > lease + 1500, "the lease has run out")
            own_server.start()
            first = wait_for(lambda: self.decided(api, token, "s2", "d2"), "decides again")
            assert first["decision"] == "block"
            assert api.beat(token, "s1", "d1")["decision"] == "allow"

    @staticmethod
    def decided(api: ApiProcess, token: str, session: str, device: str) -> dict[str, Any] | None:
        answer = api.beat(token, session, device)
        return None if answer["degraded"] else answer

    def test_script_flush_goes_unnoticed(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        token = player("ann")
        with ApiProcess(own_server.url, tmp_path, prefix=prefix) as api, Redis.from_url(own_server.url) as client:
            for _ in range(3):
                client.script_flush()
                assert api.beat(token, "s1", "d1")["degraded"] is False

    def test_a_cluster_that_loses_a_node(self, tmp_path: Path, prefix: str) -> None:
        servers = start_cluster(tmp_path / "cluster")
        try:
            with ApiProcess(servers[0].url, tmp_path, prefix=prefix) as api:
                tokens = [player(f"acct-{n}") for n in range(24)]
                assert not any(api.beat(t, "s", "d")["degraded"] for t in tokens)
                servers[1].kill()
                wait_for(lambda: any(api.beat(t, "s", "d")["degraded"] for t in tokens), "its accounts fail open")
                assert api.get("/readyz").status_code == 503
                servers[1].start()
                wait_for(lambda: not any(api.beat(t, "s", "d")["degraded"] for t in tokens), "all decide again", 40)
        finally:
            for server in servers:
                server.stop()


class TestPlans:
    def test_reload_and_a_broken_file(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        # Long intervals: on a busy machine none of the sessions may go stale while the test waits.
        slow = {"interval_ms": 60_000, "lifetime_ms": 180_000}
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **slow) as api:
            plans = Path(api.env["PULSEGATE_PLANS_FILE"])
            token = player("ann")
            for n in (1, 2):
                assert api.beat(token, f"s{n}", f"d{n}")["decision"] == "allow"
            assert api.beat(token, "s3", "d3")["decision"] == "block"
            plans.write_text(PLANS.replace("limit = 2", "limit = 3"))
            wait_for(lambda: api.beat(token, "s3", "d3")["decision"] == "allow", "the new limit holds")
            plans.write_text("default = ")
            said = wait_for(lambda: (r := api.get("/readyz").json())["plans"] != "ok" and r, "it says so")
            assert said["ready"] is True
            assert "plans" in said["plans"]
            assert api.beat(token, "s4", "d4")["limit"] == 3, "the plans of before stay in force"
            wait_for(lambda: "pulsegate_plans_broken 1.0" in api.get("/metrics").text, "the metric says so")
            plans.write_text(PLANS)
            wait_for(lambda: api.get("/readyz").json()["plans"] == "ok", "mended")


class TestWorkers:
    def test_a_killed_worker_is_replaced_in_seconds(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        with ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api:
            env = api.env
            python = [sys.executable, "-m", "workers"]
            with (
                Child([*python, "worker"], tmp_path / "w1.log", env) as first,
                Child([*python, "scheduler"], tmp_path / "s.log", env),
            ):
                token = player("ann")
                api.beat(token, "s1", "d1")
                wait_for(lambda: events(own_server, prefix, "view_end"), "the sweep works")
                with Child([*python, "worker"], tmp_path / "w2.log", env) as second:
                    first.kill()
                    api.beat(token, "s2", "d2")
                    ended = wait_for(lambda: events(own_server, prefix, "view_end")[1:], "the standby took over", 20)
                    assert ended[0]["data"]["reason"] == "timeout"
                    assert second.stop() == 0, second.said()

    def test_nothing_is_swept_while_the_api_is_away(self, own_server: Server, tmp_path: Path, prefix: str) -> None:
        python = [sys.executable, "-m", "workers"]
        with (
            ApiProcess(own_server.url, tmp_path, prefix=prefix, **QUICK) as api,
            Child([*python, "worker"], tmp_path / "w.log", api.env),
            Child([*python, "scheduler"], tmp_path / "s.log", api.env),
            Redis.from_url(own_server.url) as client,
        ):
            owner = Keys(prefix, PARTITIONS).owner("sweep", 0)
            wait_for(lambda: client.exists(owner), "the sweep works")
            lease = api.beat(player("ann"), "s1", "d1")["lease_expires_at"]
            api.kill()
            wait_for(lambda: time.time() * 1000 > lease + 3000, "the deadline is long over")
            wait_for(lambda: client.exists(owner), "the sweep works still")
            assert events(own_server, prefix, "view_end") == []


class TestRun:
    """`pulsegate run`, as a newcomer starts it."""

    def run(self, data: Path, port: int, log: Path, **settings: Any) -> Child:
        command = [sys.executable, "-m", "engine.cli", "run", "--data", str(data), "--port", str(port)]
        return Child(command, log, environment(**({"plans_file": ROOT / "plans.toml"} | settings)))

    def ready(self, child: Child, port: int) -> None:
        line = f"ready http://127.0.0.1:{port}"
        wait_for(lambda: line in child.said().splitlines(), f"prints {line}; it said {child.said()[-1500:]}", 30)

    def test_from_nothing_to_a_decision_and_back(self, tmp_path: Path) -> None:
        port, data = free_port(), tmp_path / "data"
        with self.run(data, port, tmp_path / "one.log") as child:
            self.ready(child, port)
            command = next(line for line in child.said().splitlines() if line.startswith("curl "))
            answer = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=20).stdout
            assert json.loads(answer)["decision"] == "allow"
            assert (data / "secret").stat().st_mode & 0o777 == 0o600
            again = subprocess.run(
                [sys.executable, "-m", "engine.cli", "run", "--data", str(data), "--port", str(free_port())],
                capture_output=True, env=child.env, cwd=ROOT, timeout=30, check=False,
            )  # fmt: skip
            assert again.returncode == 1
            assert b"in use" in again.stderr
            assert child.stop() == 0
        secret = (data / "secret").read_text()
        with self.run(data, port, tmp_path / "two.log") as child:
            self.ready(child, port)
            assert (data / "secret").read_text() == secret
            token = self.token(data, "--service", "--scope", "read")
            url = f"http://127.0.0.1:{port}/v1/accounts/demo/sessions"
            answer = httpx.get(url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)
            assert [item["session"] for item in answer.json()["items"]] == ["tv-1"], "it survived the restart"
            child.send(signal.SIGINT)
            assert child.wait() == 0

    def test_its_parts_are_started_anew(self, tmp_path: Path) -> None:
        port, data = free_port(), tmp_path / "data"
        with self.run(data, port, tmp_path / "run.log") as child:
            self.ready(child, port)
            token = self.token(data, "--account", "ann", "--max-streams", "1")
            headers = {"Authorization": f"Bearer {token}"}
            beat = {"session": "s", "device": "d", "content": "c", "kind": "live", "state": "playing"}
            url = f"http://127.0.0.1:{port}/v1/heartbeats"

            def decides() -> bool:
                try:
                    answer = httpx.post(
                        url, json=beat | {"seq": time.time_ns() // 1_000_000}, headers=headers, trust_env=False
                    )
                except httpx.TransportError:
                    return False
                return answer.status_code == 200 and not answer.json()["degraded"]

            wait_for(decides, "decides")
            children = self.children(child.pid)
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            wait_for(lambda: len(self.children(child.pid) - children) == len(children), "all parts are new", 30)
            wait_for(decides, "decides again", 30)
            assert child.stop() == 0

    def test_kill_9_leaves_nothing_behind_and_loses_nothing(self, tmp_path: Path) -> None:
        port, data = free_port(), tmp_path / "data"
        with self.run(data, port, tmp_path / "one.log") as child:
            self.ready(child, port)
            token = self.token(data, "--account", "ann", "--max-streams", "1")
            headers = {"Authorization": f"Bearer {token}"}
            beat = {"session": "s", "device": "d", "content": "c", "kind": "live", "state": "playing", "seq": 0}
            url = f"http://127.0.0.1:{port}/v1/heartbeats"
            assert httpx.post(url, json=beat, headers=headers, trust_env=False).json()["decision"] == "allow"
            parts = self.children(child.pid)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            server = {p for p in parts if b"valkey" in Path(f"/proc/{p}/cmdline").read_bytes()}
            wait_for(
                lambda: not any(Path(f"/proc/{p}").exists() for p in parts - server), "the parts have followed", 20
            )
        with self.run(data, port, tmp_path / "two.log") as child:
            self.ready(child, port)
            assert not any(Path(f"/proc/{p}").exists() for p in server), "its server was stopped before ours started"
            other = beat | {"session": "s2", "device": "d2"}
            assert httpx.post(url, json=other, headers=headers, trust_env=False).json()["decision"] == "block"
            assert child.stop() == 0

    @staticmethod
    def children(pid: int) -> set[int]:
        found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        children = set()
        for number in map(int, found.stdout.split()):
            with contextlib.suppress(FileNotFoundError):  # gone since it was listed, as `ps` itself is
                if Path(f"/proc/{number}/cmdline").read_bytes():  # a zombie has none
                    children.add(number)
        return children

    @staticmethod
    def token(data: Path, *args: str) -> str:
        command = [sys.executable, "-m", "engine.cli", "token", "--data", str(data), *args]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=clean_env(), cwd=ROOT)
        assert re.fullmatch(r"\S+\n", answer.stdout), "the token and nothing else"
        return answer.stdout.strip()

    def test_an_existing_cluster(self, cluster: list[Server], tmp_path: Path, prefix: str) -> None:
        port, data = free_port(), tmp_path / "data"
        settings = {"redis_url": cluster[0].url, "prefix": prefix, "partitions": PARTITIONS}
        with self.run(data, port, tmp_path / "run.log", **settings) as child:
            self.ready(child, port)
            token = self.token(data, "--account", "ann", "--max-streams", "1")
            beat = {"session": "s", "device": "d", "content": "c", "kind": "live", "state": "playing", "seq": 0}
            answer = httpx.post(
                f"http://127.0.0.1:{port}/v1/heartbeats",
                json=beat,
                headers={"Authorization": f"Bearer {token}"},
                trust_env=False,
            )
            assert answer.json()["degraded"] is False
            assert child.stop() == 0

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"interval_ms": "ten"}, "PULSEGATE_INTERVAL_MS"),
            ({"port": 70000}, "PULSEGATE_PORT"),
            ({"jwt_secret": "short"}, "PULSEGATE_JWT_SECRET"),
            ({"nonsense": 1}, "PULSEGATE_NONSENSE"),
            ({"plans_file": "missing.toml"}, "missing.toml"),
        ],
    )
    def test_a_bad_setting_stops_the_start_with_its_name(
        self, tmp_path: Path, settings: dict[str, Any], named: str
    ) -> None:
        command = [sys.executable, "-m", "engine.cli", "run", "--data", str(tmp_path / "data")]
        ended = subprocess.run(
            command,
            env=clean_env() | environment(**settings),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            cwd=tmp_path,
        )
        assert ended.returncode == 1
        assert named in ended.stderr


def test_an_account_token_cannot_be_made_without_a_secret(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "engine.cli", "token", "--account", "a", "--data", str(tmp_path)]
    ended = subprocess.run(command, env=clean_env(), capture_output=True, text=True, check=False, cwd=ROOT)
    assert ended.returncode == 1
    assert "pulsegate run" in ended.stderr
    assert service("read")
