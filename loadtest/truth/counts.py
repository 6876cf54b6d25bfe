"""Concurrent viewers over time: the engine's count of each content against the streams that were really there.

A count is right if it lies between the streams that *must* be counted and those that *may* be: a stream counts 2.5 s after its
first evidence (the claim), and until 30 s after its last (the lease) + 0.75 s (the sweep) + 2.5 s (the claim). What lies outside is
unexplained, and its goal is 0. The raw difference to those who physically watch is shown beside it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field

from loadtest.truth.figures import TIMES, Finding
from loadtest.truth.households import BACKEND, Home, Stream, allows, lifetime, stops
from loadtest.truth.truth import Request, Truth

COUNTS = "concurrent count"
SLACK_MS = TIMES.claim + 2 * TIMES.tick
"""A change is in the totals after the next claim; the sample is taken within a tick."""
AFTER_MS = TIMES.sweep + SLACK_MS

Span = tuple[int, int]


@dataclass
class Bounds:
    """Stretches of time in which one content's views must, or may, be counted."""

    must: list[Span] = field(default_factory=list)
    may: list[Span] = field(default_factory=list)


def counts(truth: Truth, homes: dict[str, Home]) -> Finding:
    """Values: raw errors; `over time` as three lists of the same length: seconds since the start, engine, truth."""
    found = Finding(counts={"unexplained": 0, "counts compared": 0}, values={"raw error": []}, cases=[])
    bounds = bounds_of(homes)
    by_content = {content: (_Steps(each.must), _Steps(each.may)) for content, each in bounds.items()}
    samples = {sample.at: sample.viewers for sample in truth.samples}
    for observed in truth.observed:
        if observed.concurrent is None or observed.at < truth.run.start:
            continue
        real = samples.get(observed.at, {})
        for content, engine in observed.concurrent.items():
            must, may = by_content.get(content, (_NONE, _NONE))
            low, high = must.within(observed.at), may.touching(observed.at)
            off = max(0, low - engine, engine - high)
            found.count("counts compared")
            found.count("unexplained", off)
            if off:
                found.case(
                    COUNTS,
                    "-",
                    observed.at,
                    f"{content}: engine {engine}, must be {low} to {high}, truth {real.get(content, 0)}",
                )
            if samples:
                found.value("raw error", engine - real.get(content, 0))
        found.value("over time: s", (observed.at - truth.run.start) / 1000)
        found.value("over time: engine", sum(observed.concurrent.values()))
        found.value("over time: truth", sum(real.get(content, 0) for content in observed.concurrent))
    return found


def bounds_of(homes: dict[str, Home]) -> dict[str, Bounds]:
    """Content → its bounds."""
    found: dict[str, Bounds] = defaultdict(Bounds)
    for home in homes.values():
        for stream in home.streams.values():
            _stream(home, stream, found)
    return found


def _stream(home: Home, stream: Stream, found: dict[str, Bounds]) -> None:
    """From each evidence to the next thing heard of the stream, or to the end of what it promised."""
    pause: int | None = None
    may: dict[str, list[Span]] = defaultdict(list)
    must: dict[str, list[Span]] = defaultdict(list)
    for place, each in enumerate(stream.decided):
        if not allows(each) or not each.content:
            continue
        later = stream.decided[place + 1] if place + 1 < len(stream.decided) else None
        pause = (each.at if pause is None else pause) if each.state == "paused" else None
        may[each.content].append((each.at, _may_end(each, later, pause) + AFTER_MS))
        since = max(each.at, _counted_since(stream, place) + SLACK_MS)
        must[each.content].append((since, _must_end(home, stream, each, later, pause)))
    for content, spans in may.items():
        found[content].may += _union(spans)
    if home.several(stream.device):
        return  # nobody can tell which of its machines must be there
    for content, spans in must.items():
        found[content].must += _union(spans)


def _union(spans: list[Span]) -> list[Span]:
    """One stream counts once."""
    joined: list[Span] = []
    for start, end in sorted(span for span in spans if span[1] > span[0]):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _counted_since(stream: Stream, place: int) -> int:
    """Since when this content has been seen without a break, by the evidence up to that place."""
    since = stream.decided[place]
    for before in reversed(stream.decided[:place]):
        near = since.at - before.at < (lifetime(before) if before.call in BACKEND else TIMES.stale)
        resumed = before.state == "paused" and since.state != "paused"
        if not (allows(before) and before.content == since.content and near) or resumed:
            break
        since = before
    return since.at


def _may_end(each: Request, later: Request | None, pause: int | None) -> int:
    end = each.at + lifetime(each) if pause is None else pause + TIMES.paused_keep
    # A block changes nothing of what is counted already; whatever else is heard does.
    if later is not None and (stops(later) or (allows(later) and later.content)):
        end = min(end, later.at)
    return end


def _must_end(home: Home, stream: Stream, each: Request, later: Request | None, pause: int | None) -> int:
    """Silence beyond 15 s may have been displaced; somebody may have evicted it just now, or its device begun anew."""
    silent = lifetime(each) if each.call in BACKEND else TIMES.stale
    end = each.at + silent
    if pause is not None:
        end = min(each.at + TIMES.paused_silent, pause + TIMES.paused_keep)
    # Whom a takeover of the household chose, the truth does not say.
    end = min([end, *(r.at for r in home.takeovers if r.session != stream.session and r.at >= each.at)])
    if later is not None:
        end = min(end, later.at if allows(later) else each.at)
    elif home.household.mode != "deny_new":
        end = each.at
    own = max((at for at in stream.admissions if at <= each.at), default=0)
    others = (s for s in home.by_device[stream.device] if s is not stream)
    newer = (at for s in others for at in s.admissions if at > own)
    return int(min([end, *newer]))


class _Steps:
    """How many of the stretches hold a moment."""

    def __init__(self, spans: list[Span]) -> None:
        self._starts = sorted(span[0] for span in spans)
        self._ends = sorted(span[1] for span in spans)

    def within(self, moment: int) -> int:
        """Those that end at this very moment do not hold it any more."""
        return bisect_right(self._starts, moment) - bisect_right(self._ends, moment)

    def touching(self, moment: int) -> int:
        """Those that end at this very moment still hold it."""
        return bisect_right(self._starts, moment) - bisect_left(self._ends, moment)


_NONE = _Steps([])
