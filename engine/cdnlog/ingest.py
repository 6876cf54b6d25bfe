"""Moves lines from the log through parser and batch to the server.

Every line ends in one count: lines = signals + coalesced + skipped + bad (+ undelivered, if it failed).
A checkpoint is written only after the server's answer and after the bad lines are on disk, so a restart
repeats at most the batch that was under way, and the server knows that batch by its request ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.cdnlog.batch import Batch, Entry
from engine.cdnlog.errors import BadLine, Refused, Unreadable
from engine.cdnlog.kept import BadLines, Checkpoint
from engine.cdnlog.process import Pace
from engine.cdnlog.signals import Parser
from engine.cdnlog.tail import LINE_MAX, Line, Tail

Send = Callable[[list[Entry]], list[Any]]
"""Delivers signals in order and answers with their decisions. Raises Refused, IngestError."""


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


@dataclass(slots=True)
class Ingest:
    """`linger_s`: how long a batch waits for more while the log is live; None for a log that has an end, so that
    its batches do not depend on the clock."""

    source: Tail
    parser: Parser
    batch: Batch
    send: Send
    bad: BadLines
    pace: Pace
    counts: Counts
    checkpoint: Checkpoint | None = None
    linger_s: float | None = None
    _end: int = 0
    _number: int = 0
    _pending: int = 0
    _pending_since: float = 0.0

    def run(self) -> None:
        """Until the log ends or the process is told to stop; what was read is flushed. Raises IngestError."""
        try:
            while not (self.pace.stopped or self.source.done):
                moved = self._step()
                if self.linger_s is None:
                    continue
                age = self.pace.now() - self._pending_since if self._pending else 0.0
                if self._pending and age >= self.linger_s:
                    self._flush()
                elif not moved and not self.source.done:
                    self.pace.wait(self.linger_s - age, self.source.fd)
        except Unreadable:
            self._flush()
            raise
        self._flush()

    def _step(self) -> bool:
        """Reads what there is, a chunk at most; True if there was something."""
        if self.source.turned():
            for line in self.source.rest():
                self._take(line)
            self._flush()
            if self.source.turn():
                self._end = self._number = 0
                self._save()
        before = self._pending, self._end
        for line in self.source.read():
            self._take(line)
        return (self._pending, self._end) != before

    def _take(self, line: Line) -> None:
        counts = self.counts
        try:
            if not line.whole:
                raise BadLine("too_long", f"longer than {LINE_MAX} bytes")
            found = self.parser.parse(line.text)
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
            self._pending_since = self.pace.now()
        self._pending += 1

    def _add(self, entry: Entry) -> None:
        while (outcome := self.batch.add(entry)) == "full":
            self._flush()
        self.counts.coalesced += outcome == "like"

    def _keep(self, number: int, reason: str, detail: str, line: str) -> None:
        self.bad.keep(number, reason, detail, line.rstrip("\r"))
        self.counts.bad += 1
        self.counts.bad_by[reason] += 1

    def _flush(self) -> None:
        """Delivers the batch, then moves the checkpoint behind all lines taken so far."""
        if self._pending:
            self._deliver(self.batch.take())
            self.bad.sync()
            self._pending = 0
            self._save()

    def _save(self) -> None:
        if self.checkpoint and (mark := self.source.mark(self._end, self._number, self.parser.columns)):
            self.checkpoint.save(mark)

    def _deliver(self, entries: list[Entry]) -> None:
        waiting = [entries] if entries else []
        while waiting:
            part = waiting.pop()
            try:
                decisions = self.send(part)
            except Refused as error:
                waiting += self._sorted_out(part, error)
            else:
                self.counts.signals += len(part)
                self.counts.blocked += sum(isinstance(d, dict) and d.get("decision") == "block" for d in decisions)

    def _sorted_out(self, part: list[Entry], error: Refused) -> list[list[Entry]]:
        """What to send again, last first: all but the item named, or halves until a culprit stands alone."""
        index = 0 if len(part) == 1 else error.index
        if index is None or index >= len(part):
            half = len(part) // 2
            return [part[half:], part[:half]]
        entry = part[index]
        self._keep(entry.number, "refused", error.message, entry.line)
        return [kept] if (kept := part[:index] + part[index + 1 :]) else []
