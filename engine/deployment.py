"""Processes: the API servers, the workers, and `pulsegate run`, which is all of them with a server of its own.

Each part is a child process in a session of its own, so Ctrl-C reaches the supervisor only and the parts stop in
order: API first (it signs off while Redis is still there), then workers, Redis last. A part that dies is started anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from engine import descriptors, lifeline
from engine.embedded import DURABLE, Server, password_of
from engine.errors import ConfigError
from engine.lag import SINKS
from engine.masked import masked
from engine.plans import PlanFile
from engine.private import close, keep_private
from engine.settings import Settings
from engine.stopping import Stop
from engine.tokens import issue

_READY_S = 60.0
_STOP_S = 20.0
_RESTART_S = 1.0
_RESTART_MAX_S = 15.0
_SOON_S = 10.0
"""A part that fails so soon is given longer each time: without its Redis it would do nothing but start."""


def api(settings: Settings) -> int:
    """Serves the API in this process, or under uvicorn's supervisor if there are several. Returns when stopped."""
    import uvicorn

    keep_private(settings)
    # uvicorn raises the signal that stopped it once more when it is done; being asked to stop is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    descriptors.raise_limit()
    with _metrics_dir(settings) as settings:
        _export(settings)
        uvicorn.run(
            "api.app:create", factory=True, host=settings.host, port=settings.port, workers=settings.processes, access_log=False,
            log_config=None, server_header=False, date_header=False, proxy_headers=False, timeout_graceful_shutdown=10,
            loop="uvloop", http="api.protocol:Protocol", ws="none", backlog=4096,
        )  # fmt: skip
    return 0


def _export(settings: Settings) -> None:
    """The settings as this process's environment, in place of what they came from (a secret's file, say)."""
    for name in [name for name in os.environ if name.startswith("PULSEGATE_")]:
        del os.environ[name]
    os.environ.update(settings.to_env())


@contextlib.contextmanager
def _metrics_dir(settings: Settings) -> Iterator[Settings]:
    """Several processes share their metrics through files; prometheus-client wants to know before it is imported."""
    if settings.processes == 1 or settings.metrics_dir:
        if settings.metrics_dir:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = settings.metrics_dir
        yield settings
        return
    directory = tempfile.mkdtemp(prefix="pulsegate-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    try:
        yield replace(settings, metrics_dir=directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def workers(settings: Settings) -> int:
    """Runs RQ workers as child processes until told to stop."""
    keep_private(settings)
    descriptors.raise_limit()
    return Supervisor(_workers(settings)).run()


def _workers(settings: Settings) -> list[Part]:
    parts = [Part(f"worker-{n}", ["-m", "workers", "worker"], settings) for n in range(settings.worker_processes)]
    if settings.virtual_clock:
        parts.append(Part("clock", ["-m", "workers", "clock"], settings))
    parts += [Part(f"asker-{n}", ["-m", "workers", "asker"], settings) for n in range(settings.ask_processes)]
    return parts + [
        Part(f"exporter-{sink}-{n}", ["-m", "workers", "exporter", sink], settings)
        for sink in _sinks(settings)
        for n in range(settings.export_processes)
    ]


def _sinks(settings: Settings) -> list[str]:
    """The sinks that want processes: ours if they are configured, those of others wherever they are installed (to ask them would
    load them)."""
    ours = {"lake": settings.lake_dir, "webhook": settings.webhook_url}
    return sorted(entry.name for entry in entry_points(group=SINKS) if ours.get(entry.name, True))


def scheduler(settings: Settings) -> int:
    keep_private(settings)
    descriptors.raise_limit()
    return Supervisor([Part("scheduler", ["-m", "workers", "scheduler"], settings)]).run()


def run(settings: Settings, data: Path) -> int:
    """Everything: an embedded server unless one is named, API, workers, scheduler."""
    descriptors.raise_limit()
    PlanFile(Path(settings.plans_file))
    _check_port(settings)
    keep_private(settings)
    data.mkdir(parents=True, exist_ok=True)
    # Not the directory itself, which may be anything.
    close((data / name for name in ("redis", "queues", "spool", "lake")), settings)
    with _locked(data):
        settings = replace(
            settings,
            jwt_secret=settings.jwt_secret or ("" if settings.jwks_url else _ensure_secret(data)),
            spool_dir=settings.spool_dir or str(data.resolve() / "spool"),
            lake_dir=settings.lake_dir or str(data.resolve() / "lake"),
        )
        servers: list[Server] = []
        if not settings.redis_url:
            servers.append(Server(data / "redis", DURABLE, password=password_of(data / "redis")))
            settings = replace(settings, redis_url=servers[0].url)
        elif not settings.log_redis_url and _is_cluster(settings.redis_url):
            servers.append(Server(data / "queues", DURABLE, password=password_of(data / "queues")))
            settings = replace(settings, log_redis_url=servers[0].url)
        for server in servers:
            server.start()
        parts = [
            Part("api", ["-m", "engine.cli", "api"], settings),
            *_workers(settings),
            Part("scheduler", ["-m", "workers", "scheduler"], settings),
        ]
        try:
            return Supervisor(parts, servers, lambda: _announce_ready(settings)).run()
        finally:
            for server in servers:
                server.stop()


def _is_cluster(url: str) -> bool:
    try:
        with Redis.from_url(url, socket_timeout=5) as client:
            return bool(client.info("cluster").get("cluster_enabled"))
    except RedisError as error:
        raise ConfigError(f"--redis-url {masked(url)}: {error}", field="PULSEGATE_REDIS_URL") from None


def _check_port(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}", field="PULSEGATE_PORT"
            ) from None


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"{data} is in use by another `pulsegate run`") from None
        yield


def _ensure_secret(data: Path) -> str:
    path = data / "secret"
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
    return read_secret(data)


def read_secret(data: Path) -> str:
    """The secret of `pulsegate run --data`. Raises ConfigError if there is none yet."""
    try:
        return (data / "secret").read_text(encoding="utf-8").strip()
    except OSError:
        raise ConfigError(
            f"no secret in {data}: start `pulsegate run` once, or set PULSEGATE_JWT_SECRET(_FILE)"
        ) from None


def _announce_ready(settings: Settings) -> None:
    base = f"http://{settings.host}:{settings.port}"
    print(f"ready {base}", flush=True)
    if settings.jwt_secret:
        token = issue(settings.jwt_secret, {"sub": "demo", "max_streams": 1}, 86_400, settings=settings)
        beat = {
            "session": "tv-1",
            "device": "living-room",
            "content": "film-1",
            "kind": "vod",
            "position": 0,
            "state": "playing",
            "seq": 0,
        }
        print(
            f"\nTry it; then again with another session and device, and be refused:\n\n"
            f"curl -s {base}/v1/heartbeats -H 'Authorization: Bearer {token}' -d '{json.dumps(beat)}'\n",
            flush=True,
        )


class Part:
    """One child process, started anew when it dies."""

    def __init__(self, name: str, command: list[str], settings: Settings) -> None:
        self.name = name
        self._command = [sys.executable, *command]
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._delay = _RESTART_S / 2
        self._again_at: float | None = None
        self._asked = False

    def start(self) -> None:
        self._started_at, self._again_at = time.monotonic(), None
        env = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")} | self._settings.to_env()
        env[lifeline.VARIABLE] = "1"
        self._asked = False
        self._process = subprocess.Popen(self._command, env=env, stdin=subprocess.PIPE, start_new_session=True)

    def failed(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def watch(self) -> None:
        """Starts the part anew when it has died: a second after its last start, or later if it fails again and again."""
        if self._process is None or (code := self._process.poll()) is None:
            return
        now = time.monotonic()
        if self._again_at is None:
            soon = code > 0 and now - self._started_at < _SOON_S
            self._delay = min(2 * self._delay, _RESTART_MAX_S) if soon else _RESTART_S
            self._again_at = self._started_at + self._delay
        if now >= self._again_at:
            print(f"pulsegate: {self.name} ended with {code}; starting it anew", file=sys.stderr, flush=True)
            self.stop()
            self.start()

    def ask_to_stop(self) -> None:
        if self._process is not None and not self._asked:
            self._asked = True
            self._process.terminate()

    def stop(self) -> None:
        if self._process is None:
            return
        self.ask_to_stop()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


class Supervisor:
    """Starts parts, keeps them (and the embedded servers) running, and stops them in order on SIGTERM or SIGINT."""

    def __init__(self, parts: list[Part], servers: list[Server] | None = None, on_ready: object = None) -> None:
        self._parts = parts
        self._servers = servers or []
        self._on_ready = on_ready
        self._stop = Stop()

    def run(self) -> int:
        self._stop = Stop.on_signals()
        try:
            for part in self._parts:
                part.start()
            if callable(self._on_ready) and not self._await_ready():
                return 1
            while not self._stop.wait(0.2):
                for server in self._servers:
                    if not server.running:
                        print("pulsegate: the embedded server ended; starting it anew", file=sys.stderr, flush=True)
                        server.start()
                for part in self._parts:
                    part.watch()
            return 0
        finally:
            # The API first, for it signs off; the others have nothing to wait for in one another.
            first, *others = self._parts
            first.stop()
            for part in others:
                part.ask_to_stop()
            for part in others:
                part.stop()

    def _await_ready(self) -> bool:
        """Waits until the API answers /readyz; False if it died or took too long."""
        settings = self._parts[0]._settings
        host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline and not self._parts[0].failed():
            if self._stop.is_set():
                return True
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://{host}:{settings.port}/readyz", timeout=2),
            ):
                assert callable(self._on_ready)
                self._on_ready()
                return True
            self._stop.wait(0.05)
        if not self._stop.is_set():
            print("pulsegate: the API did not become ready", file=sys.stderr)
        return False
