"""A whole deployment for the storm: two Redis servers, workers, scheduler, and an API that can be killed and started anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

from loadtest.bench_rig import DURABLE, SECRET, BenchError, Place, Process, Valkey, Web, free_port, valkey
from loadtest.bench_workers import Workers, workers
from loadtest.capacity.verdict import Plan

_BEHIND_S = 240.0


class Deployment:
    """All parts, of which the API can be killed and started anew on the same port."""

    def __init__(self, place: Place, plan: Plan) -> None:
        self._place, self._plan = place, plan
        self.port = free_port()
        self._stack = contextlib.ExitStack()
        self.session: Valkey
        self.log: Valkey
        self.staff: Workers
        self.process: Process

    def __enter__(self) -> Deployment:
        place, plan = self._place, self._plan
        with contextlib.ExitStack() as stack:
            self.session, self.log = (stack.enter_context(valkey(place, None, DURABLE)) for _ in range(2))
            self._settings = {
                "PULSEGATE_LOG_REDIS_URL": self.log.url, "PULSEGATE_INTERVAL_MS": f"{plan.interval_s * 1000:.0f}",
                "PULSEGATE_LIFETIME_MS": f"{plan.lifetime_s * 1000:.0f}", "PULSEGATE_GONE_AFTER_MS": str(plan.gone_after_ms),
                "PULSEGATE_STALE_INTERVALS": str(plan.stale_intervals),
                "PULSEGATE_LOG_KEEP_S": "3600", "PULSEGATE_WORKER_PROCESSES": str(plan.processes),
            }  # fmt: skip
            self.start()
            stack.callback(lambda: self.process.stop())
            self.staff = stack.enter_context(
                workers(place, None, self.session, self.log, place.directory / f"lake-{self.port}", **self._settings)
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Starts the API and returns when it is ready. Raises BenchError."""
        env = {
            "PULSEGATE_REDIS_URL": self.session.url, "PULSEGATE_JWT_SECRET": SECRET, "PULSEGATE_PORT": str(self.port),
            "PULSEGATE_LOG_LEVEL": "warning", "PULSEGATE_SPOOL_DIR": str(self._place.directory / f"spool-{self.port}"), **self._settings,
        }  # fmt: skip
        self.process = Process([sys.executable, "-m", "engine.cli", "api"], self._place.directory, None, env)
        served = Web(self.process, self.port)

        def ready() -> bool:
            with contextlib.suppress(OSError):
                return served.get("/readyz")[0] == 200
            return False

        self.process.wait_until(ready)

    def kill(self) -> None:
        """As a crash would: no sign-off."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.stop()

    def events(self) -> Iterator[dict[str, object]]:
        """What began, ended, and happened in views, of all partitions, once the event log has all that was appended until
        now. Raises BenchError if workers are too slow."""
        keys = list(self.session.client.scan_iter("pg:{*}:outbox", count=10_000))
        wanted = sum(int(self.session.client.xinfo_stream(key)["entries-added"]) for key in keys)
        deadline = time.monotonic() + _BEHIND_S
        while sum(self.staff.mirrored().get(topic, 0) for topic in ("heartbeats", "events")) < wanted:
            if time.monotonic() > deadline:
                raise BenchError(
                    f"after {_BEHIND_S:g} s the event log has not all of {wanted:,} events: workers are too slow"
                )
            time.sleep(0.2)
        for stream in self.log.client.scan_iter("pg:{*}:log:events", count=10_000):
            for _, fields in self.log.client.xrange(stream):
                yield json.loads(fields[b"e"])
