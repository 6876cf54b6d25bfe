"""docker-compose.yml and Dockerfile: what they promise, and the very same commands run as separate local processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from redis import Redis

from engine.embedded import RECORD_LISTPACK, Server, free_port
from engine.events import EVENTS
from engine.keys import Keys
from engine.partitions import partition_of
from engine.settings import Settings
from tests.harness import PARTITIONS
from tests.servers import ROOT, SECRET, Child, clean_env, environment, player, service, wait_for
from workers.health import ROLES, health, problem
from workers.jobs import jobs
from workers.runtime import Runtime, runtime

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
PARTS = ("api", "worker", "scheduler")
SETTINGS = {f"PULSEGATE_{field.name.upper()}": field for field in dataclasses.fields(Settings)}
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's (instruction, rest) in order, lines joined, comments left out."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def said(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def seconds(text: str) -> int:
    assert text.endswith("s")
    return int(text[:-1])


# what the files promise


def test_the_services() -> None:
    assert set(SERVICES) == {"redis", *PARTS}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_checked_confined_and_stops_gracefully(name: str) -> None:
    part = SERVICES[name]
    assert part["user"].split(":")[0] not in ("", "0", "root")
    assert part["read_only"] is True
    assert part["cap_drop"] == ["ALL"]
    assert part["security_opt"] == ["no-new-privileges:true"]
    assert part["restart"] == "unless-stopped"
    assert seconds(part["stop_grace_period"]) >= 20
    check = part["healthcheck"]
    assert check["test"][0] in ("CMD", "CMD-SHELL")
    assert seconds(check["timeout"]) <= seconds(check["interval"])
    assert check["retries"] >= 3


@pytest.mark.parametrize("name", PARTS)
def test_every_part_waits_for_redis_and_has_known_settings(name: str) -> None:
    part = SERVICES[name]
    assert part["depends_on"] == {"redis": {"condition": "service_healthy"}}
    for variable, value in part["environment"].items():
        assert isinstance(value, str), variable
        plain = variable.removesuffix("_FILE") if variable not in SETTINGS else variable
        assert plain in SETTINGS
        assert (plain != variable) == SETTINGS[plain].metadata["secret"], f"{variable}: a secret comes from a file"


def test_the_commands_exist() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "engine.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=clean_env(),
    ).stdout
    assert json.loads(said("ENTRYPOINT")[0]) == ["pulsegate"]
    for command in [json.loads(said("CMD")[0]), *(SERVICES[name]["command"] for name in PARTS)]:
        assert re.search(rf"^ +{command[0]}\b", shown, re.MULTILINE), command


def test_secrets_and_volumes_are_declared() -> None:
    for part in SERVICES.values():
        for secret in part.get("secrets", ()):
            assert secret in COMPOSE["secrets"]
        for volume in part.get("volumes", ()):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).exists()
    assert SERVICES["api"]["environment"]["PULSEGATE_JWT_SECRET_FILE"] == "/run/secrets/jwt_secret"
    assert "secrets" not in SERVICES["worker"]
    assert "secrets" not in SERVICES["scheduler"]


def test_the_lake_is_the_workers_and_scheduler_and_worker_know_the_same_sinks() -> None:
    directory = SERVICES["worker"]["environment"]["PULSEGATE_LAKE_DIR"]
    assert f"lake:{directory}" in SERVICES["worker"]["volumes"]
    owned = next(rest for rest in said("RUN") if "install -d" in rest)
    for volume in ("spool", "lake"):
        assert f"/var/lib/pulsegate/{volume}" in owned, "a volume takes its owner from the image's directory"
    sizes = {"PULSEGATE_WORKER_PROCESSES", "PULSEGATE_EXPORT_PROCESSES", "PULSEGATE_ASK_PROCESSES"}
    worker, scheduler = (SERVICES[name]["environment"] for name in ("worker", "scheduler"))
    assert {name: value for name, value in worker.items() if name not in sizes} == scheduler
    settings = Settings.from_env({name: value for name, value in worker.items() if name in SETTINGS})
    assert "export-lake" in jobs(settings)
    waiting_there = [job for job in jobs(settings) if not job.startswith("export-")]
    assert settings.worker_processes >= len(waiting_there), "jobs take turns"
    assert settings.export_processes >= 1
    assert settings.ask_processes >= 1


def test_redis_is_durable_and_keeps_records_compact() -> None:
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    for option, value in RECORD_LISTPACK.items():
        assert options[f"--{option}"] == value


def test_the_image_is_pinned_unprivileged_and_copies_what_the_package_needs() -> None:
    assert all(rest.startswith("python:3.11-slim") for rest in said("FROM"))
    assert any("--constraint constraints.txt" in rest for rest in said("RUN"))
    assert said("USER") == [SERVICES["api"]["user"]]
    assert said("HEALTHCHECK")[0].endswith(json.dumps(SERVICES["api"]["healthcheck"]["test"][1:]).strip())
    copied = {word for rest in said("COPY") if not rest.startswith("--from") for word in rest.split()[:-1]}
    packages = {p.split(".")[0] for p in _packages()}
    assert packages | {"pyproject.toml", "constraints.txt", "README.md", "plans.toml"} == copied
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == copied
    env = dict(pair.split("=", 1) for pair in said("ENV")[0].split())
    assert {name for name in env if name.startswith("PULSEGATE_")} <= set(SETTINGS)


def _packages() -> list[str]:
    import tomllib

    return list(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])


# the same commands as processes


class Deployment:
    """The parts as docker-compose.yml starts them, with this machine's paths and ports."""

    def __init__(self, redis_url: str, prefix: str, directory: Path) -> None:
        self.port = free_port()
        secret = directory / "jwt_secret"
        secret.write_text(SECRET + "\n")
        self._places = {
            "redis://redis:6379/0": redis_url,
            "/run/secrets/jwt_secret": str(secret),
            "/etc/pulsegate/plans.toml": str(ROOT / "plans.toml"),
            "/var/lib/pulsegate/spool": str(directory / "spool"),
            "/var/lib/pulsegate/lake": str(directory / "lake"),
            "0.0.0.0": "127.0.0.1",
            "8080": str(self.port),
        }
        self.more = environment(prefix=prefix, partitions=PARTITIONS, tenure_s=2)
        self.parts = {
            name: Child(
                [sys.executable, "-m", "engine.cli", *SERVICES[name]["command"]],
                directory / f"{name}.log",
                self.env(name),
            )
            for name in PARTS
        }

    def env(self, name: str) -> dict[str, str]:
        given = SERVICES[name]["environment"]
        assert {"8080", "0.0.0.0"} <= set(SERVICES["api"]["environment"].values())
        return {variable: self._places.get(value, value) for variable, value in given.items()} | self.more

    def healthy(self, name: str) -> bool:
        """Runs the service's own health check."""
        _, program, *arguments = SERVICES[name]["healthcheck"]["test"]
        assert program == "python"
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=clean_env() | self.env(name), cwd=ROOT, capture_output=True,
            timeout=seconds(SERVICES[name]["healthcheck"]["timeout"]),
        )  # fmt: skip
        return done.returncode == 0

    def runtime(self) -> Runtime:
        return runtime(Settings.from_env(self.env("worker")))


@pytest.fixture
def deployment(single: Server, prefix: str, tmp_path: Path) -> Iterator[Deployment]:
    built = Deployment(single.url, prefix, tmp_path)
    with contextlib.ExitStack() as stack:
        for part in built.parts.values():
            stack.callback(part.close)
        run = built.runtime()
        stack.callback(run.log.close)
        yield built


def timeouts(server: Server, prefix: str, account: str) -> int:
    """How many of the account's views the sweep has ended."""
    keys = Keys(prefix, PARTITIONS)
    partition = partition_of(account, PARTITIONS)
    with Redis.from_url(server.url) as client:
        found = dict(client.xrange(keys.outbox(partition)) + client.xrange(keys.log(partition, EVENTS)))
    events = [json.loads(fields[b"e"]) for fields in found.values()]
    return sum(event["type"] == "view_end" and event["data"]["reason"] == "timeout" for event in events)


def test_the_parts_work_together_and_stop_in_order(deployment: Deployment, single: Server, prefix: str) -> None:
    parts, run = deployment.parts, deployment.runtime()
    parts["api"].start()
    wait_for(lambda: not parts["api"].running or deployment.healthy("api"), "the API is healthy", 30)
    assert parts["api"].running, parts["api"].said()
    assert problem(run, "scheduler").endswith("has no owner and no tenure is queued")
    assert "knows no living worker" in problem(run, "worker")

    parts["scheduler"].start()
    wait_for(lambda: problem(run, "scheduler") == "", "tenures are queued")
    parts["worker"].start()
    wait_for(lambda: problem(run, "worker") == "", "they are taken")
    for name in PARTS:
        assert deployment.healthy(name), parts[name].said()

    with httpx.Client(base_url=f"http://127.0.0.1:{deployment.port}", trust_env=False, timeout=10) as client:
        beat = {
            "session": "s",
            "device": "tv",
            "content": "film",
            "kind": "vod",
            "state": "playing",
            "seq": 0,
            "position": 0,
        }
        headers = {"Authorization": f"Bearer {player('ann')}"}
        assert client.post("/v1/heartbeats", json=beat, headers=headers).json()["decision"] == "allow"
        signal = {"account": "bob", "device": "tv", "content": "film", "evidence": "segment", "ttl_s": 1}
        headers = {"Authorization": f"Bearer {service('signals')}"}
        assert client.post("/v1/signals", json=signal, headers=headers).json()["decision"] == "allow"
    wait_for(lambda: timeouts(single, prefix, "bob") == 1, "the sweep ends the view")
    assert timeouts(single, prefix, "ann") == 0

    for name in PARTS:
        began = time.monotonic()
        assert parts[name].stop(seconds(SERVICES[name]["stop_grace_period"])) == 0, parts[name].said()
        assert time.monotonic() - began < 10, name
        assert "Traceback" not in parts[name].said()
    assert not run.log.exists(run.keys.owner("sweep", 0))
    assert "knows no living worker" in problem(run, "worker")


def test_a_scheduler_or_worker_that_fails_is_told_apart(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in deployment.env("worker").items():
        monkeypatch.setenv(name, value)
    parts, run = deployment.parts, deployment.runtime()
    parts["scheduler"].start()
    parts["worker"].start()
    wait_for(lambda: problem(run, "worker") == problem(run, "scheduler") == "", "both work", 30)
    # Without a scheduler tenures hand over to one another, so nothing is wrong yet.
    parts["scheduler"].kill()
    owner = run.log.get(run.keys.owner("sweep", 0))
    wait_for(lambda: run.log.get(run.keys.owner("sweep", 0)) not in (owner, None), "a hand-over without a scheduler")
    parts["worker"].kill()
    owners = [run.keys.owner(job, 0) for job in jobs(run.settings)]
    wait_for(lambda: not run.log.exists(*owners), "the dead worker's leases end")
    assert "knows no living worker" in problem(run, "worker")
    run.queue.empty()
    assert problem(run, "scheduler").endswith("has no owner and no tenure is queued")
    parts["scheduler"].start()
    wait_for(lambda: problem(run, "scheduler") == "", "a tenure is queued")
    assert health("worker", patience_s=0) == 1
    assert health("scheduler", patience_s=5) == 0


def test_without_redis_neither_is_healthy(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (deployment.env("worker") | environment(redis_url=f"redis://127.0.0.1:{free_port()}/0")).items():
        monkeypatch.setenv(name, value)
    for role in ROLES:
        assert health(role, patience_s=0) == 1
        assert capsys.readouterr().err.startswith(f"{role}: ")


def test_wrong_use() -> None:
    for arguments in ((), ("health",), ("health", "api"), ("nothing",)):
        command = [sys.executable, "-m", "workers", *arguments]
        done = subprocess.run(command, env=clean_env(), cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stderr) == (
            2,
            "usage: python -m workers [health] worker|asker|exporter SINK|scheduler|clock\n",
        )
