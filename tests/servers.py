"""Programs that tests run for real, each a child process with its output in a file: the API, the workers, nginx.

    with ApiProcess(server.url, tmp_path, prefix=prefix, segment_ms=4000) as api:
        api.get("/v1/edge/authorize", token=player("ann", max_streams=1)).status_code

Nothing here sleeps for a fixed time: `wait_for` polls a condition until its deadline.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from engine.embedded import free_port
from engine.settings import Settings
from engine.tokens import SERVICE, issue
from tests.harness import PARTITIONS, PLANS

ROOT = Path(__file__).resolve().parent.parent
SECRET = "the secret of the tests, 32 bytes or more"
START_S = 30.0
STOP_S = 20.0

T = TypeVar("T")
_numbers = itertools.count(1)


def player(account: str, *, ttl_s: int = 3600, now: float | None = None, **claims: Any) -> str:
    """A player's token, signed with the tests' secret."""
    return issue(SECRET, {"sub": account, **claims}, ttl_s, settings=Settings(), now=now)


def service(*scopes: str) -> str:
    """A service token with these scopes."""
    return issue(SECRET, {"typ": SERVICE, "scope": " ".join(scopes)}, 3600, settings=Settings())


def wait_for(condition: Callable[[], T], what: str, seconds: float = 15.0, every_s: float = 0.05) -> T:
    """The condition's first true value. Fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every_s)


def _descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and theirs; parts of Pulsegate run in sessions of their own."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in table.splitlines():
        child, parent = line.split()
        children.setdefault(int(parent), []).append(int(child))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found[1:]


class Child:
    """One program: started, stopped by SIGTERM or killed; what it says goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.command = list(command)
        self.log = log
        self.env = clean_env() | dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=ROOT,
                start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float = STOP_S) -> int:
        """The exit status (negative: the signal). Raises TimeoutExpired."""
        assert self._process is not None
        return self._process.wait(seconds)

    def stop(self, seconds: float = STOP_S) -> int:
        """SIGTERM; the exit status. Raises TimeoutExpired, after killing it, if it does not stop in time."""
        self.send(signal.SIGTERM)
        try:
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, if it still runs."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9 for it and all its children, as a crash of the machine would."""
        if self._process is not None:
            for pid in (self._process.pid, *_descendants(self._process.pid)) if self.running else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def close(self) -> None:
        """Stops it whatever state it is in."""
        if self.running:
            self.send(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class ApiProcess(Child):
    """`pulsegate api` on a free port of loopback; entering waits until it is ready.

    `settings` are fields of `engine.settings.Settings`; `directory` gets its plans file and log.
    """

    def __init__(
        self, redis_url: str, directory: Path, *, prefix: str, plans: str = PLANS, port: int = 0, **settings: Any
    ) -> None:
        number = next(_numbers)
        plans_file = directory / f"plans-{number}.toml"
        plans_file.write_text(plans)
        self.port = port or free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        named = {
            "redis_url": redis_url, "prefix": prefix, "jwt_secret": SECRET, "partitions": PARTITIONS,
            "plans_file": plans_file, "port": self.port,
        }  # fmt: skip
        super().__init__(
            [sys.executable, "-m", "engine.cli", "api"],
            directory / f"api-{number}.log",
            environment(**(named | settings)),
        )
        self._client = httpx.Client(base_url=self.base, timeout=10, trust_env=False)

    def start(self) -> Self:
        super().start()
        wait_for(self._ready, f"the API is ready; it said: {self.said()[-2000:]}", START_S)
        return self

    def _ready(self) -> bool:
        if not self.running:
            raise AssertionError(f"the API ended: {self.said()[-2000:]}")
        try:
            return self._client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def request(self, method: str, path: str, *, token: str = "", **kwargs: Any) -> httpx.Response:
        """A request to it, with `token` as bearer if there is one."""
        headers = dict(kwargs.pop("headers", {}))
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self._client.request(method, path, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("POST", path, **kwargs)

    def beat(self, token: str, session: str, device: str, content: str = "film", **fields: Any) -> dict[str, Any]:
        """One heartbeat's decision; `seq` and `position` follow the clock unless given."""
        now = time.time()
        body = {
            "session": session, "device": device, "content": content, "kind": "vod", "state": "playing",
            "seq": int(now * 1000), "position": round(now % 1e6, 3),
        } | fields  # fmt: skip
        answer = self.post("/v1/heartbeats", token=token, content=json.dumps(body))
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def sessions(self, account: str) -> list[dict[str, Any]]:
        """The account's running sessions."""
        answer = self.get(f"/v1/accounts/{account}/sessions", token=service("read"))
        assert answer.status_code == 200, answer.text
        return list(answer.json()["items"])

    def close(self) -> None:
        super().close()
        self._client.close()


def clean_env() -> dict[str, str]:
    """The environment without any setting of Pulsegate's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("PULSEGATE_", "PROMETHEUS_"))}


def environment(**settings: Any) -> dict[str, str]:
    """Settings as `PULSEGATE_*` variables."""
    return {f"PULSEGATE_{name.upper()}": str(value) for name, value in settings.items()}
