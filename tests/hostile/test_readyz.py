"""`/readyz` is red whenever decisions are not real, says why, and is green again when they are."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from api.openapi import document
from engine.embedded import VOLATILE, Server
from engine.quotas import FULL
from engine.router import REFUSALS
from tests.harness import PARTITIONS, start_cluster
from tests.servers import ROOT, ApiProcess, clean_env, environment, player, wait_for

Change = Callable[[Redis, Server], Any]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """One for each test: it is brought into states that others should not meet."""
    started = Server(tmp_path / "redis", VOLATILE)
    started.start()
    yield started
    started.kill()


def _full_disk(client: Redis, server: Server) -> None:
    shutil.rmtree(server.directory)
    client.config_set("save", "3600 1")
    with contextlib.suppress(ResponseError):
        client.bgsave()
    wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", "a snapshot failed")


def _space_again(client: Redis, server: Server) -> None:
    client.config_set("stop-writes-on-bgsave-error", "no")


def _acl(*rules: str) -> Change:
    return lambda client, server: client.execute_command("ACL", "SETUSER", "default", *rules)


def _config(name: str, value: str) -> Change:
    return lambda client, server: client.config_set(name, value)


CASES: dict[str, tuple[str, Change, Change]] = {
    "a full disk": ("disk", _full_disk, _space_again),
    "a primary that became a replica": (
        "read_only",
        lambda client, server: client.execute_command("REPLICAOF", "127.0.0.1", "1"),
        lambda client, server: client.execute_command("REPLICAOF", "NO", "ONE"),
    ),
    "too few replicas": ("no_replicas", _config("min-replicas-to-write", "1"), _config("min-replicas-to-write", "0")),
    "a user that may not run scripts": ("no_permission", _acl("-evalsha"), _acl("+evalsha")),
    "a user that may not write": ("no_permission", _acl("-set", "-zadd", "-hset"), _acl("+set", "+zadd", "+hset")),
}


@pytest.mark.parametrize("case", CASES)
def test_red_while_redis_refuses_and_green_after(server: Server, tmp_path: Path, prefix: str, case: str) -> None:
    state, change, back = CASES[case]
    with ApiProcess(server.url, tmp_path, prefix=prefix) as api, Redis(port=server.port) as client:
        token = player("ann", max_streams=1)
        assert api.beat(token, "tv", "tv")["degraded"] is False
        change(client, server)
        assert api.beat(token, "phone", "phone")["degraded"] is True
        answer = api.get("/readyz")
        assert (answer.status_code, answer.json()["ready"], answer.json()["redis"]) == (503, False, state)
        wait_for(lambda: "pulsegate_redis_up 0.0" in api.get("/metrics").text, "the metric says so, too")
        back(client, server)
        wait_for(lambda: api.get("/readyz").status_code == 200, "green again")
        assert api.get("/readyz").json()["redis"] == "up"
        assert api.beat(token, "phone", "phone")["degraded"] is False


def test_red_where_nobody_asks_for_a_decision(server: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(server.url, tmp_path, prefix=prefix) as api, Redis(port=server.port) as client:
        client.config_set("min-replicas-to-write", 1)
        wait_for(lambda: api.get("/readyz").status_code == 503, "red by itself")
        client.config_set("min-replicas-to-write", 0)
        wait_for(lambda: api.get("/readyz").status_code == 200, "and green")


def test_red_while_redis_does_not_answer_in_time(server: Server, tmp_path: Path, prefix: str) -> None:
    with ApiProcess(server.url, tmp_path, prefix=prefix) as api, Redis(port=server.port) as client:
        token = player("ann", max_streams=1)
        client.execute_command("CLIENT", "PAUSE", 3_000, "ALL")
        assert api.beat(token, "tv", "tv")["degraded"] is True
        assert (api.get("/readyz").status_code, api.get("/readyz").json()["ready"]) == (503, False)
        wait_for(lambda: api.get("/readyz").status_code == 200, "green again")
        assert api.beat(token, "tv", "tv")["degraded"] is False


def test_at_maxmemory_decisions_are_real(server: Server, tmp_path: Path, prefix: str) -> None:
    """Then it stays green: who is over the limit is refused."""
    with ApiProcess(server.url, tmp_path, prefix=prefix) as api, Redis(port=server.port) as client:
        token = player("ann", max_streams=1)
        assert api.beat(token, "tv", "tv")["decision"] == "allow"
        client.config_set("maxmemory", 1)
        refused = api.beat(token, "phone", "phone")
        assert (refused["decision"], refused["degraded"], refused["rule"]) == ("block", False, "streams")
        assert api.beat(player("ben", max_streams=1), "tv", "tv")["degraded"] is False
        assert api.post("/v1/sessions/tv/stop", token=token).status_code == 204
        assert api.beat(token, "phone", "phone")["decision"] == "allow"
        assert api.get("/readyz").status_code == 200
        events = {"session": "phone", "events": [{"type": "custom", "id": "1"}]}
        answer = api.post("/v1/events", token=token, json=events)
        assert (answer.status_code, answer.json()["error"]["code"] in ("overloaded", FULL)) == (429, True)
        assert int(answer.headers["retry-after"]) >= 1


def test_a_read_only_connection_is_given_up(server: Server, tmp_path: Path, prefix: str) -> None:
    """A name that leads to a new primary by now is asked again."""
    with ApiProcess(server.url, tmp_path, prefix=prefix) as api, Redis(port=server.port) as client:

        def deciding() -> set[int]:
            return {int(each["id"]) for each in client.client_list() if each["cmd"] == "evalsha"}

        before = wait_for(deciding, "a connection that has run a script")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        wait_for(lambda: before - {int(each["id"]) for each in client.client_list()}, "it is given up")
        client.execute_command("REPLICAOF", "NO", "ONE")
        wait_for(lambda: api.get("/readyz").status_code == 200, "green on a new one")
        assert api.beat(player("ann", max_streams=1), "tv", "tv")["degraded"] is False


def test_each_node_of_a_cluster_is_asked(tmp_path: Path, prefix: str) -> None:
    """One that refuses is enough, whether or not the announcements go there."""
    servers = start_cluster(tmp_path)
    try:
        with ApiProcess(servers[0].url, tmp_path, prefix=prefix, log_redis_url="") as api:
            for server in servers:
                with Redis(port=server.port) as client:
                    client.config_set("min-replicas-to-write", 1)
                    wait_for(lambda: api.get("/readyz").json()["redis"] == "no_replicas", "red")
                    client.config_set("min-replicas-to-write", 0)
                    wait_for(lambda: api.get("/readyz").status_code == 200, "green")
            for server in servers:
                with Redis(port=server.port) as client:
                    client.config_set("maxmemory", 1)
            accounts = [f"account-{n}" for n in range(PARTITIONS)]
            wait_for(lambda: api.get("/readyz").json()["memory"] == "high", "the watch sees it")
            assert not any(api.beat(player(a, max_streams=1), "tv", "tv")["degraded"] for a in accounts)
            assert {api.beat(player(a, max_streams=1), "pc", "pc")["decision"] for a in accounts} == {"block"}
    finally:
        for server in servers:
            server.kill()


def test_status_says_that_the_workers_cannot_write(server: Server, tmp_path: Path, prefix: str) -> None:
    def status(*words: str) -> str:
        env = clean_env() | environment(redis_url=server.url, prefix=prefix, partitions=PARTITIONS)
        command = [sys.executable, "-m", "engine.cli", "status", *words]
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    with Redis(port=server.port) as client:
        assert json.loads(status("--json"))["redis"]["session"]["state"] == "up"
        client.config_set("maxmemory", 1)
        assert "maxmemory" in json.loads(status("--json"))["redis"]["session"]["state"]
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 1)
        assert "session Redis: NOREPLICAS" in status()


def test_every_state_is_described() -> None:
    ready = document()["components"]["schemas"]["Ready"]["properties"]["redis"]["enum"]
    assert set(REFUSALS.values()) <= set(ready)
