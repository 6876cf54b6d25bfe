"""Time to free a slot after its viewer has vanished: while somebody asks for it, and while nobody does."""

from __future__ import annotations

from loadtest.truth.figures import TIMES, Finding
from loadtest.truth.households import BACKEND, Home, Stream, allows
from loadtest.truth.matching import Sitting
from loadtest.truth.truth import Request

DEMAND, QUIET = "slot freed under demand", "slot freed without demand"
DEMAND_MS = TIMES.stale + TIMES.interval
QUIET_MS = TIMES.lifetime + 1_000
GONE = frozenset(["power_off", "sleep", "crash"])


def slots(homes: dict[str, Home], sittings: list[Sitting], begin: int = 0) -> Finding:
    """Seconds from the last evidence, in `values`."""
    found = Finding(counts={}, values={DEMAND: [], QUIET: []}, cases=[])
    for account, home in homes.items():
        for stream in home.streams.values():
            for asked, admitted in _waits(stream):
                waited = _freed(home, asked, admitted)
                if waited is None or asked.at < begin:
                    continue
                found.value(DEMAND, waited / 1000)
                if waited > DEMAND_MS + TIMES.tick:
                    found.case(
                        DEMAND,
                        account,
                        admitted.at,
                        f"{stream.session} was let in {waited / 1000:g} s after the last evidence",
                    )
    for sitting in sittings:
        _quiet(sitting, found)
    return found


def _waits(stream: Stream) -> list[tuple[Request, Request]]:
    """(last block, the allow after it), where the player had asked again as soon as an interval."""
    pairs = zip(stream.decided, stream.decided[1:], strict=False)
    return [
        (a, b)
        for a, b in pairs
        if a.reason == "limit_reached" and allows(b) and b.at - a.at <= TIMES.interval + TIMES.tick
    ]


def _freed(home: Home, asked: Request, admitted: Request) -> int | None:
    """From the ghost's last evidence to the admission, ms; None if it was no ghost that held the slot."""
    held = home.held(asked)
    silent = sorted(held.gone + held.ghosts, key=lambda each: each[0])
    need = len(held.there) + len(silent) - home.limit + 1
    if len(held.there) >= home.limit or not 0 < need <= len(silent):
        return None
    if any(r.state == "paused" or r.call in BACKEND for at, s in silent if (r := s.last(at)) is not None):
        return None  # a pause, and what only the backend sees, yield by other times
    still = home.held(admitted)
    if len(still.there) >= home.limit:
        return None  # by the mode of the plan, not by the ghost
    return admitted.at - silent[need - 1][0]


def _quiet(sitting: Sitting, found: Finding) -> None:
    evidence = sitting.evidence
    if sitting.last.end not in GONE or not sitting.records or not evidence or sitting.said_end is not None:
        return
    last, record = evidence[-1], sitting.records[-1]
    if last.state == "paused" or sitting.backend:
        found.count("paused or backend only, not judged")
        return
    if record["reason"] != "timeout":
        found.count(f"ended by: {record['reason'] or 'still running'}")
        return
    took = record["ended_at"] - last.at
    found.value(QUIET, took / 1000)
    if took > QUIET_MS:
        found.case(
            QUIET,
            sitting.account,
            record["ended_at"],
            f"{sitting.session} ended {took / 1000:g} s after its last evidence",
        )
