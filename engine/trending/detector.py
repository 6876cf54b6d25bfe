"""What is trending in one scope: the contents whose audience is a surprise. docs/trending.md has the formula and what was measured.

    score = (observed − expected) / √(expected + softening)

No clock, no Redis, no randomness: the caller brings the time and the counts. All averages use the real time between two ticks,
so ticks may be late, rare or missing. A tick is a few passes over lists: one of 20,000 contents takes some 20 ms.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from engine.trending import state
from engine.trending.items import Distinct, Item, Member
from engine.trending.params import Params
from engine.trending.profile import UNKNOWN, Profile
from engine.trending.slots import Slots

HOUR_MS = 3_600_000

_BLOCK_S = 300.0  # the profile keeps the busiest such block of an hour
_GAP_S = 900.0  # of a longer silence only so much is taken as watched
_CROWD = 8  # contents from which growth of all can be told from a surge of some,
_CROWD_VIEWERS = 10.0  # and viewers from which it can be told from noise


class Detector:
    """The state of one scope: a kind of content, of all providers or of one."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.slots = Slots(params.contents_max)
        self.profile = Profile(params.week_weight)
        self.members: dict[str, Member] = {}
        self.began: int | None = None  # ms of the first tick
        self.last: int | None = None  # ms of the latest
        self.hour = -1  # since the epoch; what peak belongs to
        self.covered = 0.0  # seconds of it that were observed
        self.restored = False  # the averages are lost: the next counts are both
        # by slot
        self.fast: list[float] = []
        self.slow: list[float] = []
        self.viewed: list[float] = []  # hours, fading
        self.peak: list[float] = []  # the busiest block of this hour
        self.level: list[float] = []  # what the last days' hours were …
        self.foreseen: list[float] = []  # … and what the profile had said
        self.changed: set[str] = set()
        # derived, or too short-lived to keep
        self._block: list[float] = []  # viewer seconds
        self._block_s = 0.0
        self._usual: list[float] = []
        self._phase: tuple[int, int] | None = None

    # one tick

    def observe(
        self, now_ms: int, counts: Mapping[str, int], distinct: Distinct, accounts: Mapping[str, int] | None = None
    ) -> list[Item]:
        """Takes the counts of this moment and returns all that is trending, best first.

        `counts` has the concurrent views of each content (absent: 0), `accounts` the concurrent accounts, where the caller
        counts them: then one household is one viewer, exactly. Without them views are taken, and `distinct` bounds them.
        `distinct` is asked once at most, with the candidates: accounts in five minutes by content; it may leave some out.
        """
        now = now_ms if self.last is None else max(now_ms, self.last)
        elapsed = (now - self.last) / 1000 if self.last is not None else 0.0
        if self.began is None:
            self.began = now
        self._turn(now)
        viewers = self._place(counts if accounts is None else accounts)
        self._average(viewers, elapsed, first=self.last is None or self.restored)
        self.last, self.restored = now, False
        self.changed.update(("meta", "fast", "slow", "viewed"))
        expected = self._expected(now)
        if now - self.began < self.params.warmup_s * 1000:
            return []
        return self._list(now, counts, expected, distinct)

    def _turn(self, now: int) -> None:
        """Closes the hour when another begins, and the block when it is full."""
        hour = now // HOUR_MS
        if self._block_s >= _BLOCK_S or hour != self.hour:
            self._close_block()
        if hour == self.hour:
            return
        if self.covered >= _BLOCK_S:
            self._close_hour()
        self.peak = [0.0] * len(self.slots)
        self.changed.add("peak")
        self.hour, self.covered = hour, 0.0
        self._forget(self.slots.unwatched_since(hour - int(self.params.forget_s // 3600)))
        self._phase = None

    def _close_block(self) -> None:
        if self._block_s:
            span = self._block_s
            self.peak = [max(peak, block / span) for peak, block in zip(self.peak, self._block, strict=True)]
            self.changed.add("peak")
        self._block, self._block_s = [0.0] * len(self.slots), 0.0

    def _close_hour(self) -> None:
        slots, hour = self.slots, self.hour
        usual = self.profile.at(hour, slots.born)
        weight = _weight(3600.0, self.params.level_half_life_s)
        for slot, (name, peak, was) in enumerate(zip(slots.names, self.peak, usual, strict=True)):
            if name is None:
                self.peak[slot] = UNKNOWN
                continue
            if was != UNKNOWN:  # both from 0 on, so that they compare from the first hour
                self.level[slot] += weight * (peak - self.level[slot])
                self.foreseen[slot] += weight * (was - self.foreseen[slot])
            if peak > 0:
                slots.seen[slot] = hour
        self.profile.learn(hour, self.peak, slots.born)
        self.changed.update((f"hour:{hour % 168}", "level", "foreseen", "seen"))

    def _place(self, people: Mapping[str, int]) -> list[float]:
        """The counts by slot; contents not yet known get one."""
        slots, index = self.slots, self.slots.index
        new = [content for content, count in people.items() if count > 0 and content not in index]
        if len(new) > slots.room:
            new.sort(key=lambda content: -people[content])
            least = slots.least(len(new) - slots.room, self.fast, self.members.__contains__)
            rivals = zip(least, new[slots.room :], strict=False)
            self._forget([slot for slot, content in rivals if self.fast[slot] < people[content]])
            new = new[: slots.room]
        for content in new:
            self._admit(content)
        viewers = [0.0] * len(slots)
        for content, count in people.items():
            slot = index.get(content)
            if slot is not None and count > 0:
                viewers[slot] = count
        return viewers

    def _admit(self, content: str) -> None:
        slot = self.slots.add(content, self.hour)
        columns = (self.fast, self.slow, self.viewed, self.peak, self.level, self.foreseen, self._block)
        if slot == len(self.fast):
            for column in columns:
                column.append(0.0)
            self._usual.append(self.params.newcomer)
            return
        for column in columns:
            column[slot] = 0.0
        self._usual[slot] = self.params.newcomer
        self.changed.update(("peak", "level", "foreseen", "seen"))  # they must not pass to another content

    def _forget(self, unwanted: Iterable[int]) -> None:
        for slot in self.slots.drop(unwanted):
            self.fast[slot] = self.slow[slot] = self.viewed[slot] = 0.0
        if self.members:
            self.members = {name: member for name, member in self.members.items() if name in self.slots.index}

    def _average(self, viewers: list[float], elapsed: float, *, first: bool) -> None:
        params = self.params
        if first:
            self.fast, self.slow = viewers[:], viewers[:]
        else:
            age = (self.last or 0) / 1000 - (self.began or 0) / 1000
            quick = _weight(elapsed, params.fast_half_life_s)
            # a young scope takes the mean so far: it has no past to be surprised by
            late = max(_weight(elapsed, params.slow_half_life_s), elapsed / (age + elapsed) if elapsed else 0.0)
            self.fast = [old + quick * (new - old) for old, new in zip(self.fast, viewers, strict=True)]
            self.slow = [old + late * (new - old) for old, new in zip(self.slow, viewers, strict=True)]
        fade, hours = math.exp(-elapsed / params.popular_window_s), min(elapsed, _GAP_S) / 3600
        self.viewed = [old * fade + hours * new for old, new in zip(self.viewed, viewers, strict=True)]
        span = min(max(elapsed, 1.0), _BLOCK_S)
        self._block = [old + span * new for old, new in zip(self._block, viewers, strict=True)]
        self._block_s += span
        self.covered += span

    # the expectation

    def _expected(self, now: int) -> list[float]:
        """Viewers that would be no surprise, by slot."""
        self._refresh(now)
        expected = [slow if slow > usual else usual for slow, usual in zip(self.slow, self._usual, strict=True)]
        factor = (1 + self.params.margin) * self._growth(expected)
        return [factor * value for value in expected]

    def _refresh(self, now: int) -> None:
        """The profile's word on this moment, made anew three times an hour: at its edges the neighbour counts, too."""
        into = (now % HOUR_MS) / 1000
        edge = -1 if into < self.params.edge_s else 1 if into >= 3600 - self.params.edge_s else 0
        if self._phase == (self.hour, edge):
            return
        self._phase = (self.hour, edge)
        born, params = self.slots.born, self.params
        usual = self.profile.at(self.hour, born)
        if edge:
            usual = [max(both) for both in zip(usual, self.profile.at(self.hour + edge, born), strict=True)]
        young = self.hour - int(params.newcomer_s // 3600)
        k = params.softening
        self._usual = [
            max(value * min(1.0, (level + k) / (foreseen + k)), params.newcomer if since > young else 0.0)
            for value, level, foreseen, since in zip(usual, self.level, self.foreseen, born, strict=True)
        ]

    def _growth(self, expected: list[float]) -> float:
        """What all contents do together is no surprise in any of them: the median of observed ÷ expected, from 1 up."""
        ratios = [
            fast / value
            for fast, slow, value in zip(self.fast, self.slow, expected, strict=True)
            if slow >= _CROWD_VIEWERS and value > 0
        ]
        if len(ratios) < _CROWD:
            return 1.0
        ratios.sort()
        return min(self.params.growth_max, max(1.0, ratios[(len(ratios) - 1) // 2]))

    # the list

    def _list(self, now: int, counts: Mapping[str, int], expected: list[float], distinct: Distinct) -> list[Item]:
        found = self._candidates(expected)
        heard = distinct(found) if found else {}
        items = []
        for content in found:
            item = self._judge(content, now, counts, expected, heard.get(content))
            if item is not None:
                items.append(item)
        listed = {item.content for item in items}
        before = self.members.keys()
        if listed != before:
            self.changed.add("members")
        self.members = {item.content: Member(item.since, item.distinct) for item in items}
        items.sort(key=lambda item: (-item.score, item.content))
        return items

    def _candidates(self, expected: list[float]) -> list[str]:
        """All that is listed, and what might be by its views alone, best first."""
        params, names, members = self.params, self.slots.names, self.members
        least = params.enter * math.sqrt(params.softening)
        scored = []
        for slot, (fast, value) in enumerate(zip(self.fast, expected, strict=True)):
            if fast - value >= least:
                score = (fast - value) / math.sqrt(value + params.softening)
                name = names[slot]
                if score >= params.enter and name is not None and name not in members:
                    scored.append((-score, name))
        scored.sort()
        return [*members, *(name for _, name in scored[: max(0, params.candidates_max - len(members))])]

    def _judge(
        self, content: str, now: int, counts: Mapping[str, int], expected: list[float], heard: int | None
    ) -> Item | None:
        """The item, if it belongs in the list. Who is in it stays for less than who is not."""
        params, member = self.params, self.members.get(content)
        if heard is None:
            if member is None:
                return None
            heard = member.distinct
        slot = self.slots.index[content]
        observed, value = min(self.fast[slot], float(heard)), expected[slot]
        score = (observed - value) / math.sqrt(value + params.softening)
        if member is None and (score < params.enter or heard < params.accounts_min):
            return None
        if member is not None and (score < params.leave or heard < params.accounts_min / 2):
            return None
        since = member.since if member is not None else now
        concurrent = max(0, counts.get(content, 0))
        return Item(content, round(observed, 2), round(value, 2), round(score, 3), concurrent, heard, since)

    # keeping it

    def dump(self, *, whole: bool = False) -> dict[str, bytes]:
        """The parts of the state that changed since the last dump, to be stored over those of the same name, all at once.
        `whole`: all parts, for a caller that could not store the last ones."""
        if whole:
            state.mark_all(self)
        return state.dump(self)

    def load(self, parts: Mapping[str, bytes]) -> None:
        """What dumps have stored, into a new detector. A part that cannot be read is left out, with a line in the log."""
        state.load(self, parts)
        self._block, self._block_s = [0.0] * len(self.slots), 0.0
        self._usual, self._phase = [0.0] * len(self.slots), None


def _weight(elapsed_s: float, half_life_s: float) -> float:
    """Of the newest value in an average whose past has lost half its weight after the half-life."""
    return 1.0 - 2.0 ** (-elapsed_s / half_life_s) if half_life_s > 0 else 1.0
