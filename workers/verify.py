"""`pulsegate verify audience`: recounts who watches what from the sessions themselves, and compares.

Sessions come and go while they are read, so a difference counts only if the same one is found again and again. This scans the
keyspace, as only maintenance commands do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from engine import records
from workers.runtime import Runtime
from workers.tenure import stopping

ACCOUNTS = "\t@"
PASSES = 4
PAUSE_S = 1.0
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Counts:
    """`<kind>\\t<content>\\t<provider>` → views, and with `\\t@` → accounts, by where they are counted."""

    sessions: Counter[str] = field(default_factory=Counter)
    """Counted anew, from every session's record."""
    partitions: Counter[str] = field(default_factory=Counter)
    """The partitions' own counts."""
    totals: Counter[str] = field(default_factory=Counter)
    """The totals, with the changes that are on their way to them."""

    def differences(self) -> dict[str, tuple[int, int, int]]:
        """What is not counted alike: (sessions, partitions, totals)."""
        every = self.sessions.keys() | self.partitions.keys() | self.totals.keys()
        found = {what: (self.sessions[what], self.partitions[what], self.totals[what]) for what in sorted(every)}
        return {what: counts for what, counts in found.items() if len(set(counts)) > 1}


def count(run: Runtime) -> Counts:
    """One pass over everything."""
    found, keys = Counts(), run.keys
    for members in _accounts(run):
        watched = Counter(filter(None, map(_watched, members)))
        found.sessions.update(watched)
        found.sessions.update(f"{what}{ACCOUNTS}" for what in watched)
    applied: Any = run.log.hgetall(keys.applied)
    for partition in range(run.settings.partitions):
        audience: Any = run.session.zrange(keys.audience(partition), 0, -1, withscores=True)
        for what, score in audience:
            found.partitions[what.decode(errors="replace")] += int(score)
        claimed: Any = run.session.hgetall(keys.claimed(partition))
        number = _number(claimed.pop(b"", b"0"))
        if number > _number(applied.get(b"%d" % partition, b"0")):
            _add(found.totals, claimed)
        _add(found.totals, run.session.hgetall(keys.deltas(partition)))
    _add(found.totals, run.log.hgetall(keys.totals))
    accounts: Any = run.log.hgetall(keys.accounts)
    _add(found.totals, {what + ACCOUNTS.encode(): number for what, number in accounts.items()})
    return found


def verify(run: Runtime) -> tuple[Counts, dict[str, tuple[int, int, int]]]:
    """The last pass, and the differences that every pass found; none after the first without any."""
    standing: dict[str, tuple[int, int, int]] | None = None
    for number in range(PASSES):
        if number:
            stopping.wait(PAUSE_S)
        found = count(run)
        now = found.differences()
        standing = (
            now if standing is None else {what: now[what] for what in standing if now.get(what) == standing[what]}
        )
        if not standing:
            break
    return found, standing or {}


def _accounts(run: Runtime) -> Iterator[list[bytes]]:
    """The records of each account."""
    escaped = "".join(f"\\{c}" if c in r"*?[]\\" else c for c in run.settings.prefix)
    batch: list[bytes] = []
    for key in run.session.scan_iter(match=f"{escaped}:{{*}}:leases:*", count=1_000, _type="zset"):
        batch.append(key)
        if len(batch) >= _PAGE:
            yield from _read(run, batch)
            batch = []
    yield from _read(run, batch)


def _read(run: Runtime, batch: list[bytes]) -> Iterator[list[bytes]]:
    with run.session.pipeline(**({} if run.clustered else {"transaction": False})) as pipe:
        for key in batch:
            pipe.zrange(key, 0, -1)
        yield from pipe.execute()


def _add(counts: Counter[str], found: Any) -> None:
    for what, number in found.items():
        if what:
            counts[what.decode(errors="replace")] += _number(number)


def _watched(text: bytes) -> str | None:
    try:
        return records.read(text).watched
    except (ValueError, IndexError):  # no record, so nobody watches by it
        return None


def _number(stored: Any) -> int:
    try:
        return int(stored)
    except ValueError:
        return 0
