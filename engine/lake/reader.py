"""Reads events back, those of a partition in the order of their ids, as of one moment, in bounded memory.

It goes through stream time an hour at a time, and within the hour by partition, loading a piece (scan.py) and then handing it out.
Days are looked up when their turn comes. If a file or list has gone meanwhile (replaced more than an hour ago, or erased
from), it looks the newest state up and goes on where it was, still leaving out what came later than its moment: so
what it yields is what the lake held when it began, less what was erased before it got there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from engine.events import order
from engine.lake.layout import HOUR, date_of, folder
from engine.lake.manifest import Day, File, Manifests, Root
from engine.lake.scan import Filter, Piece, Scan, plan

_TRIES = 50


class Reader:
    """One reading; iterate over `tables()` once."""

    def __init__(self, root: Path, manifests: Manifests, wanted: Filter) -> None:
        self._root, self._manifests, self._wanted = root, manifests, wanted
        began = 0
        if wanted.partitions and wanted.partitions <= wanted.after.keys():
            began = min(wanted.after[p][0] for p in wanted.partitions) // HOUR * HOUR
        self._at = (began, 0, began)
        """How far it is: the hour; all partitions below this one are done in it; and this one up to this ms."""

    def tables(self) -> Iterator[pa.Table]:
        """Sorted rows. Raises FileNotFoundError only if the newest state itself misses a file."""
        state, failed = self._manifests.newest(), 0
        upto = {p: order(id_) for p, id_ in state.positions.items()}
        while True:
            began = self._at
            try:
                yield from self._walk(state)
                return
            except FileNotFoundError:
                newest = self._manifests.newest()
                failed = failed + 1 if self._at == began else 0
                if newest.n == state.n or failed > _TRIES:
                    raise
                state = newest
                self._wanted = replace(self._wanted, upto=upto)

    def _walk(self, state: Root) -> Iterator[pa.Table]:
        days = sorted((day.low_ms, date) for date, day in state.days.items() if self._wants(date, day))
        listed: list[File] = []
        with Scan(self._root, self._wanted) as scan:
            while days or listed:
                hour = self._at[0]
                end = hour + HOUR
                while days and days[0][0] < end:
                    listed += filter(self._wanted.wants, self._manifests.day(state, days.pop(0)[1]))
                here = [f for f in listed if f.base_ms < end and f.high_ms >= hour]
                for piece in self._pieces(here, end):
                    rows = scan.load(here, piece)
                    self._at = (hour, piece.last + 1, hour) if piece.high == end else (hour, piece.last, piece.high)
                    if rows.num_rows:
                        yield rows
                listed = [f for f in listed if f.high_ms >= end]
                ahead = (
                    min([max(end, f.base_ms) for f in listed] + [low for low, _ in days[:1]], default=end)
                    // HOUR
                    * HOUR
                )
                self._at = (ahead, 0, ahead)

    def _pieces(self, files: list[File], end: int) -> Iterator[Piece]:
        hour, partition, ms = self._at
        wanted = self._wanted.partitions
        if ms > hour:
            if wanted is None or partition in wanted:
                yield from plan(files, ms, end, {partition})
            partition += 1
        yield from plan(files, hour, end, wanted, partition)

    def _wants(self, date: str, day: Day) -> bool:
        since, until = self._wanted.since, self._wanted.until
        return (
            day.high_ms >= self._at[0]
            and (since is None or date >= date_of(folder("", since)))
            and (until is None or date <= date_of(folder("", until)))
        )
