"""Heartbeats that could not reach Redis, kept on disk with their arrival time and re-applied in order on recovery.

Each process writes segments (`<ms>-<n>.jsonl`) into a directory of its own below `PULSEGATE_SPOOL_DIR`, locked
while it lives. A process that starts takes over the directories of dead ones. Beyond `spool_max_bytes` the oldest
segment is dropped and its heartbeats are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Any

import orjson

from engine.errors import BadRequest, PulsegateError, Unavailable
from engine.metrics import Metrics
from engine.tokens import Claims

log = logging.getLogger(__name__)

_SEGMENT_BYTES = 8 * 2**20
_CLAIMS = ("account", "plan", "max_streams", "device", "device_type", "provider", "kind")

Apply = Callable[[Claims, bytes, int], Awaitable[bool]]
"""Re-applies one heartbeat (claims, body, arrival in ms); False if Redis is away again."""


class Spool:
    def __init__(
        self, directory: str, max_bytes: int, metrics: Metrics, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = Path(directory) if directory and max_bytes else None
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._clock = clock
        self._mine: Path | None = None
        self._lock: IO[bytes] | None = None
        self._file: IO[bytes] | None = None
        self._count = 0

    def open(self) -> None:
        """Makes this process's directory and takes over what dead processes left."""
        if self._root is None:
            return
        self._mine = self._root / uuid.uuid4().hex
        self._mine.mkdir(parents=True)
        self._lock = (self._mine / "lock").open("wb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        for other in self._root.iterdir():
            if other != self._mine and other.is_dir():
                self._take_over(other)

    def _take_over(self, other: Path) -> None:
        assert self._mine is not None
        with contextlib.suppress(OSError), (other / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for segment in other.glob("*.jsonl"):
                segment.rename(self._mine / segment.name)
            (other / "lock").unlink()
            other.rmdir()

    def put(self, claims: Claims, body: bytes) -> None:
        """Keeps one heartbeat. Never raises: a full disk must not fail the answer, so it is counted and logged."""
        if self._mine is None:
            self._metrics.spooled.labels("not_kept").inc()
            return
        known = {name: getattr(claims, name) for name in _CLAIMS}
        line = orjson.dumps({"at": int(self._clock() * 1000), "claims": known, "body": body.decode()}) + b"\n"
        try:
            if self._file is None or self._file.tell() > _SEGMENT_BYTES:
                self._next_segment()
            assert self._file is not None
            self._file.write(line)
            self._file.flush()
            self._metrics.spooled.labels("kept").inc()
        except OSError as error:
            self._metrics.spooled.labels("dropped").inc()
            log.warning("spool", extra={"why": str(error)})

    def _next_segment(self) -> None:
        assert self._mine is not None
        if self._file is not None:
            self._file.close()
        segments = self._segments()
        while segments and sum(s.stat().st_size for s in segments) + _SEGMENT_BYTES > self._max_bytes:
            oldest = segments.pop(0)
            self._metrics.spooled.labels("dropped").inc(oldest.read_bytes().count(b"\n"))
            oldest.unlink()
        self._count += 1
        self._file = (self._mine / f"{int(self._clock() * 1000):014d}-{self._count:06d}.jsonl").open("ab")

    def _segments(self) -> list[Path]:
        return sorted(self._mine.glob("*.jsonl")) if self._mine is not None else []

    @property
    def waiting(self) -> bool:
        return bool(self._segments())

    async def drain(self, apply: Apply) -> None:
        """Re-applies everything in order of arrival; stops, keeping the rest, when Redis is away again."""
        for segment in self._segments():
            if self._file is not None and Path(self._file.name) == segment:
                self._file.close()
                self._file = None
            lines = (await asyncio.to_thread(segment.read_bytes)).splitlines(keepends=True)
            for done, line in enumerate(lines):
                if not await self._apply(apply, line):
                    _rewrite(segment, lines[done:])
                    return
            segment.unlink()

    async def _apply(self, apply: Apply, line: bytes) -> bool:
        fate = "applied"
        try:
            entry: dict[str, Any] = orjson.loads(line)
            if not await apply(Claims(**entry["claims"]), entry["body"].encode(), entry["at"]):
                return False
        except Unavailable:
            return False
        except (BadRequest, orjson.JSONDecodeError, KeyError, TypeError):
            fate = "bad"
        except PulsegateError as error:
            fate = "refused"
            log.warning("spool", extra={"why": error.message})
        self._metrics.spooled.labels(fate).inc()
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock is not None and self._mine is not None:
            if not self._segments():
                # Somebody may have cleared the directory away; that is no reason not to stop in order.
                with contextlib.suppress(FileNotFoundError):
                    (self._mine / "lock").unlink()
                    self._mine.rmdir()
            self._lock.close()
            self._lock = None


def _rewrite(segment: Path, lines: list[bytes]) -> None:
    beside = segment.with_suffix(".tmp")
    with beside.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    beside.rename(segment)
