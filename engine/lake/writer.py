"""Writes Parquet files, and keeps account of what each one covers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.lake import files
from engine.lake.forms import form_of
from engine.lake.layout import runs
from engine.lake.manifest import Change, Conflict, File, Manifests, Range

ROW_GROUP = 65_536
"""Rows. A search for one account reads a row group at least; a scan decodes one at a time."""
GROUP_BYTES = 64 * 2**20
"""In memory; a row group of very large rows has fewer."""


class Output:
    """One file being written. Rows must come sorted by partition and id."""

    bytes: int
    """Written so far."""

    def __init__(self, root: Path, where: str, now_ms: int) -> None:
        self.path = f"{where}/{now_ms:013d}-{os.urandom(6).hex()}.parquet"
        self._root, self._now = root, now_ms
        self._ranges: list[tuple[int, int, int, int, int, int]] = []
        self._at: list[int] = []
        self._rows = 0
        self._writer: pq.ParquetWriter | None = None
        self.bytes = self._raw = 0
        self._handle: IO[bytes] | None = None

    @contextmanager
    def opened(self) -> Iterator[Output]:
        with files.writing(self._root / self.path) as handle:
            self._handle = handle
            form = form_of(self.path.split("/")[0])
            sorting = pq.SortingColumn.from_ordering(form.schema, form.order)
            self._writer = pq.ParquetWriter(handle, form.schema, sorting_columns=sorting, **form.encoding)
            yield self
            self._writer.close()
            self.bytes = handle.tell()

    def write(self, rows: pa.Table) -> None:
        assert self._writer is not None
        assert self._handle is not None
        size = int(rows.nbytes)
        at_most = GROUP_BYTES // max(1, size // rows.num_rows)
        self._writer.write_table(rows, row_group_size=max(1, min(ROW_GROUP, at_most)))
        self._rows += rows.num_rows
        self._raw += size
        self.bytes = self._handle.tell()
        found = pc.min_max(rows["at"].cast(pa.int64())).as_py()
        self._at += [found["min"], found["max"]]
        ms, seq = rows["stream_ms"], rows["stream_seq"]
        for partition, begin, end in runs(rows):
            low, high = (ms[begin].as_py(), seq[begin].as_py()), (ms[end - 1].as_py(), seq[end - 1].as_py())
            if self._ranges and self._ranges[-1][0] == partition:  # goes on from the last table
                _, *first, _, _, count = self._ranges.pop()
                self._ranges.append((partition, first[0], first[1], *high, count + end - begin))
            else:
                self._ranges.append((partition, *low, *high, end - begin))

    def file(self, *, settled: bool = False) -> File:
        """What was written, once `opened` is over."""
        base = min(r[1] for r in self._ranges)
        ranges = tuple(Range(p, lo - base, ls, hi - base, hs, n) for p, lo, ls, hi, hs, n in self._ranges)
        return File(
            self.path, self.path.split("/")[0], self._rows, self.bytes, self._raw, min(self._at), max(self._at), self._now,
            base, max(r[3] for r in self._ranges), ranges, settled,
        )  # fmt: skip


def write(root: Path, where: str, rows: pa.Table, now_ms: int) -> File:
    """One file of sorted rows in the folder `where`."""
    output = Output(root, where, now_ms)
    with output.opened():
        output.write(rows)
    return output.file()


@contextmanager
def collecting(root: Path) -> Iterator[list[File]]:
    """Files written within; if that fails, they are removed again."""
    made: list[File] = []
    try:
        yield made
    except BaseException:
        _remove(root, made)
        raise


def commit(root: Path, manifests: Manifests, change: Change) -> None:
    """Commits; if that is refused, removes the files again. After any other error they may be in use: the sweep decides."""
    try:
        manifests.commit(change)
    except Conflict as conflict:
        if not conflict.unsure:
            _remove(root, change.add)
        raise


def _remove(root: Path, made: Iterable[File]) -> None:
    for file in made:
        files.remove(root / file.path)
