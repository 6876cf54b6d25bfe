"""The whole way, as separate processes: heartbeats in, audience and lists out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engine.embedded import VOLATILE, Server
from tests.servers import ROOT, ApiProcess, Child, player, service, wait_for

SETTINGS = {
    "interval_ms": 1_000, "lifetime_ms": 2_500, "gone_after_ms": 2_000, "worker_processes": 3, "export_processes": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    directory = tmp_path_factory.mktemp("whole")
    server = Server(directory / "redis", VOLATILE)
    server.start()
    process = ApiProcess(server.url, directory, prefix="whole", **SETTINGS)
    cli = [sys.executable, "-m", "engine.cli"]
    try:
        with (
            process,
            Child([*cli, "worker"], directory / "worker.log", process.env),
            Child([*cli, "scheduler"], directory / "scheduler.log", process.env),
        ):
            yield process
    finally:
        server.stop()


def audience(api: ApiProcess, content: str) -> dict[str, Any]:
    answer = api.get(f"/v1/contents/{content}/audience", token=service("read"))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def verified(api: ApiProcess) -> dict[str, Any]:
    command = [sys.executable, "-m", "engine.cli", "verify", "audience", "--json"]
    done = subprocess.run(command, env=api.env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_a_viewer_appears_is_switched_off_and_is_gone(api: ApiProcess) -> None:
    token = player("ann")
    wait_for(
        lambda: api.beat(token, "s1", "d1", "match") and audience(api, "match")["concurrent"] == 1, "it is counted"
    )
    verified(api)
    wait_for(lambda: audience(api, "match")["concurrent"] == 0, "it is gone")
    assert audience(api, "match")["distinct"]["24h"] == 1
    assert verified(api)["counts"] == {}


def test_what_is_watched_is_listed_with_its_title_until_it_is_hidden(api: ApiProcess) -> None:
    said = [{"content": "final", "title": "The Final", "kind": "vod", "runtime": 5400}]
    assert api.post("/v1/contents", token=service("admin"), content=json.dumps(said)).status_code == 200
    tokens = [player(f"fan-{n}") for n in range(10)]

    def listed() -> dict[str, Any] | None:
        for n, token in enumerate(tokens):
            api.beat(token, f"s{n}", f"d{n}", "final")
        answer = api.get("/v1/trending?kind=vod&rank=popular", token=tokens[0]).json()
        return next((item for item in answer["items"] if item["content"] == "final"), None)

    item = wait_for(listed, "it is listed", 40.0)
    assert item["title"] == "The Final"
    assert item["concurrent"] > 0
    assert item["distinct"] > 0
    assert item["observed"] > 0
    assert item["expected"] == 1.5, "hours that one viewing takes"
    answer = api.post("/v1/contents", token=service("admin"), content=json.dumps({"content": "final", "hidden": True}))
    assert answer.status_code == 200
    wait_for(lambda: listed() is None, "it is hidden")
