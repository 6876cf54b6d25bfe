"""One playback from beginning to end: its states, what happened, and the events it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

import orjson

from engine.errors import NotFound

FACTS_MAX, EVENTS_MAX = 5_000, 2_000
JOIN_MS = 1_500
"""Pieces of play with less than this between them are one: clocks and reports are no finer."""
_STATES = {"start": "starting", "play": "playing", "stall": "stalled"}
_COLUMNS = (
    "fact", "content", "kind", "cdn", "edge", "ad_break", "source", "ms", "value", "before", "bits", "bits_ms", "count", "code",
    "message", "ad", "fatal", "business", "started", "stalls_known", "skipped", "completed", "silent", "view",
)  # fmt: skip
_SAID = (
    "profile", "device", "provider", "device_type", "os", "browser", "app_version", "player", "player_version", "asn", "country",
    "experiment",
)  # fmt: skip


class Database(Protocol):
    def rows(self, sql: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]: ...

    def use(self, name: str, files: Sequence[str]) -> None: ...


def timeline(database: Database, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: `partition`, `account`, `session`, `start`, `end`. The relations are `facts`, `events` and `heartbeats`."""
    params = {name: args[name] for name in ("partition", "account", "session", "start", "end")}
    # The partition comes first in the files' order: whole row groups of others are left out.
    mine = (
        'WHERE "partition" = $partition AND account = $account AND session = $session '
        'AND "at" >= epoch_ms($start::BIGINT) AND "at" < epoch_ms($end::BIGINT)'
    )
    for relation in ("facts", "events", "heartbeats"):
        # Few of a day's files hold anything of it, and the many columns are read of those only.
        holding = database.rows(f"SELECT DISTINCT filename FROM {relation} {mine}", params)
        database.use(relation, [name for (name,) in holding])
    names = ", ".join(f'"{name}"' for name in (*_COLUMNS, *_SAID))
    rows = database.rows(
        f'SELECT epoch_ms("at"), stream_ms, stream_seq, part, {names} FROM facts {mine} '
        f'ORDER BY stream_ms, stream_seq, part LIMIT {FACTS_MAX + 1}',
        params,
    )  # fmt: skip
    events = database.rows(
        f'SELECT id, type, epoch_ms("at"), "view", content, data, stream_ms, stream_seq FROM '
        f"(SELECT * FROM events {mine} UNION ALL SELECT * FROM heartbeats {mine}) "
        f"ORDER BY stream_ms, stream_seq LIMIT {EVENTS_MAX + 1}",
        params,
    )
    if not rows and not events:
        raise NotFound("nothing is known of this session in that time", code="unknown_session", field="session")
    facts = [
        dict(zip(("at", "ms_id", "seq_id", "part", *_COLUMNS, *_SAID), row, strict=True)) for row in rows[:FACTS_MAX]
    ]
    return {
        "account": args["account"], "session": args["session"], "from": args["start"], "to": args["end"],
        "dimensions": {name: said for name in _SAID if (said := _last(facts, name))},
        "states": states(facts),
        "facts": [_shown(fact) for fact in facts],
        "events": [_event(row) for row in events[:EVENTS_MAX]],
        "truncated": len(rows) > FACTS_MAX or len(events) > EVENTS_MAX,
    }  # fmt: skip


def states(facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What went on, in order: starting, playing, stalled, and `idle` (paused, seeking, or silent) in between."""
    found: list[dict[str, Any]] = []
    for each in _stretches(facts):
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


def _stretches(facts: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The facts that last. Those made of one event follow one another, and the last of them ends when it came."""
    lasting = [fact for fact in facts if fact["fact"] in _STATES and fact["ms"]]
    for _, group in groupby(lasting, lambda fact: (fact["ms_id"], fact["seq_id"])):
        together = list(group)
        at = together[-1]["at"] - sum(fact["ms"] for fact in together)
        for fact in together:
            yield {
                "state": _STATES[fact["fact"]], "from": at, "to": at + fact["ms"], "ad": fact["ad"], "content": fact["content"],
                "ms": fact["ms"],
            }  # fmt: skip
            at += fact["ms"]


def _shown(fact: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing. A zero does."""
    said = {
        name: fact[name] for name in _COLUMNS if fact[name] is not None and fact[name] is not False and fact[name] != ""
    }
    return {"at": fact["at"]} | said


def _last(facts: Sequence[dict[str, Any]], name: str) -> str:
    return next((fact[name] for fact in reversed(facts) if fact[name]), "")


def _event(row: Sequence[Any]) -> dict[str, Any]:
    ident, type_, at, view, content, data, *_ = row
    try:
        told: Any = orjson.loads(data) if data else None
    except orjson.JSONDecodeError:
        told = data
    return {"id": ident, "type": type_, "at": at, "view": view, "content": content, "data": told}
