"""What a playback was doing when, out of its facts that last. Facts say how long, and with which event they came; where the time lies
is found here.

| fact                              | was over                                                                                         |
|-----------------------------------|--------------------------------------------------------------------------------------------------|
| told with a view's end            | at the last sign of life: the end itself may have been found by silence, much later              |
| play, measured by own heartbeats  | at the heartbeat before the event it came with, for an interval is told with the next one. It may be of both sides of a stall, and lies around what is known better |
| any other                         | when it came; those of one event follow one another                                              |

So states are right to an interval where heartbeats tell, and to the reports' own delay where CMCD does.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import orjson

from engine.quality.fold_read import whole

JOIN_MS = 1_500
"""Pieces of play with less than this between them are one: clocks and reports are no finer."""
_STATES = {"start": "starting", "play": "playing", "stall": "stalled"}

Id = tuple[int, int]
Stretch = dict[str, Any]


class Heard:
    """When the player was heard: from its events, as (type, at, data, stream id)."""

    def __init__(self, events: Iterable[tuple[str, int, str | None, Id]] = ()) -> None:
        self._ends: dict[Id, int] = {}
        beats = []
        for type_, at, data, ident in events:
            if type_ == "heartbeat":
                beats.append((ident, at))
            elif type_ == "view_end":
                with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
                    if seen := whole(orjson.loads(data or "null").get("last_seen_at")):
                        self._ends[ident] = min(at, seen)
        self._beats = sorted(beats)

    def end(self, ident: Id) -> int | None:
        """The last sign of life of the view that this event ended."""
        return self._ends.get(ident)

    def beat(self, ident: Id) -> int | None:
        """When the last heartbeat before this event came."""
        n = bisect_left(self._beats, (ident, 0))
        return self._beats[n - 1][1] if n else None


def states(facts: Sequence[dict[str, Any]], heard: Heard) -> list[Stretch]:
    """What went on, in order and without overlap: starting, playing, stalled, and `idle` (paused, seeking, or silent) in between."""
    found: list[Stretch] = []
    for each in _stretches([fact for fact in facts if fact["fact"] in _STATES and fact["ms"]], heard):
        last = found[-1] if found else None
        if last and each["from"] > last["to"] + JOIN_MS:
            found.append(
                {"state": "idle", "from": last["to"], "to": each["from"], "ad": False, "content": each["content"]}
            )
        if last and last is found[-1] and all(last[name] == each[name] for name in ("state", "ad", "content")):
            last["to"] = max(last["to"], each["to"])
            last["ms"] += each["ms"]
        else:
            found.append(each)
    return found


def _stretches(lasting: Sequence[dict[str, Any]], heard: Heard) -> list[Stretch]:
    """By time."""
    firm: list[Stretch] = []
    loose: list[tuple[dict[str, Any], int]] = []
    for ident, group in groupby(lasting, lambda fact: (fact["ms_id"], fact["seq_id"])):
        together = list(group)
        end = heard.end(ident)
        plays = [fact for fact in together if fact["fact"] == "play" and fact["source"] == "heartbeat"]
        others = [fact for fact in together if fact not in plays]
        # Reports may tell of more than the engine took for a sign of life, and nothing of it was before what was told earlier.
        last, came = firm[-1]["to"] if firm else 0, together[-1]["at"]
        over = came if end is None else end if end > last else min(came, last + sum(fact["ms"] for fact in others))
        firm += _in_a_row(others, over, last)
        before = heard.beat(ident) if end is None else end
        loose += [(fact, came if before is None else before) for fact in plays]
    return sorted([*firm, *_around(firm, loose)], key=lambda each: (each["from"], each["to"]))


def _stretch(fact: dict[str, Any], begin: int, end: int, ms: int) -> Stretch:
    return {
        "state": _STATES[fact["fact"]],
        "from": begin,
        "to": end,
        "ad": fact["ad"],
        "content": fact["content"],
        "ms": ms,
    }


def _in_a_row(facts: Sequence[dict[str, Any]], over: int, last: int) -> Iterator[Stretch]:
    """The last of them ends at `over`; nothing begins before `last`."""
    at = over - sum(fact["ms"] for fact in facts)
    for fact in facts:
        begin, at = at, at + fact["ms"]
        yield _stretch(fact, max(begin, last), max(at, last), fact["ms"])


def _around(firm: Sequence[Stretch], loose: Sequence[tuple[dict[str, Any], int]]) -> list[Stretch]:
    """Each of the others in the time before its end that nothing else has taken, and after the one before."""
    found: list[Stretch] = []
    begins = [each["from"] for each in firm]
    floor = 0
    for fact, end in loose:
        left, at = fact["ms"], max(end, floor)
        parts: list[Stretch] = []
        n = bisect_left(begins, at)
        while left and at > floor:
            n -= 1
            free = max(floor, firm[n]["to"] if n >= 0 else floor)  # from here to `at`
            if free < at:
                parts.append(_stretch(fact, max(free, at - left), at, min(left, at - free)))
                left -= parts[-1]["ms"]
            at = min(at, firm[n]["from"]) if n >= 0 else floor
        found += reversed(parts)
        if found:  # there was no room for the rest
            found[-1]["ms"] += left
        floor = max(end, floor)
    return found
