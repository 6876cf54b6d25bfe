"""Which files make up the lake: numbered manifests, each created once and never changed.

`_manifest/000000123.json` is the root of the lake's state after its 123rd change: the positions, and for each date the name
of a list (`_manifest/lists/…`) of that date's files, which says what each covers. A change writes the lists of the
dates it touches anew and then creates root n+1, which only one writer can; the lake's state is the highest root. So a
change costs one root (about 7 KB of positions at 256 partitions, and 70 bytes a date) and mostly today's list, however old the lake is.

Lists nobody refers to any more go after minutes, old roots after an hour; who finds a list gone reads the newest root again.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import msgspec
from msgspec import Struct

from engine.lake import files
from engine.lake.layout import date_of

FOLDER, LISTS = "_manifest", "lists"
KEEP_ROOTS = 16
KEEP_ROOTS_MS = KEEP_FILES_MS = 3_600_000
_CACHED = 64
"""Lists kept decoded."""

Id = tuple[int, int]


class Conflict(Exception):
    """The lake changed so that this change no longer fits. Whoever wanted it looks again."""

    def __init__(self, why: str, *, unsure: bool = False) -> None:
        super().__init__(why)
        self.unsure = unsure
        """It cannot be told whether the change was made: its files must stay."""


class Range(Struct, array_like=True, frozen=True):
    """What a file holds of one partition: `rows` with ids from low to high; ms count from the file's `base_ms`."""

    partition: int
    low_ms: int
    low_seq: int
    high_ms: int
    high_seq: int
    rows: int


class File(Struct, frozen=True):
    """One Parquet file; `path` is below the lake's folder. Rows are sorted by partition and id. `raw_bytes`: in memory."""

    path: str
    topic: str
    rows: int
    bytes: int
    raw_bytes: int
    first_at: int
    last_at: int
    written_at: int
    base_ms: int
    high_ms: int
    ranges: tuple[Range, ...]
    settled: bool = False
    """Its hour was quiet when it was merged; it is left alone until something late joins it."""


class Day(Struct, frozen=True):
    """One date's list: its name, and what its files hold together, by stream id; `loose`: files not settled."""

    list: str
    low_ms: int
    high_ms: int
    files: int
    loose: int
    rows: int
    bytes: int


class Erased(Struct, frozen=True):
    """Rows of an account with ids up to `through_ms` must not come into the lake. `account` is a digest."""

    account: str
    through_ms: int
    at: int


class Root(Struct, frozen=True):
    """The lake's state. `erased` names a list of `Erased`, or is ''."""

    n: int = 0
    at: int = 0
    positions: dict[int, str] = {}
    days: dict[str, Day] = {}
    erased: str = ""


@dataclass(slots=True)
class Change:
    """What a commit does. `began_at` is when the first of the files was begun (ms)."""

    began_at: int
    add: Sequence[File] = ()
    drop: frozenset[str] = frozenset()
    positions: dict[int, str] = field(default_factory=dict)
    erased: Sequence[Erased] | None = None
    allowed: Callable[[Root], None] = lambda root: None
    """Raises Conflict if the change does not fit this state."""


_root = msgspec.json.Decoder(Root)
_files = msgspec.json.Decoder(tuple[File, ...])
_erased = msgspec.json.Decoder(tuple[Erased, ...])


class Manifests:
    """`clock` is ms since the epoch."""

    def __init__(self, root: Path, clock: Callable[[], int]) -> None:
        self._folder, self._lists, self._clock = root / FOLDER, root / FOLDER / LISTS, clock
        self._newest = Root()
        self._cache: OrderedDict[str, tuple[File, ...]] = OrderedDict()

    def newest(self) -> Root:
        """The lake as it is now; n is 0 for one that does not exist yet."""
        while True:
            numbers = self._numbers()
            if not numbers:
                return Root()
            if self._newest.n == numbers[-1]:
                return self._newest
            try:
                self._newest = _root.decode(self._path(numbers[-1]).read_bytes())
            except FileNotFoundError:  # an hour has passed between two lines
                continue
            return self._newest

    def day(self, root: Root, date: str) -> tuple[File, ...]:
        """The files of one date. Raises FileNotFoundError if the root is outdated and its list is gone."""
        if date not in root.days:
            return ()
        name = root.days[date].list
        if name not in self._cache:
            self._cache[name] = _files.decode((self._lists / name).read_bytes())
            while len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(name)
        return self._cache[name]

    def erased(self, root: Root) -> tuple[Erased, ...]:
        return _erased.decode((self._lists / root.erased).read_bytes()) if root.erased else ()

    def commit(self, change: Change, tries: int = 100) -> Root:
        """Makes the change on top of whatever others have done meanwhile. Raises Conflict if they leave no room for it."""
        for _ in range(tries):
            base = self.newest()
            change.allowed(base)
            if change.add and self._clock() - change.began_at > KEEP_FILES_MS // 2:
                raise Conflict("slept for too long before the commit")  # its files may be about to be swept
            try:
                days = self._days(base, change)
                erased = base.erased if change.erased is None else self._list("erased", change.erased)
            except FileNotFoundError:  # the base was replaced meanwhile, and its lists are gone
                continue
            made = Root(base.n + 1, self._clock(), base.positions | change.positions, days, erased)
            if (self._numbers() or [0])[-1] != base.n:
                continue
            if files.create(self._path(made.n), msgspec.json.encode(made)):
                self._check(base)
                self._prune()
                self._newest = made
                return made
        raise Conflict("too many others write to the lake")

    def unused_lists(self, root: Root, older_ms: int) -> list[Path]:
        """Lists this root does not refer to, and what was left of writing others."""
        used = {day.list for day in root.days.values()} | {root.erased}
        now = self._clock()
        found = [path for path in self._entries(self._lists) if path.name not in used]
        found += [path for path in self._entries(self._folder) if path.name.endswith(files.TEMPORARY)]
        return [path for path in found if files.age_ms(path, now) > older_ms]

    # the parts

    def _days(self, base: Root, change: Change) -> dict[str, Day]:
        days = dict(base.days)
        for date in sorted({date_of(path) for path in (*change.drop, *(f.path for f in change.add))}):
            kept = self.day(base, date)
            if missing := {p for p in change.drop if date_of(p) == date} - {f.path for f in kept}:
                raise Conflict(f"{min(missing)} was replaced")
            now = [f for f in kept if f.path not in change.drop] + [f for f in change.add if date_of(f.path) == date]
            days.pop(date, None)
            if now:
                days[date] = Day(
                    self._list(date, now), min(f.base_ms for f in now), max(f.high_ms for f in now), len(now),
                    sum(not f.settled for f in now), sum(f.rows for f in now), sum(f.bytes for f in now),
                )  # fmt: skip
        return dict(sorted(days.items()))

    def _list(self, what: str, content: Sequence[Struct]) -> str:
        """Written anew for each attempt, so an unused list can never come into use again."""
        name = f"{what}-{os.urandom(8).hex()}.json"
        files.write(self._lists / name, msgspec.json.encode(content))
        return name

    def _check(self, base: Root) -> None:
        """A writer that slept for an hour may find number n+1 free again because it has come and gone. Roots go in order, so as
        long as root n is there n+1 was never taken before."""
        if base.n and not self._path(base.n).exists():
            raise Conflict("slept for too long", unsure=True)

    def _prune(self) -> None:
        now = self._clock()
        for n in self._numbers()[:-KEEP_ROOTS]:
            if files.age_ms(self._path(n), now) < KEEP_ROOTS_MS:
                break
            files.remove(self._path(n))

    def _path(self, n: int) -> Path:
        return self._folder / f"{n:09d}.json"

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())

    def _entries(self, folder: Path) -> list[Path]:
        try:
            return [folder / name for name in os.listdir(folder)]
        except FileNotFoundError:
            return []


def digest(account: str) -> str:
    """How an erased account is remembered: not by its name."""
    return blake2b(account.encode(errors="replace"), digest_size=16).hexdigest()


def bounds(file: File, part: Range) -> tuple[Id, Id]:
    """The first and the last id of one partition in a file."""
    return (file.base_ms + part.low_ms, part.low_seq), (file.base_ms + part.high_ms, part.high_seq)


def paths(listed: Iterable[File]) -> frozenset[str]:
    return frozenset(file.path for file in listed)
