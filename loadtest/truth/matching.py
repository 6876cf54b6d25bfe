"""Which of the engine's view records belongs to which physical view.

A record may cover several physical views (the laptop slept and went on: the record was reopened), and a physical view may
have several records (removed, and admitted again). So they are put together: whatever overlaps in time, of one session and
content, is one *sitting*.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from loadtest.truth.figures import TIMES
from loadtest.truth.households import BACKEND, Home, Stream, allows, fresh, stops
from loadtest.truth.truth import Play, Request, Truth, View

Record = dict[str, Any]
BOX = "edge:"
"""Begins the session of a device that only fetches (the simulator's)."""
SLACK_MS = 31_000
"""A record goes on so long after its view's last sign of life."""


@dataclass
class Sitting:
    account: str
    session: str
    content: str
    views: list[View] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    plays: list[Play] = field(default_factory=list)
    beats: list[Request] = field(default_factory=list)
    """Fresh answers about this content, and stops, in order."""
    lost: list[Request] = field(default_factory=list)
    """What never reached the server while it went on."""
    shared: bool = False
    """Several machines say that they are its device: they take each other's place to and fro."""
    guest: bool = False
    """It only went on for a while after its device had begun another session, and zapped meanwhile: there is no view of that."""
    moved_on_at: int | None = None
    """When the server heard that its session had gone on to other content."""

    @property
    def started_at(self) -> int:
        return self.views[0].started_at

    @property
    def ended_at(self) -> int:
        return max(view.ended_at for view in self.views)

    @property
    def last(self) -> View:
        return max(self.views, key=lambda view: view.ended_at)

    @property
    def evidence(self) -> list[Request]:
        """What showed it alive, and was let go on."""
        return [r for r in self.beats if allows(r)]

    @property
    def backend(self) -> bool:
        """Whether no player ever spoke."""
        return bool(self.beats) and all(r.call in BACKEND for r in self.beats)

    @property
    def said_end(self) -> Request | None:
        """What told the engine that the last view was over."""
        late = [r for r in self.beats if stops(r) and r.at >= self.last.started_at]
        return late[-1] if late else None

    def blocked(self) -> bool:
        return any(r.decision == "block" for r in self.beats)

    def unheard(self) -> tuple[int, int]:
        """(ms before the first evidence, ms after the last sign that reached the server), physically there all the while."""
        heard = [r.at for r in self.evidence]
        last = max([*heard, *([self.said_end.at] if self.said_end else [])], default=self.started_at)
        return (heard[0] if heard else self.ended_at) - self.started_at, max(0, self.ended_at - last)

    def played(self, start: int, end: int) -> int:
        """How much of that time it really played, ms."""
        return sum(max(0, min(end, p.ended_at) - max(start, p.started_at)) for p in self.plays if p.state == "playing")

    def idle(self) -> int:
        """How long it was there and did not play, ms."""
        return sum(p.ended_at - p.started_at for p in self.plays if p.state != "playing")

    def broken(self) -> int:
        """Played between signs of which one was lost, and that a seek or pause lies between, ms: how much nobody could tell."""
        total = 0
        for one, two in pairwise(self.evidence):
            if any(one.at < each.at <= two.at for each in self.lost):
                within = [p for p in self.plays if p.started_at < two.at and p.ended_at > one.at]
                total += self.played(one.at, two.at) if len(within) > 1 or two.at - one.at >= TIMES.lifetime else 0
        return total

    def delayed(self) -> int:
        """How much later than it was said the server heard of changes whose position it was not told, or of the place from which
        somebody sought, ms."""

        def delay(each: Request) -> int:
            return max(0, each.at - each.sent_at + each.attempt * TIMES.retry) if each.sent_at else 0

        total = 0
        for one, two in pairwise(self.evidence):
            if two.state == "seeking":
                total += delay(one)
            elif two.state != one.state and two.position is None:
                total += delay(two)
        return total

    def told(self) -> bool:
        """Whether the last word that was due reached the server, and in time: where it did not, nobody could know."""
        if self.said_end is not None and self.said_end.late:
            return False
        if any(r.late and r.at > self.ended_at for r in self.evidence):
            return False  # it looked alive when it was over
        zapped = self.last.end == "zap"
        if zapped and self.moved_on_at is not None and self.moved_on_at > self.ended_at + TIMES.interval / 2:
            return False
        return self.unheard()[1] <= TIMES.interval + TIMES.tick


def sittings(truth: Truth, homes: dict[str, Home], records: list[Record]) -> tuple[list[Sitting], list[Record]]:
    """All of them, and the records that belong to nothing that happened."""
    same = _same_to_the_engine(truth)
    by_key: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        session = _session_of(truth, homes, record)
        by_key[record["account"], same.get(session, session), record["content"]].append(record)
    made: list[Sitting] = []
    strays: list[Record] = []
    for account, views in truth.views.items():
        grouped: dict[tuple[str, str], list[View]] = defaultdict(list)
        for view in views:
            grouped[same.get(view.session, view.session), view.content].append(view)
        for (session, content), mine in grouped.items():
            together, left = _cluster(account, session, content, mine, by_key.pop((account, session, content), []))
            strays += left
            for sitting in together:
                home = homes[account]
                for stream in (home.streams.get(name) for name in {view.session for view in sitting.views}):
                    _fill(sitting, stream)
                    sitting.shared = stream is not None and home.several(stream.device)
                    if stream is not None and sitting.evidence:
                        sitting.guest = all(home.rides(stream, each) for each in sitting.evidence)
            made += together
    strays += [record for left in by_key.values() for record in left]
    return made, strays


def _same_to_the_engine(truth: Truth) -> dict[str, str]:
    """Of devices that only fetch: session → the one it goes on with, where it fetched the same content again within the time in
    which a view is reopened."""
    same: dict[str, str] = {}
    for views in truth.views.values():
        latest: dict[tuple[str, str], View] = {}
        for view in views:
            if not view.session.startswith(BOX):
                continue
            before = latest.get((view.device, view.content))
            if before is not None and view.started_at - before.ended_at < TIMES.reopen:
                same[view.session] = same.get(before.session, before.session)
            latest[view.device, view.content] = view
    return same


def _session_of(truth: Truth, homes: dict[str, Home], record: Record) -> str:
    """The engine names the sessions of those whose player never speaks; they are told by device, content and time."""
    home = homes.get(record["account"])
    if home is None or record["session"] in home.streams:
        return str(record["session"])
    same = [
        view.session
        for view in truth.views.get(record["account"], [])
        if (view.device, view.content) == (record.get("device"), record["content"])
        and view.started_at - SLACK_MS <= record["started_at"] <= view.ended_at + SLACK_MS
    ]
    return same[-1] if same else str(record["session"])


def _cluster(
    account: str, session: str, content: str, views: list[View], records: list[Record]
) -> tuple[list[Sitting], list[Record]]:
    """Goes through both in order of time and joins what overlaps."""
    pieces: list[tuple[int, int, View | Record]] = [(v.started_at, v.ended_at, v) for v in views]
    pieces += [(r["started_at"], r["ended_at"] or r["last_seen_at"], r) for r in records]
    pieces.sort(key=lambda piece: (piece[0], piece[1]))
    made: list[Sitting] = []
    strays: list[Record] = []
    sitting, until = Sitting(account, session, content), -1
    views_in_order = sorted(views, key=lambda v: v.started_at)
    for start, end, piece in pieces:
        if start > until:
            sitting = Sitting(account, session, content)
            made.append(sitting)
            until = end
        if isinstance(piece, View):
            sitting.views.append(piece)
        else:
            sitting.records.append(piece)
        until = max(until, end)
    joined: list[Sitting] = []
    for sitting in made:
        if sitting.views:
            joined.append(sitting)
            continue
        # A first heartbeat that came late: its record begins after the view, but within what is still on the way.
        began = sitting.records[0]["started_at"]
        near = [v for v in views_in_order if v.started_at <= began <= v.ended_at + SLACK_MS]
        owner = next((s for s in reversed(joined) if near and near[-1] in s.views), None)
        if owner is not None:
            owner.records += sitting.records
        else:
            strays += sitting.records
    return joined, strays


def _fill(sitting: Sitting, stream: Stream | None) -> None:
    if stream is None:
        return
    start, end = sitting.started_at, sitting.ended_at
    sitting.plays += [
        p for p in stream.plays
        if p.ended_at > start - TIMES.tick and p.started_at < end + TIMES.tick and p.content in (None, sitting.content)
    ]  # fmt: skip
    later = min((p.started_at for p in stream.plays if p.started_at >= end), default=end + SLACK_MS)
    sitting.beats += [
        r for r in stream.decided
        if start - TIMES.tick <= r.at <= max(end, min(later, end + SLACK_MS))
        and (r.content in (None, "", sitting.content)) and (fresh(r) or stops(r))
    ]  # fmt: skip
    sitting.lost += [r for r in stream.lost if start <= r.at <= end + TIMES.tick]
    for found in (sitting.beats, sitting.lost):
        found.sort(key=lambda r: (r.at, r.n))
    sitting.plays.sort(key=lambda p: (p.started_at, p.ended_at))
    moved = [r.at for r in stream.decided if r.at >= end and r.content not in (None, "", sitting.content)]
    sitting.moved_on_at = min([*moved, *([sitting.moved_on_at] if sitting.moved_on_at else [])], default=None)
