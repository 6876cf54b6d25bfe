"""One playback from beginning to end: its states, what happened, and the events it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from engine.errors import NotFound
from engine.quality.states import Heard, states

FACTS_MAX, EVENTS_MAX = 5_000, 2_000
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
    said = 'SELECT id, type, epoch_ms("at"), "view", content, data, stream_ms, stream_seq FROM '
    events = database.rows(
        f"{said} (SELECT * FROM events {mine} UNION ALL SELECT * FROM heartbeats {mine}) "
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
        "states": states(facts, _heard(database, events, mine, params)),
        "facts": [_shown(fact) for fact in facts],
        "events": [_event(row) for row in events[:EVENTS_MAX]],
        "truncated": len(rows) > FACTS_MAX or len(events) > EVENTS_MAX,
    }  # fmt: skip


def _heard(database: Database, events: Sequence[Sequence[Any]], mine: str, params: dict[str, Any]) -> Heard:
    if len(events) <= EVENTS_MAX:
        return Heard((type_, at, data, (ms, seq)) for _, type_, at, _, _, data, ms, seq in events)
    rows = database.rows(
        f"""SELECT type, epoch_ms("at"), data, stream_ms, stream_seq FROM events {mine} AND type = 'view_end'
UNION ALL SELECT type, epoch_ms("at"), NULL, stream_ms, stream_seq FROM heartbeats {mine} AND type = 'heartbeat'""",
        params,
    )
    return Heard((type_, at, data, (ms, seq)) for type_, at, data, ms, seq in rows)


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
