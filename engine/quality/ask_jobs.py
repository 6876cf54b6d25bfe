"""What can be asked of the child process: name → function from the database and the question to the answer (JSON). The files asked about are
there as relations, by the names they were given under: `facts`, `events`, `heartbeats`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from engine.quality import ask_behaviour
from engine.quality.ask_hours import Hours
from engine.quality.ask_timeline import timeline
from engine.quality.metrics import METRICS, NOT_MEASURABLE, PERCENTILES, SESSION, Metric
from engine.quality.query import ROWS_MAX, Asked, Query, compile_

CLAIM_MS, CLAIM_SHARE = 500, 0.25
"""A claimed start-up time (CMCD `msd`) is wrong if it is off by more than both, the second of what was measured."""
LOSS = 0.01


class Database(Protocol):
    """Runs SQL; raises when the question was cancelled. `files` are those that a relation was given, `use` makes it stand for some of them,
    and `hours` is what series remember."""

    hours: Hours

    def files(self, name: str) -> Sequence[str]: ...

    def use(self, name: str, files: Sequence[str]) -> None: ...

    def rows(self, sql: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]: ...


def ask_metrics(database: Database, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: an `Asked`."""
    asked = msgspec.convert(args, Asked)
    series = database.hours.series(database, asked, lambda piece: _items(database, piece))
    if series is None:
        database.use("facts", database.files("facts"))
        series = _items(database, asked)
    items, truncated = series
    return {
        "from": asked.start, "to": asked.end, "interval": asked.interval or None, "items": items, "truncated": truncated, "next": None,
    }  # fmt: skip


def ask_worst(database: Database, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: an `Asked` of one metric; each of its dimensions is looked at by itself."""
    asked = msgspec.convert(args, Asked)
    found: list[dict[str, Any]] = []
    for name in asked.by:
        one = msgspec.structs.replace(asked, by=(name,), limit=ROWS_MAX)
        found += _excesses(METRICS[asked.metrics[0]], name, _run(database, compile_(one)))
    found.sort(key=lambda item: (-item["hurt"], *item["by"].items()))
    return {
        "from": asked.start, "to": asked.end, "metric": asked.metrics[0], "items": found[: asked.limit],
        "truncated": len(found) > asked.limit, "next": None,
    }  # fmt: skip


def _excesses(metric: Metric, name: str, rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """The values of a dimension that are worse than the rest."""
    measured = [(value, top or 0, under, behind) for value, _, top, under, behind, *_ in rows if under]
    tops, unders = sum(top for _, top, _, _ in measured), sum(under for _, _, under, _ in measured)
    found = []
    for value, top, under, behind in measured:
        if unders - under <= 0:
            continue
        here, rest = top / under, (tops - top) / (unders - under)
        excess = metric.bad * (here - rest)
        if excess > 0 and behind:
            found.append(
                {
                    "by": {name: value}, "value": here, "rest": rest, "excess": excess, "sessions": behind, "hurt": excess * behind,
                    "sum": top, "over": under, "rest_sum": tops - top, "rest_over": unders - under,
                }
            )  # fmt: skip
    return found


def _items(database: Database, asked: Asked) -> tuple[list[dict[str, Any]], bool]:
    rows = _run(database, compile_(asked))
    truncated = len(rows) > asked.limit
    items = [_item(asked, row) for row in rows[: asked.limit]]
    return [item for item in items if item["sessions"]], truncated


def _run(database: Database, query: Query) -> list[tuple[Any, ...]]:
    return database.rows(query.sql, query.params)


def _item(asked: Asked, row: Sequence[Any]) -> dict[str, Any]:
    cells = iter(row)
    at = {"at": next(cells)} if asked.interval else {}
    by = {name: next(cells) for name in asked.by}
    sessions = next(cells)
    return {"by": by} | at | {"sessions": sessions, "metrics": {n: _figure(METRICS[n], cells) for n in asked.metrics}}


def _figure(metric: Metric, cells: Any) -> dict[str, Any]:
    """What is said of one metric; takes its columns."""
    top, under, behind = next(cells), next(cells), next(cells)
    said = {"value": _value(metric, top, under)}
    for name in metric.extra:
        said[name] = _ratio(next(cells), next(cells))
    if metric.spread:
        said |= dict(zip(PERCENTILES, next(cells) or [NOT_MEASURABLE] * len(PERCENTILES), strict=True))
    return said | {"sessions": behind or 0}


def _value(metric: Metric, top: Any, under: Any) -> Any:
    if metric.under:
        return _ratio(top, under)
    return top or 0 if metric.zero or top else NOT_MEASURABLE


def _ratio(top: Any, under: Any) -> Any:
    """Without a denominator there is no figure, and least of all zero."""
    return top / under if under and top is not None else NOT_MEASURABLE


# players

_TOLD = {
    "startup_time": "start_n > 0", "stalls": "known_ms IS NOT NULL OR stall_ms IS NOT NULL", "bitrate": "bits_ms > 0",
    "switches": "switch > 0", "dropped_frames": "dropped_n > 0", "live_latency": "latency_n > 0", "ads": "ads > 0 OR breaks > 0",
    "errors": "errors > 0", "startup_claim": "claims > 0", "sequence": "beacons IS NOT NULL", "content": "named > 0",
    "device_type": "typed > 0", "cdn": "delivered > 0",
}  # fmt: skip
"""What a player may tell → which sessions' players told it."""
_PLAYER = SESSION | {
    "errors": "count(*) FILTER (fact IN ('error', 'start_failure', 'ad_error'))",
    "bare": "count(*) FILTER (fact IN ('error', 'start_failure') AND fatal AND code = '')",
    "claims": "count(value) FILTER (fact = 'start')",
    "wrong": f"count(*) FILTER (fact = 'start' AND abs(value - ms) > greatest({CLAIM_MS}, ms * {CLAIM_SHARE}))",
    "named": "count(*) FILTER (content <> '')",
    "typed": "count(*) FILTER (device_type <> '')",
    "delivered": "count(*) FILTER (cdn <> '')",
    "cmcd": "count(*) FILTER (source = 'cmcd')",
    "states": "count(*) FILTER (fact IN ('attempt', 'start', 'start_failure', 'exit', 'play', 'stall', 'end'))",
}  # fmt: skip
_BROKEN = {
    "beacon_loss": f"coalesce(sum(missing), 0) > {LOSS} * sum(coalesce(missing, 0) + coalesce(beacons, 0))",
    "startup_claim": "sum(wrong) > 0",
    "no_states": "count(*) FILTER (cmcd > 0 AND states = 0) > 0",
    "error_without_code": "sum(bare) > 0",
}
_BREAKERS = {"beacon_loss": "missing > 0", "startup_claim": "wrong > 0", "no_states": "cmcd > 0 AND states = 0",
             "error_without_code": "bare > 0"}  # fmt: skip


def ask_players(database: Database, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: `start`, `end`, `limit`."""
    parts = ", ".join(f"{sql} AS {part}" for part, sql in _PLAYER.items())
    told = ", ".join(f"count(*) FILTER ({test})" for test in _TOLD.values())
    broken = ", ".join(
        f"coalesce({test}, false), count(*) FILTER ({_BREAKERS[name]})" for name, test in _BROKEN.items()
    )
    rows = database.rows(
        f"""WITH s AS (
  SELECT player, player_version, account, session, {parts} FROM facts
  WHERE "at" >= epoch_ms($start::BIGINT) AND "at" < epoch_ms($end::BIGINT) GROUP BY ALL
)
SELECT player, player_version, count(*) AS n, count(*) FILTER (cmcd > 0), {told}, {broken},
  sum(missing), sum(coalesce(missing, 0) + coalesce(beacons, 0)), sum(claims), sum(wrong)
FROM s GROUP BY player, player_version ORDER BY n DESC, player, player_version LIMIT {int(args["limit"]) + 1}""",
        {"start": args["start"], "end": args["end"]},
    )
    items = [_player(row) for row in rows[: args["limit"]]]
    return {
        "from": args["start"], "to": args["end"], "items": items, "truncated": len(rows) > args["limit"], "next": None,
    }  # fmt: skip


def _player(row: Sequence[Any]) -> dict[str, Any]:
    name, version, sessions, cmcd = row[:4]
    told = row[4 : 4 + len(_TOLD)]
    broken = row[4 + len(_TOLD) : -4]
    missing, sent, claims, wrong = row[-4:]
    share = {"beacon_loss": _ratio(missing or 0, sent), "startup_claim": _ratio(wrong, claims)}
    return {
        "player": name, "player_version": version, "sessions": sessions, "cmcd_sessions": cmcd,
        "reports": {what: {"sessions": count, "share": count / sessions} for what, count in zip(_TOLD, told, strict=True)},
        "breaks": [
            {"rule": rule, "sessions": broken[2 * n + 1], "share": share.get(rule, broken[2 * n + 1] / sessions)}
            for n, rule in enumerate(_BROKEN) if broken[2 * n]
        ],
    }  # fmt: skip


JOBS: dict[str, Callable[[Database, dict[str, Any]], dict[str, Any]]] = {
    "metrics": ask_metrics,
    "worst": ask_worst,
    "players": ask_players,
    "timeline": timeline,
    "behaviour": ask_behaviour.figures,
    "dropoff": ask_behaviour.curve,
}
