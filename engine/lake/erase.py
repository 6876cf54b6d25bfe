"""Takes accounts out of the lake: files that hold a row of theirs are written anew without it and removed at once.

First the manifest notes who is erased and up to which id, so no append under way, and none of what the log still holds,
can bring a row back (the note, a digest of the name, is kept for a week). A compaction under way finds its files
replaced and gives up. A reader that has such a file open reads it to its end; one that has not yet opened it goes on without those
rows. Erasing again is harmless, and is how one that was cut off is finished.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.lake import files
from engine.lake.compact import on_disk, unreferenced
from engine.lake.forms import form_of
from engine.lake.manifest import Change, Conflict, Erased, File, Manifests, Root, digest, paths
from engine.lake.scan import holds_partition
from engine.lake.writer import Output, collecting, commit

REMEMBER_MS = 7 * 86_400_000
"""Longer than the log keeps anything."""
_BATCH = 32
"""Files replaced by one commit."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """How many rows went, out of how many files."""

    rows: int
    files: int


class Erasure:
    """`partitions`: where the accounts' rows are, if that is known; None searches all."""

    def __init__(
        self, root: Path, manifests: Manifests, accounts: Sequence[str], partitions: frozenset[int] | None,
        through_ms: int, clock: Callable[[], int],
    ) -> None:  # fmt: skip
        self._root, self._manifests, self._through, self._clock = root, manifests, through_ms, clock
        self._names = pa.array(sorted(set(accounts)), pa.string())
        self._partitions = partitions
        self._clean: set[str] = set()

    def run(self) -> Receipt:
        # What is on disk before the note, and unused after all is done, nobody can commit any more.
        before = frozenset(on_disk(self._root))
        self._remember()
        rows = count = 0
        while True:
            try:
                state = self._manifests.newest()
                held = self._held(state)
                for start in range(0, len(held), _BATCH):
                    batch = held[start : start + _BATCH]
                    rows += self._replace(batch)
                    count += len(batch)
                if not held:
                    self._clear(state, before)
                    return Receipt(rows, count)
            except (Conflict, FileNotFoundError):  # somebody replaced a file: look again
                continue

    def _remember(self) -> None:
        names, now = {digest(name) for name in self._names.to_pylist()}, self._clock()
        while True:
            state = self._manifests.newest()
            try:
                known = [
                    e
                    for e in self._manifests.erased(state)
                    if e.at > now - REMEMBER_MS and not (e.account in names and e.through_ms <= self._through)
                ]
                noted = known + [Erased(name, self._through, now) for name in sorted(names)]
                self._manifests.commit(Change(now, erased=noted, allowed=same_notes(state)))
                return
            except (Conflict, FileNotFoundError):
                continue

    def _held(self, state: Root) -> list[File]:
        """The files that hold a row of theirs."""
        found = []
        for date in state.days:
            for file in self._manifests.day(state, date):
                if file.path in self._clean:
                    continue
                if self._holds(file.path, file):
                    found.append(file)
                else:
                    self._clean.add(file.path)
        return found

    def _holds(self, path: str, file: File | None) -> bool:
        if file and self._partitions is not None and self._partitions.isdisjoint(r.partition for r in file.ranges):
            return False
        with pq.ParquetFile(self._root / path) as parquet:
            return any(
                pc.any(
                    self._theirs(parquet.read_row_group(g, columns=["account", "stream_ms"], use_threads=False))
                ).as_py()
                for g in range(parquet.num_row_groups)
                if holds_partition(parquet, g, self._partitions)
            )

    def _replace(self, batch: Sequence[File]) -> int:
        """Writes files anew without those rows, commits, and removes the old ones. Returns how many rows went."""
        began = self._clock()
        with collecting(self._root) as made:
            for file in batch:
                if (rest := self._without(file)) is not None:
                    made.append(rest)
        commit(self._root, self._manifests, Change(began, made, paths(batch)))
        self._clean |= paths(made)
        for file in batch:
            files.remove(self._root / file.path)
        return sum(f.rows for f in batch) - sum(f.rows for f in made)

    def _without(self, file: File) -> File | None:
        """The same file less their rows; None if nothing is left."""
        output = Output(self._root, file.path.rpartition("/")[0], file.written_at)
        with pq.ParquetFile(self._root / file.path, page_checksum_verification=True) as parquet:
            kept = 0
            with output.opened():
                for group in range(parquet.num_row_groups):
                    rows = parquet.read_row_group(group, use_threads=False)
                    rows = rows.filter(pc.invert(self._theirs(rows)))
                    kept += rows.num_rows
                    if rows.num_rows:
                        output.write(form_of(file.topic).whole(rows))
        if kept:
            return output.file(settled=file.settled)
        files.remove(self._root / output.path)
        return None

    def _theirs(self, rows: pa.Table) -> Any:
        return pc.and_(pc.is_in(rows["account"], self._names), pc.less_equal(rows["stream_ms"], self._through))

    def _clear(self, state: Root, before: frozenset[Path]) -> None:
        """Removes what still lies about: files replaced before, that were kept for readers or left by a crash."""
        for path in unreferenced(self._root, self._manifests, state):
            if (
                path.suffix == ".parquet"
                and path in before
                and self._holds(path.relative_to(self._root).as_posix(), None)
            ):
                files.remove(path)


def same_notes(state: Root) -> Callable[[Root], None]:
    """Allows a change only while the notes of who is erased are those of this state."""

    def check(now: Root) -> None:
        if now.erased != state.erased:
            raise Conflict("an account was erased meanwhile")

    return check
