"""Lines from a file or standard input: read once, or followed as they come."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import select
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.cdnlog.errors import Unreadable
from engine.cdnlog.kept import Mark

CHUNK = 256 * 1024
LINE_MAX = 1024 * 1024
HEAD = 4096


@dataclass(frozen=True, slots=True)
class Line:
    """`end` is the offset just behind it. A line longer than LINE_MAX comes in pieces, none of them whole."""

    text: str
    number: int
    end: int
    whole: bool


class Cutter:
    """Cuts bytes into lines. `offset` is behind the last line, `seen` behind the last byte."""

    def __init__(self, offset: int = 0, number: int = 0) -> None:
        self.offset = offset
        self._number = number
        self._rest = b""
        self._torn = False

    @property
    def seen(self) -> int:
        return self.offset + len(self._rest)

    def feed(self, data: bytes) -> Iterator[Line]:
        *parts, self._rest = (self._rest + data).split(b"\n")
        for part in parts:
            yield self._line(part, newline=1, torn=False)
        if len(self._rest) > LINE_MAX:
            part, self._rest = self._rest, b""
            yield self._line(part, newline=0, torn=True)

    def rest(self) -> Iterator[Line]:
        """The unfinished line, now that nothing will be added to it."""
        if self._rest:
            part, self._rest = self._rest, b""
            yield self._line(part, newline=0, torn=False)

    def _line(self, part: bytes, newline: int, torn: bool) -> Line:
        self._number += not self._torn
        self.offset += len(part) + newline
        # Bytes that are not UTF-8 survive as surrogates, so that a bad line can be kept as it was.
        text = part.decode(errors="surrogateescape")
        line = Line(text, self._number, self.offset, not (torn or self._torn))
        self._torn = torn
        return line


class Tail:
    """A file, plain or gzip, read once or followed through rotation (rename and recreate) and truncation; `-` is
    standard input, which is waited for.

    Starts at `mark`, in the file itself or in the one it was renamed to, which is finished first; `strayed`
    if it is in neither. With `keep_rest` an unfinished last line is left for the next run. Raises Unreadable.
    """

    _read: Callable[[int], bytes | None]
    _raw: int

    def __init__(self, path: str, *, follow: bool, mark: Mark | None = None, keep_rest: bool = False) -> None:
        self.fd = sys.stdin.fileno() if path == "-" else None
        self.done = False
        self._path = Path(path)
        self._follow = follow and self.fd is None
        self._keep_rest = keep_rest
        self._file: io.RawIOBase | gzip.GzipFile | None = None
        self._opened = contextlib.ExitStack()
        self._head = b""
        self.strayed = mark is not None and not self._open_at(mark)
        if self._file is None and not self._open(self._path) and not follow:
            raise Unreadable(f"{path} cannot be read: no such file")

    def read(self) -> Iterator[Line]:
        """The lines there are now, about CHUNK bytes of them; none at the end of what has been written."""
        if self._file is None and not self._open(self._path):
            return
        if self.fd is not None and not select.select([self.fd], [], [], 0)[0]:
            return
        try:
            data = self._read(CHUNK)
        except (OSError, EOFError, zlib.error) as error:
            raise Unreadable(f"{self._path} cannot be read on: {error}") from None
        if data:
            self._quiet = 0
            if len(self._head) < HEAD:
                self._head = self._peek(self._cutter.seen + len(data))
            yield from self._cutter.feed(data)
            return
        self._quiet += not self._follow or self._is_replaced()
        if not self._follow and not self.turned():
            self.done = True
            if not self._keep_rest:
                yield from self._cutter.rest()

    def rest(self) -> Iterator[Line]:
        """The unfinished last line."""
        return self._cutter.rest()

    def turned(self) -> bool:
        """Whether another file has taken this one's place, and this one has been read to its end."""
        if self._file is None:
            return False
        if not self._follow:
            return self._renamed and self._quiet > 0 and self._path.exists()
        unread = os.fstat(self._raw).st_size - self._cutter.seen
        if unread < 0 or self._peek(len(self._head)) != self._head:
            return True
        # Not at once: after the rename the writer goes on in the old file until told to open the new one.
        return unread == 0 and self._quiet > 1 and self._is_replaced()

    def turn(self) -> bool:
        """Opens that other file. False if it has gone again."""
        return self._open(self._path)

    def mark(self, offset: int, number: int, columns: tuple[str, ...]) -> Mark | None:
        """How to come back behind a line; None while there is no file."""
        if self._file is None:
            return None
        stat = os.fstat(self._raw)
        return Mark(stat.st_ino, stat.st_dev, offset, number, _digest(self._head[:offset]), columns)

    def close(self) -> None:
        self._opened.close()
        self._file = None

    def _open(self, path: Path) -> bool:
        """Opens it at its beginning. False if it does not exist."""
        try:
            # Standard input is not ours to close.
            raw = io.FileIO(path if self.fd is None else self.fd, closefd=self.fd is None)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
        self.close()
        self._opened.enter_context(raw)
        self._raw = raw.fileno()
        self._file, self._read = raw, raw.read
        if path.suffix == ".gz":
            zipped = self._opened.enter_context(gzip.GzipFile(fileobj=raw))
            # read1, so that all before a damaged place is had.
            self._file, self._read = zipped, zipped.read1
        self._cutter, self._head, self._renamed = Cutter(), b"", path != self._path
        self._quiet = 0  # reads that found nothing; while following, only since the file was replaced
        return True

    def _open_at(self, mark: Mark) -> bool:
        """Opens the marked file behind its mark. False if it is gone, or no longer what it was."""
        if not any(self._is_at(path, mark) and self._open(path) for path in self._candidates()):
            return False
        head = self._peek(mark.offset)
        shrunk = self._path.suffix != ".gz" and os.fstat(self._raw).st_size < mark.offset
        if shrunk or self._file is None or _digest(head) != mark.head:
            self.close()
            return False
        try:
            self._file.seek(mark.offset)
        except (OSError, EOFError, zlib.error) as error:
            self.close()
            raise Unreadable(f"{self._path} cannot be read: {error}") from None
        self._cutter, self._head = Cutter(mark.offset, mark.line_number), head
        return True

    def _candidates(self) -> list[Path]:
        """The file, and where a rotation may have moved it: access.log.1, access-20260101.log."""
        with contextlib.suppress(OSError):
            return [self._path, *(p for p in self._path.parent.iterdir() if p.name.startswith(self._path.stem))]
        return [self._path]

    @staticmethod
    def _is_at(path: Path, mark: Mark) -> bool:
        with contextlib.suppress(OSError):
            stat = path.stat()
            return (stat.st_ino, stat.st_dev) == (mark.inode, mark.device)
        return False

    def _is_replaced(self) -> bool:
        try:
            there = self._path.stat()
        except OSError:
            return False
        here = os.fstat(self._raw)
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)

    def _peek(self, length: int) -> bytes:
        """The first bytes on disk, at most HEAD, compressed or not; none of a pipe."""
        with contextlib.suppress(OSError):
            return os.pread(self._raw, min(length, HEAD), 0)
        return b""


def _digest(head: bytes) -> str:
    return hashlib.sha256(head).hexdigest()
