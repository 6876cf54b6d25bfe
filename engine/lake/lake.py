"""The lake: append, read, compact, erase."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import PulsegateError
from engine.events import Event, order
from engine.lake import files
from engine.lake.compact import Compacted, Compaction, sweep
from engine.lake.erase import Erasure, Receipt, same_notes
from engine.lake.forms import form_of
from engine.lake.layout import by_hour, date_of, events, folder, split, table
from engine.lake.manifest import Change, Conflict, Erased, File, Id, Manifests, Root, digest
from engine.lake.reader import Reader
from engine.lake.scan import Filter, reached
from engine.lake.writer import collecting, commit, write
from engine.partitions import partition_of

_TRIES = 5
TARGET_BYTES = 128 * 2**20


def _wall() -> int:
    return int(time.time() * 1000)


class Lake:
    """The folder `root`, made when first written to. Any number of processes may use it at the same time.

    `partitions`, the deployment's number of them, may be given to find an account's rows quicker. `clock` is ms since the
    epoch.
    """

    def __init__(self, root: Path, *, partitions: int = 0, clock: Callable[[], int] = _wall) -> None:
        self._root, self._partitions, self._clock = root, partitions, clock
        self._manifests = Manifests(root, clock)

    def positions(self) -> dict[int, str]:
        """Partition → the last stream id the lake has taken."""
        return dict(self._manifests.newest().positions)

    def append(self, batch: Sequence[Event]) -> int:
        """Adds events and moves the positions, both at once and durably; returns how many were new.

        The events may be of any partitions, topics and hours, in any order; but those of a partition must be all there
        are between its position and the greatest id given. Ids at or below the position are taken already, and dropped.
        Raises Conflict if the same partitions are written by others all the time.
        """
        return _again(lambda: self._append(batch))

    def add(self, topic: str, rows: pa.Table, ends: Mapping[int, str]) -> int:
        """Adds rows of a topic with columns of its own (engine/lake/forms.py), and moves the positions to `ends`, both at once and
        durably; returns how many were new. As with events: all rows there are up to there, and those at or below a position
        are taken already. Raises Conflict if the same partitions are written by others all the time."""
        found = {p: order(id_) for p, id_ in ends.items()}
        return _again(lambda: self._add(topic, rows, found))

    def read(
        self,
        *,
        topics: Collection[str] | None = None,
        partitions: Collection[int] | None = None,
        after: Mapping[int, str] | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        accounts: Collection[str] | None = None,
        types: Collection[str] | None = None,
    ) -> Iterator[Event]:
        """The events of a partition in the order of their ids, all partitions in turn hour by hour, as of now.

        `after` are ids, exclusive; `from_ms` and `to_ms` (exclusive) bound `at`; None: no bound.
        """
        wanted = Filter(
            topics=topics,
            partitions=None if partitions is None else frozenset(partitions),
            after={p: order(id_) for p, id_ in (after or {}).items()},
            since=from_ms,
            until=to_ms,
            accounts=None if accounts is None else frozenset(accounts),
            types=None if types is None else frozenset(types),
        )
        for rows in Reader(self._root, self._manifests, self._narrowed(wanted)).tables():
            yield from events(rows)

    def files(self, topic: str, from_ms: int | None = None, to_ms: int | None = None) -> list[Path]:
        """The Parquet files that hold a topic's events of that time, for DuckDB and others. They stay for an hour at
        least, unless an account is erased."""
        wanted = Filter(topics=(topic,), since=from_ms, until=to_ms)
        return [self._root / f.path for f in self._listed(from_ms, to_ms) if wanted.wants(f)]

    def compact(self, older_than_ms: int = 600_000, target_bytes: int = TARGET_BYTES) -> Compacted:
        """Merges the small files of hours that nothing was added to for so long; those of busy hours, six at a time.
        Does nothing if another process on this machine is at it."""
        with files.only_one(self._root / "_manifest" / "compacting") as alone:
            if not alone:
                return Compacted(0, 0, 0)
            return Compaction(self._root, self._manifests, self._clock, older_than_ms, target_bytes).run()

    def sweep(self) -> int:
        """Removes what nobody refers to any more and is old enough; returns how many files."""
        return sweep(self._root, self._manifests, self._clock())

    def erase(self, *accounts: str, through_ms: int | None = None) -> Receipt:
        """Removes all rows of these accounts with ids up to `through_ms`, for good; several at once cost little more
        than one. Without it: all rows there are, and all that may still come with an id up to now. Safe to repeat, and to be
        repeated after a crash."""
        newest = max((order(id_)[0] for id_ in self.positions().values()), default=0)
        through = max(self._clock(), newest) if through_ms is None else through_ms
        return Erasure(self._root, self._manifests, accounts, self._of(accounts), through, self._clock).run()

    # the parts

    def _append(self, batch: Sequence[Event]) -> int:
        base = self._manifests.newest()
        fresh, ids, ends = _beyond(batch, _floor(base))
        if not fresh:
            return 0
        through = self._erased(base, {event.account for event in fresh})
        kept = [(e, id_) for e, id_ in zip(fresh, ids, strict=True) if id_[0] > through.get(e.account, -1)]
        rows = table([e for e, _ in kept], [id_ for _, id_ in kept]) if kept else None
        return self._commit(base, split(rows) if rows else (), ends)

    def _add(self, topic: str, rows: pa.Table, ends: Mapping[int, Id]) -> int:
        base = self._manifests.newest()
        floor = _floor(base)
        further = {p: end for p, end in ends.items() if end > floor.get(p, (-1, 0))}
        if not further:
            return 0
        rows = rows.filter(pc.invert(reached(rows, {p: floor[p] for p in further if p in floor})))
        rows = rows.filter(pc.is_in(rows["partition"], value_set=pa.array(sorted(further), pa.int32())))
        for account, through in self._erased(base, set(rows["account"].to_pylist())).items():
            theirs = pc.and_(pc.equal(rows["account"], account), pc.less_equal(rows["stream_ms"], through))
            rows = rows.filter(pc.invert(theirs))
        return self._commit(base, by_hour(topic, rows, form_of(topic).order), further)

    def _commit(self, base: Root, parts: Iterable[tuple[str, pa.Table]], ends: Mapping[int, Id]) -> int:
        began = self._clock()
        with collecting(self._root) as made:
            for where, rows in parts:
                made.append(write(self._root, where, rows, began))
        positions = {p: f"{ms}-{seq}" for p, (ms, seq) in ends.items()}
        unchanged, same = _same_positions(base, ends), same_notes(base)

        def allowed(now: Root) -> None:
            unchanged(now)
            same(now)

        commit(self._root, self._manifests, Change(began, made, positions=positions, allowed=allowed))
        return sum(file.rows for file in made)

    def _erased(self, base: Root, accounts: Collection[str]) -> dict[str, int]:
        """Of these accounts those that were erased, and up to which ms of their ids."""
        notes: dict[str, Erased] = {}
        if base.erased:
            try:
                notes = {note.account: note for note in self._manifests.erased(base)}
            except FileNotFoundError:
                raise Conflict("the lake changed meanwhile") from None
        if not notes:
            return {}
        return {name: notes[known].through_ms for name in accounts if (known := digest(name)) in notes}

    def _listed(self, from_ms: int | None, to_ms: int | None) -> list[File]:
        low = "" if from_ms is None else date_of(folder("", from_ms))
        high = "~" if to_ms is None else date_of(folder("", to_ms))
        for _ in range(_TRIES):
            state = self._manifests.newest()
            try:
                return [f for date in state.days if low <= date <= high for f in self._manifests.day(state, date)]
            except FileNotFoundError:
                continue
        raise PulsegateError("the lake's manifest names lists that are gone", code="lake_damaged")

    def _of(self, accounts: Collection[str]) -> frozenset[int] | None:
        return frozenset(partition_of(a, self._partitions) for a in accounts) if self._partitions else None

    def _narrowed(self, wanted: Filter) -> Filter:
        """An account's rows are in one partition."""
        if wanted.accounts is None or (where := self._of(wanted.accounts)) is None:
            return wanted
        return replace(wanted, partitions=where if wanted.partitions is None else where & wanted.partitions)


def _again(change: Callable[[], int]) -> int:
    for attempt in range(_TRIES):
        try:
            return change()
        except Conflict:
            if attempt == _TRIES - 1:
                raise
    return 0


def _floor(base: Root) -> dict[int, Id]:
    return {p: order(id_) for p, id_ in base.positions.items()}


def _beyond(batch: Sequence[Event], floor: Mapping[int, Id]) -> tuple[list[Event], list[Id], dict[int, Id]]:
    """The events beyond their partition's position, their ids, and how far each partition comes with them."""
    fresh, ids = list[Event](), list[Id]()
    ends: dict[int, Id] = {}
    for event in batch:
        id_, partition = order(event.stream_id), event.partition
        if id_ > floor.get(partition, (-1, 0)):
            fresh.append(event)
            ids.append(id_)
            if id_ > ends.get(partition, (-1, 0)):
                ends[partition] = id_
    return fresh, ids, ends


def _same_positions(base: Root, partitions: Collection[int]) -> Callable[[Root], None]:
    """Allows a change only while nobody else has written these partitions."""

    def check(now: Root) -> None:
        for partition in partitions:
            if now.positions.get(partition) != base.positions.get(partition):
                raise Conflict(f"partition {partition} was written by another")

    return check
