"""Reads sorted rows out of many files in bounded memory: plans pieces that fit, then loads one at a time.

A file is sorted by partition and id, and the manifest says how many rows it has of each partition, and from when to when. A
piece is a span of partitions and of stream time whose rows, from all files together, are about `PIECE` at most; it is sorted
once loaded. Row groups that cannot hold a wanted row are skipped by their statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.lake.forms import Form, form_of
from engine.lake.manifest import File, Id

PIECE = 131_072
"""Rows loaded at a time, about; a row of more than `_ROW` bytes counts as several."""
_ROW = 1024
_OPEN = 128
"""Files kept open."""
_PROBED = ("partition", "stream_ms", "stream_seq", "at", "type", "account")
Mask = Any


@dataclass(frozen=True, slots=True)
class Piece:
    """Partitions first to last, stream time from low (ms) up to high, exclusive."""

    first: int
    last: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are wanted; None: all. Times are ms of `at`, `until` exclusive; ids of `after` are exclusive, those of
    `upto` inclusive, and partitions that `upto` does not name are left out."""

    topics: Collection[str] | None = None
    partitions: frozenset[int] | None = None
    after: dict[int, Id] = field(default_factory=dict)
    upto: dict[int, Id] | None = None
    since: int | None = None
    until: int | None = None
    accounts: frozenset[str] | None = None
    types: frozenset[str] | None = None

    def wants(self, file: File) -> bool:
        return not (
            (self.topics is not None and file.topic not in self.topics)
            or (self.since is not None and file.last_at < self.since)
            or (self.until is not None and file.first_at >= self.until)
        )

    def mask(self, rows: pa.Table) -> Mask:
        """None: every row."""
        tests: list[Mask] = []
        partition = rows["partition"]
        if self.partitions is not None:
            tests.append(pc.is_in(partition, value_set=pa.array(sorted(self.partitions), pa.int32())))
        if self.after:
            tests.append(pc.invert(reached(rows, self.after)))
        if self.upto is not None:
            tests.append(reached(rows, self.upto))
        at = rows["at"].cast(pa.int64())
        if self.since is not None:
            tests.append(pc.greater_equal(at, self.since))
        if self.until is not None:
            tests.append(pc.less(at, self.until))
        for name, wanted in (("type", self.types), ("account", self.accounts)):
            if wanted is not None:
                tests.append(pc.is_in(rows[name], value_set=pa.array(sorted(wanted), pa.string())))
        return _all(tests)


class Scan:
    """Files kept open for one reader."""

    def __init__(self, root: Path, wanted: Filter | None = None) -> None:
        self._root, self._filter = root, wanted or Filter()
        self._open: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()

    def load(self, files: Sequence[File], piece: Piece) -> pa.Table:
        """The piece's wanted rows, sorted; the files are of one form. Raises FileNotFoundError if a file is gone."""
        tables = [table for file in files if _overlaps(file, piece) for table in self._from(file, piece)]
        form = form_of(files[0].topic if files else "")
        if not tables:
            return form.schema.empty_table()
        return pa.concat_tables(tables).sort_by(form.order)

    def _from(self, file: File, piece: Piece) -> Iterator[pa.Table]:
        parquet = self.parquet(file.path)
        groups = [g for g in range(parquet.num_row_groups) if _may_hold(parquet, g, piece, form_of(file.topic))]
        probing = self._filter.types is not None or self._filter.accounts is not None
        for group in groups:
            if probing:
                probed = parquet.read_row_group(group, columns=list(_PROBED), use_threads=False)
                if not pc.any(self._mask(probed, piece)).as_py():
                    continue
            rows = parquet.read_row_group(group, use_threads=False)
            mask = self._mask(rows, piece)
            rows = rows if pc.all(mask).as_py() else rows.filter(mask)
            if rows.num_rows:
                yield form_of(file.topic).whole(rows)

    def _mask(self, rows: pa.Table, piece: Piece) -> Mask:
        own = _all(
            [
                pc.greater_equal(rows["partition"], piece.first), pc.less_equal(rows["partition"], piece.last),
                pc.greater_equal(rows["stream_ms"], piece.low), pc.less(rows["stream_ms"], piece.high),
            ]
        )  # fmt: skip
        wanted = self._filter.mask(rows)
        return own if wanted is None else pc.and_(own, wanted)

    def parquet(self, path: str) -> pq.ParquetFile:
        if path not in self._open:
            while len(self._open) >= _OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[path] = pq.ParquetFile(self._root / path, page_checksum_verification=True)
        self._open.move_to_end(path)
        return self._open[path]


def plan(
    files: Sequence[File], low: int, high: int, partitions: Collection[int] | None = None, first: int = 0
) -> Iterator[Piece]:
    """The pieces of stream time [low, high), by partition from `first` on, then time. Time is split only for a piece of a
    single partition."""
    weight: dict[int, float] = {}
    for file in files:
        heavy = max(1.0, file.raw_bytes / max(1, file.rows) / _ROW)
        for part in file.ranges:
            began, ended = file.base_ms + part.low_ms, file.base_ms + part.high_ms
            wanted = part.partition >= first and (partitions is None or part.partition in partitions)
            if wanted and began < high and ended >= low:
                share = (min(ended + 1, high) - max(began, low)) / (ended + 1 - began)
                weight[part.partition] = weight.get(part.partition, 0.0) + part.rows * heavy * share
    begin, last, total = -1, -1, 0.0
    for partition in sorted(weight):
        if begin >= 0 and total + weight[partition] > PIECE:
            yield from _spans(begin, last, low, high, total)
            begin, total = -1, 0.0
        begin = partition if begin < 0 else begin
        last, total = partition, total + weight[partition]
    if begin >= 0:
        yield from _spans(begin, last, low, high, total)


def _spans(first: int, last: int, low: int, high: int, total: float) -> Iterator[Piece]:
    """One piece, or several in time where one partition alone has too many rows."""
    count = max(1, min(-int(-total // PIECE), high - low)) if first == last else 1
    edges = [low + (high - low) * i // count for i in range(count + 1)]
    for begin, end in pairwise(edges):
        yield Piece(first, last, begin, end)


def _overlaps(file: File, piece: Piece) -> bool:
    return (
        file.base_ms < piece.high
        and file.high_ms >= piece.low
        and any(
            piece.first <= part.partition <= piece.last
            and file.base_ms + part.low_ms < piece.high
            and file.base_ms + part.high_ms >= piece.low
            for part in file.ranges
        )
    )


def holds_partition(parquet: pq.ParquetFile, group: int, partitions: Collection[int] | None) -> bool:
    """Whether a row group may hold a row of these partitions, by its statistics."""
    column = parquet.schema_arrow.get_field_index("partition")
    found = parquet.metadata.row_group(group).column(column).statistics
    if partitions is None or not found or not found.has_min_max:
        return True
    return any(found.min <= p <= found.max for p in partitions)


def _may_hold(parquet: pq.ParquetFile, group: int, piece: Piece, form: Form) -> bool:
    meta = parquet.metadata.row_group(group)
    partition, ms = meta.column(form.partition).statistics, meta.column(form.stream_ms).statistics
    if partition and partition.has_min_max and (partition.max < piece.first or partition.min > piece.last):
        return False
    return not (ms and ms.has_min_max and (ms.max < piece.low or ms.min >= piece.high))


def reached(rows: pa.Table, limits: dict[int, Id]) -> Mask:
    """Which rows' ids are at or below their partition's limit; false where there is none."""
    size = max(limits, default=0) + 1
    known = pc.less(rows["partition"], size)
    at = pc.if_else(known, rows["partition"], 0)
    ms = pa.array([limits[p][0] if p in limits else -1 for p in range(size)], pa.int64())
    # An id's second part may be Redis's greatest, unsigned: as a limit that stands for every row of its ms.
    seq = pa.array([min(limits[p][1], 2**63 - 1) if p in limits else -1 for p in range(size)], pa.int64())
    limit_ms, limit_seq = pc.take(ms, at), pc.take(seq, at)
    same = pc.and_(pc.equal(rows["stream_ms"], limit_ms), pc.less_equal(rows["stream_seq"], limit_seq))
    return pc.and_(known, pc.or_(pc.less(rows["stream_ms"], limit_ms), same))


def _all(tests: Sequence[Mask]) -> Mask:
    found = None
    for test in tests:
        found = test if found is None else pc.and_(found, test)
    return found
