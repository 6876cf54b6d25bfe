"""A real deployment in virtual time: session Redis (one server or a cluster of three), log Redis, and `pulsegate run`.

All of it lives in a directory that is gone afterwards, on ports of its own, so several may run beside each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from loadtest.bench_cluster import cluster
from loadtest.bench_rig import MEMORY_ONLY, ROOT, SECRET, BenchError, Place, Process, free_port, valkey

KINDS = ("node", "cluster")
PARTITIONS = 16
"""A sweep looks at each of them, and a simulated hour has 4,800 sweeps."""
SETTLE_S = 300.0
STEP_MS = 1_000
_ANSWER_S = 60.0


@dataclass
class Deployment:
    """`base` is where its API answers; `token` may do everything."""

    base: str
    env: dict[str, str]
    process: Process
    directory: Path
    token: str

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """(status, JSON). Raises BenchError if nobody answers."""
        request = urllib.request.Request(
            self.base + path, None if body is None else json.dumps(body).encode(), {"Authorization": f"Bearer {self.token}"},
            method=method,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                text = answer.read()
                return int(answer.status), json.loads(text) if text[:1] in b"{[" else text.decode()
        except urllib.error.HTTPError as error:
            return int(error.code), error.read().decode(errors="replace")
        except OSError as error:
            raise BenchError(f"{method} {path}: {error}") from None

    def now(self) -> int:
        """The virtual time, ms; 0 if it was never set."""
        return int(self._clock()["now"] or 0)

    def move(self, until: int) -> None:
        """Moves the clock, a second at a time: what is due is done on the way. Raises BenchError."""
        now = self.now()
        while now < until:
            now = min(until, now + STEP_MS)
            status, said = self.ask("POST", "/v1/clock", {"now": now})
            if status != 200:
                raise BenchError(f"the clock could not be moved: {status} {said}")

    def settle(self) -> None:
        """Waits until all that was accepted is in the projections and the lake. Raises BenchError."""
        deadline = time.monotonic() + SETTLE_S
        while not self._clock()["settled"]:
            if time.monotonic() > deadline:
                raise BenchError(f"the projections had not caught up after {SETTLE_S:g} s:\n{self.log()}")
            time.sleep(0.1)

    def _clock(self) -> dict[str, Any]:
        status, said = self.ask("GET", "/v1/clock")
        if status != 200:
            raise BenchError(f"GET /v1/clock: {status} {said}")
        return dict(said)

    def log(self) -> str:
        """The end of what its processes said."""
        logs = sorted(self.directory.glob("*.log"), key=lambda path: path.stat().st_mtime)
        return "\n".join(path.read_text(errors="replace")[-1_500:] for path in logs[-2:])

    def verify_audience(self) -> list[str]:
        """The differences that `pulsegate verify audience` finds. Raises BenchError if it cannot look."""
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "verify", "audience"], cwd=ROOT, env=clean(self.env),
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if done.returncode not in (0, 1) or not done.stdout.strip():
            raise BenchError(f"pulsegate verify audience said:\n{done.stdout}\n{done.stderr}")
        lines = done.stdout.strip().splitlines()
        return [line for line in lines if not line.startswith("audience:")] if done.returncode else []


def clean(env: dict[str, str]) -> dict[str, str]:
    """This process's environment with these settings of Pulsegate's and no others."""
    return {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")} | env


def service_token(secret: str = SECRET) -> str:
    """Tokens are verified by real time, so it must outlast the longest run."""
    now = int(time.time())
    return jwt.encode(
        {"typ": "service", "scope": "signals read admin", "iat": now, "exp": now + 7 * 86_400},
        secret,
        algorithm="HS256",
    )


@contextlib.contextmanager
def deployment(kind: str, plans: str) -> Iterator[Deployment]:
    """`kind` is one of KINDS, `plans` the text of its plans file. Raises BenchError if a part does not start."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pulsegate-truth-")))
        place = Place(directory, None, None)
        log = stack.enter_context(valkey(place, None, MEMORY_ONLY))
        url = log.url if kind == "node" else stack.enter_context(cluster(place, None, MEMORY_ONLY)).url
        if kind == "node":
            url = stack.enter_context(valkey(place, None, MEMORY_ONLY)).url
        (directory / "plans.toml").write_text(plans, encoding="utf-8")
        port = free_port()
        env = {
            "PULSEGATE_VIRTUAL_CLOCK": "1", "PULSEGATE_REDIS_URL": url, "PULSEGATE_LOG_REDIS_URL": log.url,
            "PULSEGATE_PARTITIONS": str(PARTITIONS), "PULSEGATE_REDIS_TIMEOUT_MS": "5000", "PULSEGATE_JWT_SECRET": SECRET,
            "PULSEGATE_OUTBOX_HIGH": "1000000", "PULSEGATE_OUTBOX_MAX": "1000000", "PULSEGATE_PORT": str(port),
            "PULSEGATE_PLANS_FILE": str(directory / "plans.toml"), "PULSEGATE_LOG_LEVEL": "warning",
        }  # fmt: skip
        command = [sys.executable, "-m", "engine.cli", "run", "--data", str(directory / "data")]
        process = Process(command, directory, None, env)
        stack.callback(process.stop)
        made = Deployment(f"http://127.0.0.1:{port}", env, process, directory, service_token())
        process.wait_until(lambda: _ready(made))
        yield made


def _ready(made: Deployment) -> bool:
    try:
        return made.ask("GET", "/readyz")[0] == 200
    except BenchError:
        return False
