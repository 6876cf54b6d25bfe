"""View-end error and `watched_ms` error: the view records compared with what was really watched.

Judged are views whose last word that was due reached the server. Shown apart: those where it was lost, those that the engine
ended while they played on (the player learns of it with its next heartbeat), and those that were refused in between.
"""

from __future__ import annotations

from loadtest.truth.figures import TIMES, Finding
from loadtest.truth.matching import Record, Sitting

END, WATCHED = "view-end error", "watched_ms error"
END_MS, WATCHED_MS = 5_000, 10_000
REMOVED = frozenset(["evicted", "takeover", "displaced", "superseded", "paused_timeout"])


def views(sittings: list[Sitting], strays: list[Record]) -> Finding:
    """Both figures, seconds."""
    found = Finding(counts={}, values={END: [], WATCHED: []}, cases=[])
    for sitting in sittings:
        found.count("sittings")
        if sitting.guest:
            found.count("only on the slot of a newer session, not judged")
            continue
        if sitting.shared:
            found.count("several machines under one device id, not judged")
            continue
        if not sitting.records:
            if sitting.evidence and not sitting.blocked():
                found.case(
                    END,
                    sitting.account,
                    sitting.started_at,
                    f"{sitting.session}, {sitting.content}: admitted, and no record",
                )
            continue
        _end(sitting, found)
        _watched(sitting, found)
    for record in strays:
        found.case(
            END, record["account"], record["started_at"],
            f"{record['session']}, {record['content']}: a record of what nobody watched",
        )  # fmt: skip
    return found


def _last(sitting: Sitting) -> Record:
    return max(sitting.records, key=lambda record: (record["ended_at"] or 1e15, record["started_at"]))


def _removed_alive(sitting: Sitting, record: Record) -> bool:
    """Ended by somebody else while it was there."""
    return record["reason"] in REMOVED and sitting.ended_at > (record["ended_at"] or 0)


def _unnoticed(sitting: Sitting, record: Record) -> bool:
    """Removed by another's demand within an interval of its last word, when it had gone already: it was not overdue yet."""
    return (
        record["reason"] in REMOVED
        and record["estimated_end_at"] is None
        and record["ended_at"] - record["last_seen_at"] <= TIMES.interval + TIMES.tick
    )


def _end(sitting: Sitting, found: Finding) -> None:
    record = _last(sitting)
    if record["ended_at"] is None:
        if not sitting.evidence or sitting.evidence[-1].state != "paused":
            found.case(END, sitting.account, sitting.ended_at, f"{sitting.session}, {sitting.content}: has not ended")
        else:
            found.count("paused at the end of the run, not judged")
        return
    said = record["estimated_end_at"] or record["ended_at"]
    error = (said - sitting.ended_at) / 1000
    if _removed_alive(sitting, record):
        found.value("end: removed while it played", error)
    elif _unnoticed(sitting, record):
        found.value("end: removed before its silence could be noticed", error)
    elif sitting.blocked():
        found.value("end: refused in between", error)
    elif not sitting.told():
        found.value("end: lost on the way", error)
    elif sitting.evidence and sitting.evidence[-1].state == "paused" and sitting.said_end is None:
        found.value("end: vanished while paused", error)
    else:
        found.value(END, error)
        found.count(f"end by {record['reason']}")
        if abs(said - sitting.ended_at) > END_MS + TIMES.tick:
            found.case(
                END, sitting.account, sitting.ended_at,
                f"{sitting.session}, {sitting.content}: {error:+.1f} s (really: {sitting.last.end}; engine: {record['reason']})",
            )  # fmt: skip


def _watched(sitting: Sitting, found: Finding) -> None:
    said = sum(record["watched_ms"] for record in sitting.records)
    error = (said - sum(view.played_ms for view in sitting.views)) / 1000
    before, after = sitting.unheard()
    if any(_removed_alive(sitting, record) for record in sitting.records) or sitting.blocked():
        found.value("watched: removed or refused", error)
    elif sitting.backend and sitting.idle() > TIMES.interval / 2:
        found.value("watched: not playing where only fetching is seen", error)
    elif (
        not sitting.told()
        or max(before, 0) + after + sitting.broken() + sitting.delayed() > TIMES.interval + TIMES.tick
    ):
        found.value("watched: lost on the way", error)
    else:
        found.value(WATCHED, error)
        if abs(error) * 1000 > WATCHED_MS + TIMES.tick:
            found.case(
                WATCHED, sitting.account, sitting.ended_at,
                f"{sitting.session}, {sitting.content}: {error:+.1f} s of {said / 1000:.0f} s (really: {sitting.last.end})",
            )  # fmt: skip
