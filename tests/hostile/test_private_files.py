"""What lies on disk is its owner's only, the embedded server lets in nobody else, and no password is shown."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from engine import deployment
from engine.embedded import VOLATILE, Server, free_port, password_of, url_of
from engine.errors import ConfigError
from engine.masked import masked
from engine.settings import Settings
from tests.servers import ROOT, SECRET, Child, clean_env, environment, wait_for

OPEN = 0o077
QUICK = {"worker_processes": 2, "lake_roll_s": 0, "quality_roll_s": 0, "plans_file": ROOT / "plans.toml"}


def run(data: Path, log: Path, port: int, **settings: Any) -> Child:
    """`pulsegate run` by an operator whose umask lets everybody read."""
    command = ["sh", "-c", 'umask 022; exec "$@"', "sh", sys.executable, "-m", "engine.cli", "run"]
    return Child([*command, "--data", str(data), "--port", str(port)], log, environment(**(QUICK | settings)))


def pulsegate(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine.cli", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env=clean_env() | env, cwd=ROOT, timeout=60, check=False
    )


def readable(top: Path) -> list[str]:
    """What others than the owner may read, write or enter."""
    found = []
    for path in (top, *top.rglob("*")):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            continue
        if mode & OPEN and not stat.S_ISLNK(mode):
            found.append(f"{path.relative_to(top)} {mode & 0o777:o}")
    return found


def beat(child: Child) -> None:
    command = next(line for line in child.said().splitlines() if line.startswith("curl "))
    answer = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=20).stdout
    assert json.loads(answer)["decision"] == "allow"


def test_all_that_a_run_leaves_is_private(tmp_path: Path) -> None:
    """Events, tokens' claims and the secret stood there for every user of the machine, and the server let them in."""
    data, port = tmp_path / "data", free_port()
    data.mkdir(mode=0o755)  # as an earlier release made it
    (data / "lake").mkdir(mode=0o755)
    with run(data, tmp_path / "log", port) as child:
        wait_for(lambda: "ready " in child.said(), f"it is ready; it said {child.said()[-2000:]}", 40)
        beat(child)
        wait_for(lambda: list((data / "lake").rglob("*.parquet")), "an event is in the lake", 30)
        assert readable(data) == [". 755"]  # which may be anything, /tmp too; what is of ours in it is shut away
        names = {path.name for path in data.rglob("*")}
        assert {"secret", "password", "valkey.log", "lock", "spool", "lake"} <= names
        server = int((data / "redis" / "port").read_text())
        password = (data / "redis" / "password").read_text().strip()
        assert len(password) >= 32
        with Redis(port=server) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with Redis(port=server, password="guess") as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        with Redis.from_url(url_of(data / "redis")) as owner:
            assert owner.ping()
        lines = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        assert password not in lines
        assert str(data) in lines
        assert password not in child.said()
        # A second terminal, as the README has it.
        for words in (
            ("status",),
            ("replay", "--json"),
            ("bad", "list"),
            ("dead", "list", "webhook"),
            ("verify", "audience"),
        ):
            found = pulsegate(*words, "--data", str(data))
            assert found.returncode == 0, (words, found.stdout, found.stderr)
            assert password not in found.stdout + found.stderr


def test_the_password_outlives_the_run(tmp_path: Path) -> None:
    """A server left by a supervisor that was killed is stopped by the next, whether or not it had a password."""
    directory = tmp_path / "redis"
    password = password_of(directory)
    assert password_of(directory) == password
    assert (directory / "password").stat().st_mode & 0o777 == 0o600
    for earlier in (password, ""):
        orphan = Server(directory, VOLATILE, password=earlier)
        orphan.start()
        with Redis.from_url(orphan.url) as client:
            assert client.ping()
        server = Server(directory, VOLATILE, password=password)
        server.start()
        try:
            assert not orphan.running, "it has ended before the other begins"
            with Redis.from_url(url_of(directory)) as client:
                assert client.config_get("dir")["dir"] == str(directory)
        finally:
            server.stop()
            orphan.kill()


@pytest.mark.parametrize("private", [True, False])
def test_an_operator_may_open_them(tmp_path: Path, private: bool) -> None:
    """Analysts read the lake: then the process's own umask says who may."""
    script = (
        "import os, sys; from pathlib import Path; from engine.settings import Settings; from engine.private import keep_private\n"
        f"os.umask(0o027); keep_private(Settings(private_files={private}))\n"
        "Path(sys.argv[1], 'file').touch(); Path(sys.argv[1], 'dir').mkdir()"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, env=clean_env(), check=True, timeout=30)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "dir")]
    assert modes == ([0o600, 0o700] if private else [0o640, 0o750])


@pytest.mark.parametrize("part", ["api", "workers", "scheduler"])
def test_every_part_is_private_from_its_start(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def look(*_: Any, **__: Any) -> int:
        mask = os.umask(0)
        os.umask(mask)
        seen.append(mask)
        return 0

    monkeypatch.setattr("uvicorn.run", look)
    monkeypatch.setattr(deployment.Supervisor, "run", look)
    monkeypatch.setattr(deployment, "_export", lambda settings: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    before = os.umask(0o022)
    try:
        getattr(deployment, part)(Settings(jwt_secret=SECRET))
    finally:
        os.umask(before)
    assert seen == [0o077]


# what is shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:pass-word@db:6379/0", "redis://:***@db:6379/0"),
        ("rediss://user:pass-word@db/1?ssl_cert_reqs=none", "rediss://user:***@db/1?***"),
        ("redis://u:pass@word/with:signs@db/0", "redis://u:***@db/0"),
        ("redis://db:6379?password=pass-word", "redis://db:6379?***"),
        ("unix:///run/redis.sock?password=pass-word", "unix:///run/redis.sock?***"),
        ("https://pass-word@idp.example/keys", "https://***@idp.example/keys"),
        ("https://hooks.example/x?key=pass-word#pass-word", "https://hooks.example/x?***#***"),
        ("plans.toml", "plans.toml"), ("", ""), ("*", "*"), (Settings().edge_uri, Settings().edge_uri),
    ],
)  # fmt: skip
def test_urls_are_shown_without_what_is_secret(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_config_shows_no_password() -> None:
    given = {
        "REDIS_URL": "redis://:pass-word@db:6379/0", "LOG_REDIS_URL": "redis://u:pass-word@log:6379/0", "JWKS_URL": "https://u:pass-word@idp/keys",
        "WEBHOOK_URL": "https://hooks.example/x?key=pass-word", "ALERTS_WEBHOOK_URL": "https://hooks.example/y?key=pass-word",
        "WEBHOOK_SECRET": "pass-word" * 5, "ALERTS_WEBHOOK_SECRET": "pass-word" * 5, "WEBHOOK_AUTHORIZATION": "Basic pass-word",
        "JWT_SECRET": "pass-word" * 5,
    }  # fmt: skip
    said = pulsegate("config", **{f"PULSEGATE_{name}": value for name, value in given.items()})
    assert said.returncode == 0, said.stderr
    assert "pass-word" not in said.stdout + said.stderr
    assert "PULSEGATE_REDIS_URL=redis://:***@db:6379/0" in said.stdout


@pytest.mark.parametrize("url", ["redis://:pass/word@db:6379/0", "http://:pass-word@db", "pass-word", "redis://:pass-word@db:port"])  # fmt: skip
@pytest.mark.parametrize("name", ["REDIS_URL", "LOG_REDIS_URL"])
def test_a_bad_url_is_named_but_not_repeated(name: str, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({f"PULSEGATE_{name}": url})
    assert caught.value.field == f"PULSEGATE_{name}"
    assert "pass" not in caught.value.message.replace("its password percent-encoded", "")


def test_errors_show_no_password(tmp_path: Path) -> None:
    url = f"redis://:pass-word@127.0.0.1:{free_port()}/0"
    for words in (("run", "--data", str(tmp_path), "--redis-url", url), ("status",), ("bad", "list"), ("replay",)):
        said = pulsegate(*words, PULSEGATE_REDIS_URL=url, PULSEGATE_PORT=str(free_port()))
        assert said.returncode != 0, words
        assert "pass-word" not in said.stdout + said.stderr, (words, said.stderr)
    assert isinstance(AuthenticationError(), RedisError)
