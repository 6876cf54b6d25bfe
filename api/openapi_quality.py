"""The part of `/openapi.json` about stream quality; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

from api.cmcd import CONTENT_TYPES
from api.openapi_history import moment
from api.quality import LIMIT_PLAYERS, LIMIT_WORST
from engine.cmcd.parser import LINES_MAX
from engine.quality.facts import DIMENSIONS, FACTS
from engine.quality.metrics import METRICS, NOT_MEASURABLE
from engine.quality.query import BY_MAX, INTERVALS, METRICS_MAX, POINTS_MAX, ROWS_MAX, WHERE_MAX
from engine.wire import ID_MAX, PRINTABLE

Schema = dict[str, Any]

# CMCD

REPORTS = (
    'cid="film-1",e=ps,sid="9b2f7c1e",sn=0,sta=s,ts=1800000000000,v=2\n'
    'bl=(6000),br=(4200),cid="film-1",e=ps,msd=812,sid="9b2f7c1e",sn=1,sta=p,ts=1800000000812,v=2\n'
)

CMCD_DESCRIPTION = f"""Event reports of CTA-5004-B or -A (version 2), one a line, at most {LINES_MAX}. Unknown keys are kept, ill-typed
values dropped, reports of a newer version dropped; a line that is no report costs the others nothing. The same (`sid`, `target`, `sn`)
again within a day is a duplicate. Reports of the events `t` and `ps` with a state keep the session's slot like a heartbeat.
The token rides in the query, because stock players set no headers."""


def cmcd_body() -> Schema:
    # Whatever is no report is taken, too, and kept with its reason: no schema would refuse it.
    text = {"description": "text: CMCD, one report a line"}
    content = {kind: {"schema": text, "examples": {"start": {"value": REPORTS}}} for kind in CONTENT_TYPES}
    return {"required": False, "content": content}


def cmcd_query() -> list[Schema]:
    """What the app may put into the collector's URL; an empty value is one left out."""
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    described = {
        "device": ("a stable id of the device, unless the token names it", "living-room"),
        "device_type": ("", "tv"),
        "provider": ("", ""),
        "profile": ("who watches within the account", ""),
        "target": ("tells the targets of one player apart, if it has several", ""),
        "account": ("with a service token: whose reports these are", ""),
    }
    asked: list[Schema] = [
        {"name": name, "in": "query", "schema": text, "description": description, "example": example}
        for name, (description, example) in described.items()
    ]
    kind = {"name": "kind", "in": "query", "schema": {"enum": ["live", "vod", ""]}, "example": "vod",
            "description": "else what the reports say (`st`)"}  # fmt: skip
    evidence = {"name": "evidence", "in": "query", "schema": {"enum": ["yes", "no", ""]}, "example": "yes",
                "description": "`no` where the app sends heartbeats of the same session itself"}  # fmt: skip
    return [*asked, kind, evidence]


# questions

_AT = 1_800_000_000_000
_PERIOD = {"from": _AT - 3_600_000, "to": _AT}
METRICS_SAID = _PERIOD | {
    "interval": 60_000, "truncated": False, "next": None,
    "items": [
        {
            "by": {"cdn": "two"}, "at": _AT - 60_000, "sessions": 1204,
            "metrics": {
                "startup_time": {"value": 912.4, "p50": 803.0, "p75": 1090.5, "p95": 2204.0, "p99": 4120.2, "sessions": 62},
                "dropped_frames": {"value": "not_measurable", "sessions": 0},
            },
        }
    ],
}  # fmt: skip
WORST_SAID = _PERIOD | {
    "metric": "rebuffer_ratio", "truncated": False, "next": None,
    "items": [
        {
            "by": {"cdn": "two"}, "value": 0.031, "rest": 0.004, "excess": 0.027, "sessions": 1204, "hurt": 32.508,
            "sum": 1_116_000, "over": 36_000_000, "rest_sum": 480_000, "rest_over": 120_000_000,
        }
    ],
}  # fmt: skip
PLAYERS_SAID = _PERIOD | {
    "truncated": False, "next": None,
    "items": [
        {
            "player": "hls.js", "player_version": "1.7.4", "sessions": 800, "cmcd_sessions": 800,
            "reports": {"startup_time": {"sessions": 780, "share": 0.975}, "dropped_frames": {"sessions": 0, "share": 0.0}},
            "breaks": [{"rule": "beacon_loss", "sessions": 31, "share": 0.02}],
        }
    ],
}  # fmt: skip
TIMELINE_SAID = _PERIOD | {
    "account": "ann", "session": "9b2f7c1e", "dimensions": {"player": "hls.js", "country": "PT"}, "truncated": False,
    "states": [
        {"state": "starting", "from": _AT - 60_000, "to": _AT - 59_188, "ad": False, "content": "film-1", "ms": 812},
        {"state": "playing", "from": _AT - 59_188, "to": _AT - 9_000, "ad": False, "content": "film-1", "ms": 50_188},
        {"state": "stalled", "from": _AT - 9_000, "to": _AT - 7_600, "ad": False, "content": "film-1", "ms": 1_400},
    ],
    "facts": [{"at": _AT - 59_188, "fact": "start", "content": "film-1", "ms": 812, "started": True}],
    "events": [
        {"id": "7-1799999940812-0", "type": "cmcd", "at": _AT - 59_188, "view": 1, "content": "film-1",
         "data": {"keys": {"e": "ps", "sta": "p"}}},
    ],
}  # fmt: skip

_BOUNDS = (
    f"At most {METRICS_MAX} metrics, {BY_MAX} dimensions, {WHERE_MAX} tests, {ROWS_MAX:,} items, {POINTS_MAX:,} points and 90 days. A "
    "question that needs more time or memory than one may is answered 422, one too many 429. A service token (scope `read`)."
)
METRICS_DESCRIPTION = (
    "Figures of stream quality, by any dimensions and labels, as totals or (with `interval`) as series. Each with the sessions behind it; "
    "what the group's players cannot tell is `not_measurable`. Durations in ms, rates per played minute, bitrate in bit/s. docs/quality.md "
    f"defines each. {_BOUNDS}"
)
WORST_DESCRIPTION = (
    "Values of dimensions ranked by how much they hurt: `hurt` = `excess` × `sessions`, where `excess` is how much worse `value` = `sum` ÷ "
    f"`over` is than `rest` = `rest_sum` ÷ `rest_over`, the same over all other values. {_BOUNDS}"
)
PLAYERS_DESCRIPTION = (
    "For each player and version: what it reports, in how many sessions, and which rules it breaks: reports lost (over 1 %), a claimed "
    "start-up time (`msd`) far from the measured one, no states, fatal errors without a code. A service token (scope `read`)."
)
TIMELINE_DESCRIPTION = (
    "States in order (starting, playing, stalled; idle: paused, seeking or silent), the facts, and the events they were made of. A service "
    "token (scope `read`)."
)


def _period(default: str) -> list[Schema]:
    whole = moment()
    return [
        {"name": "from", "in": "query", "schema": whole, "description": f"ms; {default} before `to` unless given", "example": _AT - 3_600_000},
        {"name": "to", "in": "query", "schema": whole, "description": "ms, exclusive; now unless given", "example": _AT + 1},
    ]  # fmt: skip


def _limit(default: int) -> Schema:
    whole = {"type": "integer", "minimum": 1, "maximum": ROWS_MAX}
    return {
        "name": "limit",
        "in": "query",
        "schema": whole,
        "description": f"{default:,} unless given",
        "example": default,
    }


def _by_and_where() -> list[Schema]:
    text = {"type": "string"}
    return [
        {"name": "by", "in": "query", "schema": text, "example": "player,label.plan",
         "description": f"dimensions, comma-separated: {', '.join(DIMENSIONS)}, label.<name>"},
        {"name": "where", "in": "query", "schema": text, "example": "country=PT,ES;device_type!=tv;label.plan=gold",
         "description": "tests joined by `;`: one of these values, or none of these; `\\` before a `,` `;` or `\\` of a value"},
    ]  # fmt: skip


def metrics_query() -> list[Schema]:
    known = "|".join(METRICS)
    metrics = {"type": "string", "pattern": f"^({known})(,({known})){{0,{METRICS_MAX - 1}}}$"}
    return [
        {"name": "metrics", "in": "query", "required": True, "schema": metrics, "example": "attempts,startup_time,rebuffer_ratio",
         "description": "comma-separated, each once"},
        *_by_and_where(), *_period("an hour"),
        {"name": "interval", "in": "query", "schema": {"enum": [*INTERVALS, ""]}, "example": "1m", "description": "length of a point"},
        _limit(ROWS_MAX),
    ]  # fmt: skip


def worst_query() -> list[Schema]:
    rankable = [name for name, metric in METRICS.items() if metric.bad]
    return [
        {"name": "metric", "in": "query", "required": True, "schema": {"enum": rankable}, "example": "rebuffer_ratio"},
        *_by_and_where(), *_period("an hour"), _limit(LIMIT_WORST),
    ]  # fmt: skip


def players_query() -> list[Schema]:
    return [*_period("an hour"), _limit(LIMIT_PLAYERS)]


def timeline_query() -> list[Schema]:
    text = {"type": "string", "minLength": 1, "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    account = {
        "name": "account",
        "in": "query",
        "required": True,
        "schema": text,
        "description": "whose session it is",
        "example": "ann",
    }
    return [account, *_period("a day")]


def schemas() -> dict[str, Schema]:
    text, whole, number, flag = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))
    figure = {"anyOf": [number, {"const": NOT_MEASURABLE}]}
    said = {"type": "object", "properties": {"value": figure, "sessions": whole | {"description": "behind the figure"}},
            "required": ["value", "sessions"], "additionalProperties": figure}  # fmt: skip
    by = {"type": "object", "additionalProperties": text}
    period: dict[str, Schema] = {"from": whole, "to": whole, "truncated": flag, "next": {"type": "null"}}

    def listed(item: Schema, **more: Schema) -> Schema:
        return _object(period | more | {"items": {"type": "array", "items": item, "maxItems": ROWS_MAX}})

    figures: Schema = {"type": "object", "additionalProperties": said}
    item = _object({"by": by, "sessions": whole, "metrics": figures, "at": whole})
    item["required"] = ["by", "sessions", "metrics"]
    numbers = ("value", "rest", "excess", "hurt", "sum", "over", "rest_sum", "rest_over")
    told = _object({"sessions": whole, "share": number})
    broken = _object(
        {
            "rule": {"enum": ["beacon_loss", "startup_claim", "no_states", "error_without_code"]},
            "sessions": whole,
            "share": figure,
        }
    )
    state = _object(
        {
            "state": {"enum": ["starting", "playing", "stalled", "idle"]},
            "from": whole,
            "to": whole,
            "ad": flag,
            "content": text,
            "ms": whole,
        }
    )
    happened = {
        "type": "object",
        "properties": {"at": whole, "fact": {"enum": list(FACTS)}},
        "required": ["at", "fact"],
    }
    event = _object(
        {
            "id": text,
            "type": text,
            "at": whole,
            "view": {"type": ["integer", "null"]},
            "content": {"type": ["string", "null"]},
            "data": {},
        }
    )
    timeline: dict[str, Schema] = {
        "account": text, "session": text, "from": whole, "to": whole, "dimensions": by, "truncated": flag,
        "states": {"type": "array", "items": state}, "facts": {"type": "array", "items": happened},
        "events": {"type": "array", "items": event},
    }  # fmt: skip
    return {
        "Quality": listed(item, interval={"type": ["integer", "null"], "description": "ms"}),
        "Worst": listed(_object(dict.fromkeys(numbers, number) | {"by": by, "sessions": whole}), metric=text),
        "Players": listed(_object({
            "player": text, "player_version": text, "sessions": whole, "cmcd_sessions": whole,
            "reports": {"type": "object", "additionalProperties": told}, "breaks": {"type": "array", "items": broken},
        })),
        "Timeline": _object(timeline),
    }  # fmt: skip


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
