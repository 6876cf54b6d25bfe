"""`pulsegate ingest-log`: a CDN's access log, posted as backend signals.

    file, .gz, stdin ── lines ──▶ Parser ──▶ Batch ──▶ POST /v1/signals ── acknowledged ──▶ checkpoint
                                    │                        │
                                    └── bad lines ─▶ --bad ◀─┴── items the server refuses

Every line ends in one count: lines = signals + coalesced + skipped + bad (+ undelivered, if it failed).
A checkpoint is written only after the server's answer and after the bad lines are on disk, so a restart
repeats at most the batch that was under way, and the server knows that batch by its request ids.

Raises ConfigError for options, and IngestError where it cannot go on: `run` makes that exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import email.utils
import gzip
import hashlib
import io
import itertools
import json
import os
import random
import re
import select
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

import httpx
import msgspec

from engine import cdnlog
from engine.cdnlog import BadLine, Batch, Entry, Parser, Rules
from engine.errors import ConfigError, PulsegateError
from engine.wire import RANKS, SIGNALS_MAX

CHUNK = 256 * 1024
LINE_MAX = 1024 * 1024
HEAD = 4096
LINES_MAX = 20_000
BACKOFF_FIRST_S, BACKOFF_MOST_S, RETRY_AFTER_MOST_S = 0.5, 30.0, 300.0
_ITEM = re.compile(r"^\[(\d+)\]")

Send = Callable[[list[Entry]], list[Any]]
"""Delivers signals in order and answers with their decisions. Raises Refused, IngestError."""


class IngestError(PulsegateError):
    """Signals cannot be delivered, or a file cannot be written."""

    code = "ingest"


class Unreadable(IngestError):
    """The log cannot be read (any further)."""


class Refused(PulsegateError):
    """The server will never take these signals. `index` is the one it names, if it names one."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class Pace:
    """Time, chance and interruption, replaced in tests. SIGTERM and SIGINT set `stopped` and end a wait."""

    def __init__(self) -> None:
        self.stopped = False

    def __enter__(self) -> Self:
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._stop) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._wake)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        # The byte is never read: it also ends every wait that begins after this.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"!")

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def jitter(self) -> float:
        """0–1."""
        return random.random()

    def wait(self, seconds: float, fd: int | None = None) -> None:
        """Returns after `seconds`, or when `fd` has data, or when stopped."""
        select.select([self._woken] if fd is None else [self._woken, fd], [], [], seconds)


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


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a file has been dealt with: what a checkpoint holds.

    `head` (SHA-256 of the first `head_bytes`) tells the file from a later one that was given its inode.
    `fields` is the order of the W3C columns there, since their header lies before it.
    """

    inode: int
    device: int
    offset: int
    line_number: int
    head_bytes: int
    head: str
    fields: tuple[str, ...]


class Source:
    """Standard input: a pipe or a redirected file."""

    def __init__(self, fd: int | None) -> None:
        self.fd = fd
        self.done = False
        self._cutter = Cutter()

    def read(self) -> Iterator[Line]:
        """The lines there are now, about CHUNK bytes of them; none at the end of what has been written."""
        if self.fd is None or not select.select([self.fd], [], [], 0)[0]:
            return
        data = os.read(self.fd, CHUNK)
        self.done = not data
        yield from self._cutter.feed(data) if data else self._cutter.rest()

    def rest(self) -> Iterator[Line]:
        """The unfinished last line."""
        return self._cutter.rest()

    def turned(self) -> bool:
        """Whether another file has taken this one's place, and this one has been read to its end."""
        return False

    def turn(self) -> bool:
        """Opens that other file. False if it has gone again."""
        return False

    def mark(self, offset: int, number: int, fields: tuple[str, ...]) -> Mark | None:
        """None where there is no way back."""
        return None

    def close(self) -> None:
        """Standard input is not ours to close."""


class FileSource(Source):
    """A file, plain or gzip, read once or followed through rotation (rename and recreate) and truncation.

    Starts at `mark`, in the file itself or in the one it was renamed to, which is finished first; `strayed`
    if it is in neither. With `keep_rest` an unfinished last line is left for the next run. Raises Unreadable.
    """

    _read: Callable[[int], bytes | None]
    _raw: int

    def __init__(self, path: str, *, follow: bool, mark: Mark | None = None, keep_rest: bool = False) -> None:
        super().__init__(None)
        self._path = Path(path)
        self._follow = follow
        self._keep_rest = keep_rest
        self._file: io.RawIOBase | gzip.GzipFile | None = None
        self._opened = contextlib.ExitStack()
        self._head = b""
        self._quiet = 0  # reads that found nothing, while following: since the file was replaced
        self._renamed = False
        self.strayed = mark is not None and not self._open_at(mark)
        if self._file is None and not self._open(self._path) and not follow:
            raise Unreadable(f"{path} cannot be read: no such file")

    def read(self) -> Iterator[Line]:
        if self._file is None and not self._open(self._path):
            return
        try:
            data = self._read(CHUNK)
        except (OSError, EOFError, zlib.error) as error:
            raise Unreadable(f"{self._path} cannot be read on: {error}") from None
        if data:
            self._quiet = 0
            if len(self._head) < HEAD:
                self._head = self._peek(min(HEAD, self._cutter.seen + len(data)))
            yield from self._cutter.feed(data)
            return
        self._quiet += not self._follow or self._is_replaced()
        if not self._follow and not (self._renamed and self._path.exists()):
            self.done = True
            if not self._keep_rest:
                yield from self._cutter.rest()

    def turned(self) -> bool:
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
        return self._open(self._path)

    def mark(self, offset: int, number: int, fields: tuple[str, ...]) -> Mark | None:
        if self._file is None:
            return None
        stat = os.fstat(self._raw)
        head = self._head[:offset]
        digest = hashlib.sha256(head).hexdigest()
        return Mark(stat.st_ino, stat.st_dev, offset, number, len(head), digest, fields)

    def close(self) -> None:
        self._opened.close()
        self._file = None

    def _open(self, path: Path) -> bool:
        """Opens it at its beginning. False if it does not exist."""
        try:
            raw = path.open("rb", buffering=0)
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
        self._cutter, self._head, self._quiet, self._renamed = Cutter(), b"", 0, path != self._path
        return True

    def _open_at(self, mark: Mark) -> bool:
        for path in self._candidates():
            with contextlib.suppress(OSError):
                stat = path.stat()
                if (stat.st_ino, stat.st_dev) == (mark.inode, mark.device) and self._open(path):
                    break
        else:
            return False
        head = self._peek(mark.head_bytes)
        shrunk = self._path.suffix != ".gz" and os.fstat(self._raw).st_size < mark.offset
        if shrunk or self._file is None or hashlib.sha256(head).hexdigest() != mark.head:
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
        stem = self._path.stem
        with contextlib.suppress(OSError):
            return [self._path, *(p for p in self._path.parent.iterdir() if p.name.startswith(stem))]
        return [self._path]

    def _is_replaced(self) -> bool:
        try:
            there = self._path.stat()
        except OSError:
            return False
        here = os.fstat(self._raw)
        return (there.st_ino, there.st_dev) != (here.st_ino, here.st_dev)

    def _peek(self, length: int) -> bytes:
        """The first bytes on disk, compressed or not; none of a pipe."""
        with contextlib.suppress(OSError):
            return os.pread(self._raw, length, 0)
        return b""


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
        except OSError as error:
            raise ConfigError(f"--checkpoint {self._path}: {error.strerror}", field="--checkpoint") from None
        except msgspec.MsgspecError:
            raise ConfigError(f"--checkpoint {self._path} is no checkpoint", field="--checkpoint") from None

    def save(self, mark: Mark) -> None:
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(msgspec.json.encode(mark))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            raise IngestError(f"--checkpoint {self._path}: {error.strerror}") from None


class BadLines:
    """Keeps what became no signal, as JSON lines, in a file (made when first needed) or on standard error."""

    def __init__(self, path: str | None) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def keep(self, number: int, reason: str, detail: str, line: str) -> None:
        record = {"line_number": number, "reason": reason, "detail": detail, "line": line}
        try:
            if self.path is not None and self._file is None:
                # Only for its owner: lines carry tokens.
                fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                self._file = os.fdopen(fd, "a", encoding="ascii", buffering=1)
            print(json.dumps(record), file=self._file or sys.stderr)
        except OSError as error:
            raise IngestError(f"--bad {self.path}: {error.strerror}") from None

    def sync(self) -> None:
        """Returns when all that was kept is on disk."""
        if self._file is not None:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise IngestError(f"--bad {self.path}: {error.strerror}") from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass(slots=True)
class Counts:
    """The summary. `blocked` are signals answered with block, `undelivered` those of a run that failed."""

    lines: int = 0
    signals: int = 0
    coalesced: int = 0
    skipped: int = 0
    bad: int = 0
    undelivered: int = 0
    blocked: int = 0
    retries: int = 0
    skipped_by: Counter[str] = field(default_factory=Counter)
    bad_by: Counter[str] = field(default_factory=Counter)


class Poster:
    """Posts signals, again and again where that may help: `retries` times, or for ever if None.

    Once stopped it tries one last time. Between attempts it waits as long as `Retry-After` says, and at least
    its own back-off: doubling, up to half of it random, so that many do not come back at once.
    """

    def __init__(self, client: httpx.Client, url: str, retries: int | None, pace: Pace, counts: Counts) -> None:
        self._client = client
        self._url = url.rstrip("/") + "/v1/signals"
        self._retries = retries
        self._pace = pace
        self._counts = counts

    def __call__(self, entries: list[Entry]) -> list[Any]:
        body = cdnlog.encode(entries)
        for attempt in itertools.count(1):
            last = self._pace.stopped or (self._retries is not None and attempt > self._retries)
            after = 0.0
            try:
                answer = self._client.post(self._url, content=body)
            except httpx.RequestError as error:
                why = f"{error}" or type(error).__name__
            else:
                if answer.status_code not in (408, 429) and answer.status_code < 500:
                    return self._answered(answer)
                why, after = f"it answers {answer.status_code} {_said(answer)[0]}", _retry_after(answer)
            if last:
                raise IngestError(f"cannot deliver to {self._url} ({attempt} attempts): {why}")
            backoff = min(BACKOFF_MOST_S, BACKOFF_FIRST_S * 2.0 ** min(attempt - 1, 16))
            delay = max(backoff * (0.5 + self._pace.jitter() / 2), after)
            _say(f"cannot deliver to {self._url}: {why}; next attempt in {delay:.1f} s")
            self._counts.retries += 1
            self._pace.wait(delay)
        raise AssertionError("unreachable")

    def _answered(self, answer: httpx.Response) -> list[Any]:
        if answer.status_code == 200:
            decisions = _json(answer)
            if not isinstance(decisions, list):
                raise IngestError(f"{self._url} answers 200, but no list of decisions: is that Pulsegate?")
            return decisions
        message, where = _said(answer)
        if answer.status_code in (400, 413, 422):
            item = _ITEM.match(where)
            raise Refused(message or f"answered {answer.status_code}", int(item[1]) if item else None)
        raise IngestError(f"{self._url} answers {answer.status_code} {message}".rstrip())


class Ingest:
    """Moves lines from a source through parser and batch to `send`.

    `linger_s`: how long a batch waits for more while the log is live; None for a log that has an end, so that
    its batches do not depend on the clock.
    """

    def __init__(
        self, source: Source, parser: Parser, batch: Batch, send: Send, bad: BadLines, *,
        pace: Pace, counts: Counts, checkpoint: Checkpoint | None = None, linger_s: float | None = None,
    ) -> None:  # fmt: skip
        self._source, self._parser, self._batch, self._send, self._bad = source, parser, batch, send, bad
        self._pace, self._checkpoint, self._linger_s = pace, checkpoint, linger_s
        self.counts = counts
        self._end = self._number = self._pending = 0
        self._pending_since = 0.0

    def run(self) -> None:
        """Until the log ends or the process is told to stop; what was read is flushed. Raises IngestError."""
        try:
            while not (self._pace.stopped or self._source.done):
                moved = self.step()
                if self._linger_s is None:
                    continue
                age = self._pace.now() - self._pending_since if self._pending else 0.0
                if self._pending and age >= self._linger_s:
                    self.flush()
                elif not moved and not self._source.done:
                    self._pace.wait(self._linger_s - age, self._source.fd)
        except Unreadable:
            self.flush()
            raise
        self.flush()

    def step(self) -> bool:
        """Reads what there is, a chunk at most; True if there was something."""
        if self._source.turned():
            for line in self._source.rest():
                self._take(line)
            self.flush()
            if self._source.turn():
                self._end = self._number = 0
                self._save()
        before = self._pending, self._end
        for line in self._source.read():
            self._take(line)
        return (self._pending, self._end) != before

    def flush(self) -> None:
        """Delivers the batch, then moves the checkpoint behind all lines taken so far."""
        if not self._pending:
            return
        self._deliver(self._batch.take())
        self._bad.sync()
        self._pending = 0
        self._save()

    def _save(self) -> None:
        mark = self._source.mark(self._end, self._number, self._parser.fields) if self._checkpoint else None
        if self._checkpoint and mark:
            self._checkpoint.save(mark)

    def _take(self, line: Line) -> None:
        counts = self.counts
        try:
            if not line.whole:
                raise BadLine("too_long", f"longer than {LINE_MAX} bytes")
            found = self._parser.parse(line.text)
        except BadLine as error:
            counts.lines += 1
            self._keep(line.number, error.code, error.message, line.text)
        else:
            counts.lines += found is not None
            if isinstance(found, str):
                counts.skipped += 1
                counts.skipped_by[found] += 1
            elif found is not None:
                self._add(Entry(found, line.number, line.text))
        self._end, self._number = line.end, line.number
        if not self._pending:
            self._pending_since = self._pace.now()
        self._pending += 1
        if self._pending >= LINES_MAX:
            self.flush()

    def _add(self, entry: Entry) -> None:
        while (outcome := self._batch.add(entry)) == "full":
            self.flush()
        self.counts.coalesced += outcome == "like"

    def _keep(self, number: int, reason: str, detail: str, line: str) -> None:
        self._bad.keep(number, reason, detail, line.rstrip("\r"))
        self.counts.bad += 1
        self.counts.bad_by[reason] += 1

    def _deliver(self, entries: list[Entry]) -> None:
        waiting = [entries] if entries else []
        while waiting:
            part = waiting.pop()
            try:
                decisions = self._send(part)
            except Refused as error:
                waiting += self._sorted_out(part, error)
            else:
                self.counts.signals += len(part)
                self.counts.blocked += sum(_is_block(decision) for decision in decisions)

    def _sorted_out(self, part: list[Entry], error: Refused) -> list[list[Entry]]:
        """What to send again, last first: all but the item named, or halves until a culprit stands alone."""
        index = 0 if len(part) == 1 else error.index
        if index is None or index >= len(part):
            half = len(part) // 2
            return [part[half:], part[:half]]
        entry = part[index]
        self._keep(entry.number, "refused", error.message, entry.line)
        return [kept] if (kept := part[:index] + part[index + 1 :]) else []


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `pulsegate ingest-log`."""
    add = parser.add_argument
    add("file", nargs="?", default="-", metavar="FILE", help="the log, plain or .gz; - is standard input")
    add("--url", default="http://127.0.0.1:8080", help="where Pulsegate listens (%(default)s)")
    add("--token-file", metavar="F", help="holds the service token, scope signals; else PULSEGATE_TOKEN")
    add("--follow", action="store_true", help="wait for more lines, through rotation; retry for ever")
    add("--checkpoint", metavar="F", help="remember here how far the log was acknowledged")
    add("--bad", metavar="F", help="keep bad lines here (FILE.bad; for standard input, standard error)")
    add("--dry-run", action="store_true", help="print the signals, post nothing")
    add("--retries", type=int, default=8, metavar="N", help="attempts after the first (%(default)s)")
    add("--batch-size", type=int, default=SIGNALS_MAX, metavar="N", help="signals a request (%(default)s)")
    add("--linger-s", type=float, default=1.0, metavar="S", help="a live batch waits this long (%(default)s)")
    add("--coalesce-s", type=float, default=5.0, metavar="S", help="like signals within it are one; 0: none")
    add("--timeout-s", type=float, default=10.0, metavar="S", help="for one request (%(default)s)")
    find = parser.add_argument_group("what counts, and where its parts are")
    add = find.add_argument
    add("--method", default="GET", metavar="M,…", help="methods that count (%(default)s)")
    add("--status", default=cdnlog.STATUSES, metavar="N-M,…", help="statuses that count (%(default)s)")
    add("--path", default=cdnlog.PATH, metavar="RE", help="paths that count; groups name parts of the signal")
    add("--manifest", default=cdnlog.MANIFEST, metavar="RE", help="of them the manifests (%(default)s)")
    add("--query", action="append", default=[], metavar="NAME=ARG", help="e.g. account=acc (token=token)")
    add("--cookie", action="append", default=[], metavar="NAME=COOKIE", help="e.g. token=pulsegate")
    add("--map", action="append", default=[], metavar="NAME=KEY", help="JSON lines: e.g. account=claims.sub")
    add("--fields", default="", metavar="F F …", help="the W3C columns, where no #Fields line comes first")
    add("--evidence", choices=tuple(RANKS), default="", help="what every line is (by --manifest)")
    add("--ttl-s", type=float, metavar="S", help="lifetime of each signal (the server's)")
    add("--jwt-secret-file", metavar="F", help="verifies tokens (HS256)")
    add("--trust-tokens", action="store_true", help="read tokens unverified: the CDN verified them")


def run(args: argparse.Namespace, pace: Pace | None = None) -> int:
    """0 when all was delivered, else 1. Prints the summary. Raises ConfigError for an option."""
    rules = _rules(args)
    _check(args)
    checkpoint = Checkpoint(args.checkpoint) if args.checkpoint and not args.dry_run else None
    mark = checkpoint.load() if checkpoint else None
    counts, pace, bad = Counts(), pace or Pace(), BadLines(_bad_path(args))
    with contextlib.ExitStack() as stack:
        stack.enter_context(pace)
        stack.callback(bad.close)
        send = _print if args.dry_run else _poster(args, stack, pace, counts)
        try:
            source = _source(args, mark)
            stack.callback(source.close)
            fields = (mark and mark.fields) or args.fields.split()
            batch = Batch(round(args.coalesce_s * 1000), size=args.batch_size)
            linger_s = args.linger_s if args.follow or args.file == "-" else None
            Ingest(
                source, Parser(rules, fields), batch, send, bad,
                pace=pace, counts=counts, checkpoint=checkpoint, linger_s=linger_s,
            ).run()  # fmt: skip
        except IngestError as error:
            _say(error.message)
            counts.undelivered = counts.lines - counts.signals - counts.coalesced - counts.skipped - counts.bad
            return 1
        finally:
            if counts.bad:
                why = ", ".join(f"{reason} {count}" for reason, count in counts.bad_by.most_common())
                _say(f"{counts.bad} bad lines kept{f' in {bad.path}' if bad.path else ''}: {why}")
            print(msgspec.json.encode(counts).decode(), flush=True)
    return 0


def _rules(args: argparse.Namespace) -> Rules:
    names = ("token", *cdnlog.IDENTITY)
    statuses = cdnlog.parse_statuses("--status", args.status)
    secret = _secret("--jwt-secret-file", args.jwt_secret_file)
    if secret is not None and len(secret) < 32:
        raise ConfigError("--jwt-secret-file must hold at least 32 bytes", field="--jwt-secret-file")
    return Rules(
        path=cdnlog.compile_pattern("--path", args.path, groups=names),
        manifest=cdnlog.compile_pattern("--manifest", args.manifest),
        query={"token": "token"} | cdnlog.parse_pairs("--query", args.query, names),
        cookies={"token": "pulsegate"} | cdnlog.parse_pairs("--cookie", args.cookie, names),
        mapping=cdnlog.parse_pairs("--map", args.map, cdnlog.MAPPABLE),
        methods=frozenset(method.strip().upper() for method in args.method.split(",")),
        statuses=statuses,
        evidence=args.evidence,
        ttl_s=args.ttl_s,
        secret=secret,
        trust_tokens=args.trust_tokens,
    )


def _check(args: argparse.Namespace) -> None:
    """Raises ConfigError for what no single option can tell, and for numbers out of range."""
    for option, low, high in (
        ("--retries", 0, 1_000_000), ("--batch-size", 1, SIGNALS_MAX), ("--linger-s", 0.01, 60),
        ("--coalesce-s", 0, 3600), ("--timeout-s", 0.1, 600), ("--ttl-s", 0.001, 86_400),
    ):  # fmt: skip
        value = getattr(args, option[2:].replace("-", "_"))
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{option} must be between {low} and {high}", field=option)
    if args.map and "time" not in (name := [item.partition("=")[0] for item in args.map]):
        raise ConfigError(f"--map must say where the time is; it names {', '.join(name)}", field="--map")
    if args.file == "-" and args.checkpoint:
        raise ConfigError("--checkpoint needs a file, not standard input", field="--checkpoint")
    if args.file.endswith(".gz") and args.follow:
        raise ConfigError("--follow needs a plain file: a .gz does not grow", field="--follow")
    with contextlib.suppress(httpx.InvalidURL):
        url = httpx.URL(args.url)
        if url.scheme in ("http", "https") and url.host:
            return
    raise ConfigError(f"--url {args.url!r:.128} is no http(s) URL", field="--url")


def _source(args: argparse.Namespace, mark: Mark | None) -> Source:
    if args.file == "-":
        return Source(sys.stdin.fileno())
    keep_rest = bool(args.checkpoint) and not args.file.endswith(".gz")
    source = FileSource(args.file, follow=args.follow, mark=mark, keep_rest=keep_rest)
    if source.strayed:
        _say(f"the file of --checkpoint is gone or truncated; starting at the beginning of {args.file}")
    return source


def _poster(args: argparse.Namespace, stack: contextlib.ExitStack, pace: Pace, counts: Counts) -> Send:
    raw = _secret("--token-file", args.token_file) or os.environ.get("PULSEGATE_TOKEN", "").encode()
    token = raw.decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError("--token-file, or PULSEGATE_TOKEN, must hold a service token", field="--token-file")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    client = stack.enter_context(httpx.Client(headers=headers, timeout=args.timeout_s))
    return Poster(client, args.url, None if args.follow else args.retries, pace, counts)


def _bad_path(args: argparse.Namespace) -> str | None:
    if args.bad:
        return str(args.bad)
    return None if args.file == "-" or args.dry_run else f"{args.file}.bad"


def _secret(option: str, path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"{option} {path} cannot be read: {error.strerror}", field=option) from None


def _print(entries: list[Entry]) -> list[Any]:
    try:
        for entry in entries:
            print(json.dumps(entry.signal, ensure_ascii=False))
        sys.stdout.flush()
    except BrokenPipeError:
        # `… | head` has seen enough; what is still buffered must go somewhere when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise IngestError("standard output was closed") from None
    return []


def _say(message: str) -> None:
    print(f"ingest-log: {message}", file=sys.stderr, flush=True)


def _is_block(decision: object) -> bool:
    return isinstance(decision, dict) and decision.get("decision") == "block"


def _json(answer: httpx.Response) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return answer.json()
    return None


def _said(answer: httpx.Response) -> tuple[str, str]:
    """(message, field) of an error; empty where it has none."""
    said = _json(answer)
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return "", ""
    return str(error.get("message", "")), str(error.get("field", ""))


def _retry_after(answer: httpx.Response) -> float:
    """Seconds; 0 if it does not say. A date is measured against the answer's own, whatever our clock says."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return min(float(text), RETRY_AFTER_MOST_S)
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(answer.headers.get("date", ""))
        return max(0.0, min((then - now).total_seconds(), RETRY_AFTER_MOST_S))
    return 0.0
