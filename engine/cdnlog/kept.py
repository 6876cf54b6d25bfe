"""What outlives a run: how far it got, and the lines that became no signal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from engine.cdnlog.errors import IngestError
from engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file has been dealt with.

    `head` (SHA-256 of its beginning) tells the file from a later one that was given its inode. `columns` is the
    order of the W3C columns at `offset`, since their header lies before it.
    """

    inode: int
    device: int
    offset: int
    line_number: int
    head: str
    columns: tuple[str, ...]


class Checkpoint:
    """Where a restart goes on: a small JSON file, replaced atomically."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def load(self) -> Mark | None:
        """None if there is none yet. Raises ConfigError if the file is something else."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Mark)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            raise ConfigError(f"--checkpoint {self._path} is no checkpoint: {error}", field="--checkpoint") from None

    def save(self, mark: Mark) -> None:
        """Returns when it is on disk. Raises IngestError."""
        fresh = self._path.with_name(self._path.name + ".new")
        with _written(f"--checkpoint {self._path}"):
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)


class BadLines:
    """JSON lines in a file (made when first needed), or on standard error if `path` is None. Raises IngestError."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def keep(self, number: int, reason: str, detail: str, line: str) -> None:
        record = {"line_number": number, "reason": reason, "detail": detail, "line": line}
        with _written(f"--bad {self.path}"):
            if self.path is not None and self._file is None:
                # Only for its owner: lines carry tokens.
                fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                self._file = os.fdopen(fd, "a", encoding="ascii", buffering=1)
            print(json.dumps(record), file=self._file or sys.stderr)

    def sync(self) -> None:
        """Returns when all that was kept is on disk."""
        if self._file is not None:
            with _written(f"--bad {self.path}"):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def _written(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IngestError(f"{what}: {error.strerror}") from None
