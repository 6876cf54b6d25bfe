"""What cannot go to Redis now, kept on disk and applied in order later: heartbeats that could not reach it, events that
found their outbox full.

Each process writes segments (`<ms>-<n>.jsonl`) into a directory of its own below the spool's, locked
while it lives. A process that starts takes over the directories of dead ones. Beyond `spool_max_bytes` the oldest
segment is dropped and its entries are counted.
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
from prometheus_client import Counter

from engine.errors import BadRequest, PulsegateError, Unavailable

log = logging.getLogger(__name__)

_SEGMENT_BYTES = 8 * 2**20

Entry = dict[str, Any]
"""What JSON can hold."""
Apply = Callable[[Entry], Awaitable[bool]]
"""Applies one entry; False if it cannot be applied yet. What raises KeyError or TypeError is no entry of ours."""


class Spool:
    """`fates` counts entries by what became of them: kept, not_kept, dropped, applied, refused, bad."""

    def __init__(
        self, directory: Path | None, max_bytes: int, fates: Counter, clock: Callable[[], float] = time.time
    ) -> None:
        self._root = directory if max_bytes else None
        self._max_bytes = max_bytes
        self._fates = fates
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

    @property
    def keeps(self) -> bool:
        """Whether there is a directory to keep anything in."""
        return self._mine is not None

    def put(self, entry: Entry) -> bool:
        """Keeps one entry; whether it did. Never raises: a full disk must not fail an answer, so it is counted and logged."""
        if self._mine is None:
            self._fates.labels("not_kept").inc()
            return False
        line = orjson.dumps(entry) + b"\n"
        try:
            if self._file is None or self._file.tell() > _SEGMENT_BYTES:
                self._next_segment()
            assert self._file is not None
            self._file.write(line)
            self._file.flush()
            self._fates.labels("kept").inc()
        except OSError as error:
            self._fates.labels("dropped").inc()
            log.warning("spool", extra={"why": str(error)})
            return False
        return True

    async def sync(self) -> None:
        """Returns when what was put is on disk. Raises OSError."""
        if self._file is not None:
            await asyncio.to_thread(os.fsync, self._file.fileno())

    def _finish(self) -> None:
        """Closes the segment under way; what is in it is on disk then, for whoever waits in `sync` for an earlier part of it."""
        if self._file is not None:
            file, self._file = self._file, None
            with file:
                os.fsync(file.fileno())

    def _next_segment(self) -> None:
        assert self._mine is not None
        self._finish()
        segments = self._segments()
        while segments and sum(s.stat().st_size for s in segments) + _SEGMENT_BYTES > self._max_bytes:
            oldest = segments.pop(0)
            self._fates.labels("dropped").inc(oldest.read_bytes().count(b"\n"))
            oldest.unlink()
        self._count += 1
        self._file = (self._mine / f"{int(self._clock() * 1000):014d}-{self._count:06d}.jsonl").open("ab")

    def _segments(self) -> list[Path]:
        return sorted(self._mine.glob("*.jsonl")) if self._mine is not None else []

    @property
    def waiting(self) -> bool:
        return bool(self._segments())

    async def drain(self, apply: Apply) -> None:
        """Applies everything in order; stops, keeping the rest, at what cannot be applied yet."""
        for segment in self._segments():
            if self._file is not None and Path(self._file.name) == segment:
                self._finish()
            lines = (await asyncio.to_thread(segment.read_bytes)).splitlines(keepends=True)
            for done, line in enumerate(lines):
                if not await self._apply(apply, line):
                    _rewrite(segment, lines[done:])
                    return
            segment.unlink(missing_ok=True)

    async def _apply(self, apply: Apply, line: bytes) -> bool:
        fate = "applied"
        try:
            if not await apply(orjson.loads(line)):
                return False
        except Unavailable:
            return False
        except (BadRequest, orjson.JSONDecodeError, KeyError, TypeError):
            fate = "bad"
        except PulsegateError as error:
            fate = "refused"
            log.warning("spool", extra={"why": error.message})
        self._fates.labels(fate).inc()
        return True

    def close(self) -> None:
        self._finish()
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
