"""Missed blocks and false blocks.

A **missed block** is a moment, longer than a tick, at which more streams than the limit hold *confirmed permission*: two fresh
`allow` in a row, no further apart than the silence after which a slot yields, between which the stream physically played all the
time. Nothing that a slot needs to heal is confirmed permission, so whatever is found is wrong.

A **false block** is a `block` to a stream while, without it, fewer streams than the limit were physically there (playing, or
paused for five minutes at most). Where a ghost made up the number, it is counted apart: nobody can know that a silent
television is off before 15 s have passed.
"""

from __future__ import annotations

from bisect import bisect_right

from loadtest.truth.figures import TIMES, Finding
from loadtest.truth.households import BACKEND, Home, Stream, allows, fresh, lifetime
from loadtest.truth.truth import Request

Span = tuple[int, int]
MISSED, FALSE = "missed blocks", "false blocks"
CHOSEN = frozenset(["evicted", "takeover"])


def blocks(homes: dict[str, Home], begin: int = 0) -> Finding:
    """Both figures, of all households, from that moment on."""
    found = Finding(counts={}, values={}, cases=[])
    for name in ("decisions", "blocks", f"cases of {MISSED}", f"cases of {FALSE}", "in the ghost window"):
        found.count(name, 0)
    for account, home in homes.items():
        found.count("decisions", sum(r.decision is not None and r.at >= begin for r in home.requests))
        for start, end, sessions in over_limit(home):
            if start < begin:
                continue
            found.case(
                MISSED, account, start,
                f"{len(sessions)} streams with a limit of {home.limit} for {(end - start) / 1000:g} s: {', '.join(sessions)}",
            )  # fmt: skip
        false_blocks(home, found, begin)
    return found


# missed


def confirmed(stream: Stream) -> list[Span]:
    """Stretches of confirmed permission; two that touch are one."""
    spans: list[Span] = []
    for first, second in zip(stream.decided, stream.decided[1:], strict=False):
        longest = lifetime(first) if first.call in BACKEND else TIMES.stale
        if not (allows(first) and allows(second) and fresh(first) and fresh(second)) or first.late or second.late:
            continue
        if not 0 < second.at - first.at < longest or not stream.played_through(first.at, second.at):
            continue
        if spans and spans[-1][1] == first.at:
            spans[-1] = (spans[-1][0], second.at)
        else:
            spans.append((first.at, second.at))
    return spans


def _own_slot(home: Home, stream: Stream) -> list[Span]:
    """Its confirmed permission without what it had on the slot of its device's newer session: a superseded session goes on for
    two intervals where devices are counted, and in any case until it asks the next time."""
    spans = confirmed(stream)
    first = stream.first
    for other in home.by_device[stream.device]:
        if other is stream or first is None:
            continue
        for begun in other.admissions:
            if first.at < begun:
                rides = begun + (2 * TIMES.interval if home.unit == "device" else 0)
                after = next((r.at for r in stream.decided if r.at > rides), rides)
                spans = [part for span in spans for part in _without(span, (begun, after))]
    return spans


def _without(span: Span, cut: Span) -> list[Span]:
    parts = [(span[0], min(span[1], cut[0])), (max(span[0], cut[1]), span[1])]
    return [part for part in parts if part[1] > part[0]]


def over_limit(home: Home) -> list[tuple[int, int, list[str]]]:
    """(from, to, sessions) of every stretch, longer than a tick, with more confirmed streams than the limit."""
    edges: list[tuple[int, int, str]] = []
    for stream in home.streams.values():
        for start, end in _own_slot(home, stream):
            edges += [(start, 1, stream.session), (end, 0, stream.session)]
    edges.sort()
    found: list[tuple[int, int, list[str]]] = []
    playing: set[str] = set()
    since: int | None = None
    most: list[str] = []
    for at, starts, session in edges:
        (playing.add if starts else playing.discard)(session)
        if len(playing) > home.limit:
            since = at if since is None else since
            most = sorted(playing) if len(playing) > len(most) else most
        elif since is not None:
            if at - since > TIMES.tick:
                found.append((since, at, most))
            since, most = None, []
    return found


# false


def false_blocks(home: Home, found: Finding, begin: int) -> None:
    """Adds the household's blocks to `found`, by what they were."""
    for request in home.requests:
        if request.decision != "block" or request.degraded or request.at < begin:
            continue
        found.count("blocks")
        if request.reason in CHOSEN and not _first_told(home, request):
            found.count(f"sticky: {request.reason}")
            continue
        kind = _eviction(home, request) if request.reason in CHOSEN else _refusal(home, request)
        found.count(kind)
        if kind == "without cause":
            found.case(FALSE, home.household.account, request.at, _tell(home, request))


def _refusal(home: Home, request: Request) -> str:
    held = home.held(request)
    if len(held.there) >= home.limit:
        return "at the limit"
    return "in the ghost window" if len(held.there) + len(held.ghosts) >= home.limit else "without cause"


def _first_told(home: Home, request: Request) -> bool:
    """Whether this block is the first after an allow."""
    stream = home.streams.get(request.session)
    return stream is not None and stream.admitted(request.at, request.n) is not None


def _eviction(home: Home, request: Request) -> str:
    """An eviction has a cause if since the evicted stream's last allow somebody was admitted to whom the household was full."""
    if request.reason == "takeover":
        return "taken over"
    before = home.streams[request.session].admitted(request.at, request.n)
    since = before.at if before is not None else 0
    for other in home.streams.values():
        if other.session == request.session:
            continue
        place = bisect_right([r.at for r in other.decided], since - 1)
        for asked in other.decided[place:]:
            if asked.at > request.at:
                break
            held = home.held(asked)
            if allows(asked) and len(held.there) + len(held.ghosts) >= home.limit:
                return "evicted"
    return "without cause"


def _tell(home: Home, request: Request) -> str:
    held = home.held(request)
    gone = ", ".join(f"{s.session} silent for {(request.at - at) / 1000:g} s" for at, s in held.gone)
    return (
        f"{request.call} of {request.session} ({request.device}) blocked: {request.reason}; there: "
        f"{', '.join(s.session for s in held.there) or 'nobody'} of {home.limit}" + (f"; gone: {gone}" if gone else "")
    )
