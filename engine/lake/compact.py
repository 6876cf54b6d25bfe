"""Merges the small files of an hour, and removes what no reader needs any more.

An hour that still receives events is merged by size: six files of about one size become one, so each row is written
a few times in all. An hour that has been quiet is merged whole, into files of about `target_bytes`, split between
partitions. Replaced files stay an hour for those who read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import msgspec

from engine.lake import files
from engine.lake.layout import HOUR, hour_began
from engine.lake.manifest import FOLDER, KEEP_FILES_MS, Change, Conflict, File, Manifests, Root, paths
from engine.lake.scan import Scan, plan
from engine.lake.writer import Output, collecting, commit

BUSY = 6
"""Files of about one size that are merged although their hour goes on."""
LISTS_KEEP_MS = 120_000
_ALIKE = 4
_TINY = 65_536


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did."""

    merged: int
    """Files that were replaced."""
    written: int
    bytes: int


class Compaction:
    def __init__(
        self, root: Path, manifests: Manifests, clock: Callable[[], int], older_than_ms: int, target_bytes: int
    ) -> None:
        self._root, self._manifests, self._clock = root, manifests, clock
        self._older, self._target = older_than_ms, target_bytes

    def run(self) -> Compacted:
        """Goes over all hours with loose files. An hour that changes under its hands is left for the next time."""
        merged = written = size = 0
        state = self._manifests.newest()
        for date in [date for date, day in state.days.items() if day.loose]:
            for group in self._groups(date):
                try:
                    done = self._hour(group)
                except (Conflict, FileNotFoundError):
                    continue
                merged, written, size = merged + done.merged, written + done.written, size + done.bytes
        return Compacted(merged, written, size)

    def _groups(self, date: str) -> list[list[File]]:
        """The files of each folder that has loose ones."""
        try:
            listed = self._manifests.day(self._manifests.newest(), date)
        except FileNotFoundError:
            return []
        by_folder = groupby(sorted(listed, key=lambda f: f.path), lambda f: f.path.rpartition("/")[0])
        groups = [list(group) for _, group in by_folder]
        return [group for group in groups if not all(f.settled for f in group)]

    def _hour(self, group: Sequence[File]) -> Compacted:
        newest = max(f.written_at for f in group if not f.settled)
        over = hour_began(group[0].path) + HOUR
        if self._clock() - max(newest, over) < self._older:
            chosen = alike([f for f in group if f.bytes < self._target and not f.settled])
            return self._merge(chosen, settled=False) if len(chosen) >= BUSY else Compacted(0, 0, 0)
        small = [f for f in group if f.bytes < self._target]
        done = self._merge(small, settled=True) if len(small) > 1 else Compacted(0, 0, 0)
        left = [f for f in group if not f.settled and (f not in small or len(small) == 1)]
        if left:
            kept = [msgspec.structs.replace(f, settled=True) for f in left]
            self._manifests.commit(Change(self._clock(), kept, paths(left)))
        return done

    def _merge(self, chosen: Sequence[File], *, settled: bool) -> Compacted:
        began = self._clock()
        with collecting(self._root) as written:
            for made in self._write(chosen, settled=settled):
                written.append(made)
            if sum(f.rows for f in written) != sum(f.rows for f in chosen):
                raise RuntimeError(
                    f"merging {chosen[0].path} and others gave another number of rows; nothing was replaced"
                )
            for file in chosen:  # from now on they are kept for readers
                files.touch(self._root / file.path, began)
        commit(self._root, self._manifests, Change(began, written, paths(chosen)))
        return Compacted(len(chosen), len(written), sum(f.bytes for f in written))

    def _write(self, chosen: Sequence[File], *, settled: bool) -> Iterator[File]:
        """The rows of all of them in new files."""
        where = chosen[0].path.rpartition("/")[0]
        low, high = min(f.base_ms for f in chosen), max(f.high_ms for f in chosen) + 1
        output: Output | None = None
        last = -1
        with Scan(self._root) as scan, ExitStack() as stack:
            for piece in plan(chosen, low, high):
                if output and output.bytes >= self._target and piece.first != last:
                    stack.close()
                    yield output.file(settled=settled)
                    output = None
                rows = scan.load(chosen, piece)
                if rows.num_rows:
                    output = output or stack.enter_context(Output(self._root, where, self._clock()).opened())
                    output.write(rows)
                    last = piece.last
            stack.close()
        if output:
            yield output.file(settled=settled)


def alike(group: Sequence[File]) -> list[File]:
    """The smallest files, as long as each is not much larger than the average of those before it."""
    chosen: list[File] = []
    total = 0
    for file in sorted(group, key=lambda f: f.bytes):
        if chosen and file.bytes > _TINY and file.bytes > _ALIKE * total / len(chosen):
            break
        chosen.append(file)
        total += file.bytes
    return chosen


def sweep(root: Path, manifests: Manifests, now_ms: int) -> int:
    """Removes lists, and once an hour files, that the newest manifest does not refer to; how many went."""
    old: list[Path] = []
    marker = root / FOLDER / "swept"
    whole = not 0 <= files.age_ms(marker, now_ms) < KEEP_FILES_MS
    try:
        if whole:
            # No writer commits files older than half of this.
            found = unreferenced(root, manifests, manifests.newest())
            old = [path for path in found if files.age_ms(path, now_ms) > KEEP_FILES_MS]
        old += _unused_lists(manifests, now_ms)
    except (Conflict, FileNotFoundError):  # others were quicker; the next time will do
        return 0
    for path in old:
        files.remove(path)
    if whole and (root / FOLDER).is_dir():
        files.remove(marker)
        files.write(marker, b"")
    return len(old)


def _unused_lists(manifests: Manifests, now_ms: int) -> list[Path]:
    """Lists that nobody refers to, nor ever will: after looking, a manifest is made on top of just that state. A writer
    that sleeps with its list written and its root not finds the root's number taken, and writes the list anew."""
    state = manifests.newest()
    unused = manifests.unused_lists(state, LISTS_KEEP_MS)

    def still(now: Root) -> None:
        if now.n != state.n:
            raise Conflict("others were quicker")

    if unused:
        manifests.commit(Change(now_ms, allowed=still))
    return unused


def on_disk(root: Path) -> Iterator[Path]:
    """All files in the lake's folders, unfinished ones included."""
    return root.glob("*/date=*/hour=*/*")


def unreferenced(root: Path, manifests: Manifests, state: Root) -> Iterator[Path]:
    """Those that the state does not refer to. Raises FileNotFoundError if the state was replaced meanwhile."""
    date, used = "", frozenset[str]()
    for path in sorted(on_disk(root)):
        if path.parts[-3][5:] != date:
            date = path.parts[-3][5:]
            used = paths(manifests.day(state, date))
        if path.relative_to(root).as_posix() not in used:
            yield path
