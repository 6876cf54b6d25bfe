"""How soon a heartbeat that was acknowledged can be read as a resume position, while 2,000 others arrive each second.

The whole deployment: API, workers, scheduler, lake, two Redis servers, and the load besides; all of it on the cores there
are, pinned to none.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from loadtest.bench_events import account_of, heartbeat
from loadtest.bench_load import Player, token
from loadtest.bench_rig import (
    DURABLE,
    ROOT,
    SECRET,
    BenchError,
    Place,
    Process,
    Valkey,
    Web,
    api,
    cpu_below,
    unpinned,
    valkey,
)
from loadtest.bench_table import Row

PER_S = 2_000
SAMPLERS = 4
WARM_UP_S = 12.0
"""A whole interval of the players: all their views have begun by then."""
GOAL_MS = 500
_JOBS = {
    b"sweep", b"mirror", b"maintain", b"trending", b"consume-resume", b"consume-views", b"consume-quality", b"export-lake",
}  # fmt: skip
_POLL_S = 0.01
_LOST_S = 30.0
_FIRST_SAMPLE = 9_000_000
_POSITION_S = 1000


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """With as many workers as `pulsegate worker` starts, then one for each job. Raises BenchError if a heartbeat is
    refused, or never shows up."""
    seconds = 8.0 if quick else 20.0
    rows: list[Row] = []
    raw: dict[str, object] = {}
    for workers, what in ((2, "2 workers taking turns"), (7, "7 workers, the default: one a job")):
        with unpinned(place) as free:
            seen = deployed(free, workers, seconds, _waits)
        rows += _rows(what, seen)
        raw[what] = vars(seen)
    return rows, raw


@dataclass
class Seen:
    waits_ms: list[float]
    """From the answer that something was taken to the answer that has it."""
    load: dict[str, Any]
    api_cpu: float
    workers_cpu: float
    """Cores in use while it was measured."""


Waits = Callable[[Web, int, float], Iterator[float]]
"""What one of the samplers waits for, ms: of the API, as sampler number so-and-so, until then (time.monotonic)."""


def deployed(place: Place, workers: int, seconds: float, waits_of: Waits) -> Seen:
    """The whole deployment under load, sampled for so long."""
    with ExitStack() as stack:
        session = stack.enter_context(valkey(place, place.others, DURABLE))
        log = stack.enter_context(valkey(place, place.others, DURABLE))
        settings = {
            "PULSEGATE_LOG_REDIS_URL": log.url, "PULSEGATE_LAKE_DIR": str(place.directory / f"lake-{workers}"),
            # Where neighbours take the cores for a while, nobody should be let in unasked: that is no heartbeat in the log.
            "PULSEGATE_REDIS_TIMEOUT_MS": "5000",
        }  # fmt: skip
        served = stack.enter_context(api(place, place.mine, session.url, **settings))
        env = settings | {
            "PULSEGATE_REDIS_URL": session.url, "PULSEGATE_JWT_SECRET": SECRET, "PULSEGATE_LOG_LEVEL": "warning",
            "PULSEGATE_WORKER_PROCESSES": str(workers),
        }  # fmt: skip
        parts = [stack.enter_context(part(name, place, place.mine, env)) for name in ("worker", "scheduler")]
        wait_for_owners(log)
        load = stack.enter_context(_load(served.port, WARM_UP_S + seconds))
        time.sleep(WARM_UP_S)
        api_before, before = served.process.cpu_s() or 0.0, sum(cpu_below(part.pid) for part in parts)
        waits = _sample(served, seconds, waits_of)
        api_used = (served.process.cpu_s() or 0.0) - api_before
        used = sum(cpu_below(part.pid) for part in parts) - before
        said = json.loads(load.communicate(timeout=60)[0])
    if said["failed"]:
        raise BenchError(f"{said['failed']} of {said['sent']} heartbeats were not allowed: {said['said'][:500]}")
    return Seen(waits, said, api_used / seconds, used / seconds)


def wait_for_owners(log: Valkey) -> None:
    """Until each job was somebody's: starting workers take more CPU than working ones."""
    seen: set[bytes] = set()
    deadline = time.monotonic() + _LOST_S
    while len(seen) < len(_JOBS):
        seen |= {job for job in _JOBS if log.client.exists(b"pg:{work}:owner:%b:0" % job)}
        if time.monotonic() > deadline:
            raise BenchError(f"nobody works on {_JOBS - seen}")
        time.sleep(0.02)


@contextmanager
def part(name: str, place: Place, core: int | None, env: dict[str, str]) -> Iterator[Process]:
    """`pulsegate worker` or `scheduler`."""
    process = Process([sys.executable, "-m", "engine.cli", name], place.directory, core, env)
    try:
        yield process
    finally:
        process.stop()


@contextmanager
def _load(port: int, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
    """The players; they are beating when this returns."""
    command = [sys.executable, "-m", "loadtest.bench_players", str(port), str(PER_S), str(seconds), str(WARM_UP_S)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise BenchError("the load generator did not start")
        try:
            yield process
        finally:
            process.kill()


def _sample(served: Web, seconds: float, waits_of: Waits) -> list[float]:
    waits: list[float] = []
    failed: list[str] = []
    until = time.monotonic() + seconds

    def sampler(number: int) -> None:
        try:
            for wait in waits_of(served, number, until):
                waits.append(wait)
        except (BenchError, OSError) as error:
            failed.append(str(error))

    threads = [threading.Thread(target=sampler, args=(n,)) for n in range(SAMPLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise BenchError(failed[0])
    return waits


def _waits(served: Web, number: int, until: float) -> Iterator[float]:
    """ms from acknowledged to readable, of one viewer's heartbeats; each has a position of its own."""
    account, chance = account_of(_FIRST_SAMPLE + number), random.Random(number)
    signed, player = token(account), Player(served.port)
    session, device, content = f"5a3b1e00-0000-4000-8000-{number:012x}", f"{number:016x}", f"title-{number:05d}"
    seq = 0
    while time.monotonic() < until:
        position = float(_POSITION_S + seq)
        player.beat(signed, json.dumps(heartbeat(session, device, content, seq, position)).encode())
        acknowledged = time.perf_counter()
        while (found := player.resume(signed, content, "grown-ups")) != position:
            if time.perf_counter() - acknowledged > _LOST_S:
                raise BenchError(f"position {position} of {account} was not there after {_LOST_S:g} s, but {found}")
            time.sleep(_POLL_S)
        yield (time.perf_counter() - acknowledged) * 1000
        seq += 1
        # Not in step with anything that happens every so often.
        time.sleep(chance.uniform(0.0, 0.1))
    player.close()


def _rows(what: str, seen: Seen) -> list[Row]:
    waits = sorted(seen.waits_ms)
    p50, p99 = waits[len(waits) // 2], waits[min(len(waits) - 1, len(waits) * 99 // 100)]
    load = seen.load
    return [
        Row(f"acknowledged → readable, p50; {what}", f"{p50:,.0f}", "ms"),
        Row("  p99", f"{p99:,.0f}", "ms", goal=f"≤ {GOAL_MS} ms", met=p99 <= GOAL_MS),
        Row(f"  most of {len(waits)} samples", f"{waits[-1]:,.0f}", "ms"),
        Row("  heartbeats meanwhile; answered in p50, p99", f"{load['per_s']:,.0f}", f"/s; {load['p50_ms']:.1f}, {load['p99_ms']:.1f} ms"),
        Row("  in use by API; workers and scheduler", f"{seen.api_cpu:.2f}; {seen.workers_cpu:.2f}", "cores"),
    ]  # fmt: skip
