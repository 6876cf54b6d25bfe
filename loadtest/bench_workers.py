"""Workers and scheduler as an operator starts them, on one core, held still while something else is measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.bench_fresh import part, wait_for_owners
from loadtest.bench_rig import ROOT, SECRET, BenchError, Place, Process, Valkey, cpu_below, pinned, processes_below

_IDLE_S = 120.0


class Workers:
    """The background work of one deployment. Stopped processes (SIGSTOP) keep their state and cost nothing."""

    def __init__(self, place: Place, log: Valkey, env: dict[str, str], parts: list[Process]) -> None:
        self._place, self._log, self._env, self._parts = place, log, env, parts
        self._held = False

    def hold(self) -> None:
        """Stops all of them where they are; supervisors first, so that none starts anything anew."""
        self._signal(signal.SIGSTOP, reverse=False)
        self._held = True

    def go(self) -> None:
        """Lets them go on, and returns when every job is somebody's again."""
        self._signal(signal.SIGCONT, reverse=True)
        self._held = False
        wait_for_owners(self._log)

    def release(self) -> None:
        if self._held:
            self._signal(signal.SIGCONT, reverse=True)
            self._held = False

    def _signal(self, number: int, *, reverse: bool) -> None:
        for each in self._parts:
            pids = processes_below(each.pid)
            for pid in reversed(pids) if reverse else pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def cpu_s(self) -> float:
        """User and system CPU seconds so far, of all of them."""
        return sum(cpu_below(each.pid) for each in self._parts)

    def mirrored(self) -> dict[str, int]:
        """Topic → events put into the event log ever."""
        found: dict[bytes, bytes] = self._log.client.hgetall("pg:{log}:mirrored")
        return {name.decode(): int(n) for name, n in found.items() if not name.isdigit()}

    def lags(self) -> dict[str, int]:
        """Consumer or sink → events in the log that it has not handled, by `pulsegate status`."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")} | self._env
        done = subprocess.run(
            [sys.executable, "-m", "engine.cli", "status", "--json"], cwd=ROOT, env=env, capture_output=True,
            check=False, timeout=60, preexec_fn=pinned(self._place.others),
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"pulsegate status: {done.stderr.decode()[-500:]}")
        said: dict[str, Any] = json.loads(done.stdout)
        return {each["name"]: int(each["events"]) for each in said["lags"]}

    def wait_for(self, topic: str, events: int) -> None:
        """Until so many events of the topic are in the log, and all that is there has been handled. Raises BenchError."""
        deadline = time.monotonic() + _IDLE_S
        while self.mirrored().get(topic, 0) < events or any(self.lags().values()):
            if time.monotonic() > deadline:
                raise BenchError(f"{topic} in the log: {self.mirrored().get(topic, 0)} of {events}; lag: {self.lags()}")
            time.sleep(0.1)


@contextlib.contextmanager
def workers(
    place: Place, core: int | None, session: Valkey, log: Valkey, lake: Path, **settings: str
) -> Iterator[Workers]:
    """All background jobs there are by default, at work when this returns."""
    env = {
        "PULSEGATE_REDIS_URL": session.url, "PULSEGATE_LOG_REDIS_URL": log.url, "PULSEGATE_LAKE_DIR": str(lake),
        "PULSEGATE_JWT_SECRET": SECRET, "PULSEGATE_LOG_LEVEL": "warning", **settings,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(part(name, place, core, env)) for name in ("worker", "scheduler")]
        wait_for_owners(log)
        made = Workers(place, log, env, parts)
        try:
            yield made
        finally:
            made.release()
