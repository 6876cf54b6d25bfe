"""What is attacked: a server, one API process and, where an attack is about them, workers; ordinary settings, no proxy."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from loadtest.attack.base import Target
from loadtest.bench_rig import DURABLE, ROOT, SECRET, Place, Valkey, Web, free_port, valkey, web
from loadtest.bench_workers import workers

DESCRIPTORS = 1024
"""The soft limit that most systems start a process with; the hard one is the machine's."""
PLANS = """default = "standard"

[plans.standard]
at_limit = "deny_new"

[[plans.standard.rules]]
name = "streams"
limit = 2

[plans.narrow]
at_limit = "deny_new"

[[plans.narrow.rules]]
name = "one-league"
limit = 1
provider = "league-one"
"""
"""`narrow` has rules that match nothing an attacker plays."""
_TENTH = {
    "INTERVAL_MS": 1_000, "LIFETIME_MS": 3_000, "SEGMENT_MS": 3_000, "MANIFEST_MS": 3_000, "LEFT_MS": 6_000,
    "STRAGGLE_MS": 500, "GUARD_MS": 6_000, "UNPROVEN_MS": 12_000, "SUPERSEDE_REFILL_MS": 1_000, "SUPERSEDE_BURST": 3,
}  # fmt: skip
"""What a device may share (a burst times a refill, ten minutes by default) is three seconds, or an attack would have to last that long."""


@dataclass(frozen=True)
class Stack:
    session: Valkey
    web: Web

    @property
    def target(self) -> Target:
        return Target(f"http://127.0.0.1:{self.web.port}", SECRET)

    def api_bytes(self) -> int:
        """Resident memory of the API process; 0 where there is no /proc."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.web.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0

    def redis_bytes(self) -> int:
        return int(self.session.client.info("memory")["used_memory"])


@contextlib.contextmanager
def stack(place: Place, *, with_workers: bool, quick_times: bool) -> Iterator[Stack]:
    """Raises BenchError if a part does not start."""
    plans = place.directory / "plans.toml"
    plans.write_text(PLANS)
    settings = {"PULSEGATE_PLANS_FILE": str(plans), **(_tenth() if quick_times else {})}
    lake = place.directory / "lake"
    with contextlib.ExitStack() as parts:
        session = parts.enter_context(valkey(place, None, DURABLE))
        port = free_port()
        env = {
            "PULSEGATE_REDIS_URL": session.url, "PULSEGATE_JWT_SECRET": SECRET, "PULSEGATE_PORT": str(port),
            "PULSEGATE_LOG_LEVEL": "warning", "PULSEGATE_LAKE_DIR": str(lake),
            "PULSEGATE_SPOOL_DIR": str(place.directory / "spool"), **settings,
        }  # fmt: skip
        command = ["sh", "-c", f'ulimit -Sn {DESCRIPTORS}; exec "$0" -m engine.cli api', sys.executable]
        served = parts.enter_context(web(command, place.directory, None, env, port, "/readyz"))
        if with_workers:
            parts.enter_context(workers(place, None, session, session, lake, **settings))
        yield Stack(session, served)


def _tenth() -> dict[str, str]:
    """Those of the times that this version has: an unknown setting stops the start."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")}
    listed = subprocess.run(
        [sys.executable, "-m", "engine.cli", "config"], cwd=ROOT, env=clean, capture_output=True, text=True, check=True
    ).stdout
    known = {line.partition("=")[0] for line in listed.splitlines()}
    return {f"PULSEGATE_{name}": str(value) for name, value in _TENTH.items() if f"PULSEGATE_{name}" in known}
