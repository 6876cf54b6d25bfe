"""The part of `/openapi.json` about viewing behaviour and alerts; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

from api.alerts import LIMIT_MAX as TOLD_MAX
from api.alerts import STATUSES
from api.behaviour import LIMIT, LIMIT_MAX
from api.openapi_history import moment
from engine.quality.behaviour import BY, BY_MAX, FILTERS
from engine.wire import AT_MAX, ID_MAX, PRINTABLE

Schema = dict[str, Any]

_AT = 1_800_000_000_000
FIGURES = {
    "from": _AT - 86_400_000, "to": _AT, "next": None,
    "items": [
        {
            "by": {"kind": "vod"}, "views": 5120, "silent": 840, "watched_ms": 9_100_000_000, "accounts": 3004, "completion": 0.41,
            "quartiles": {"25": 0.8, "50": 0.66, "75": 0.52, "95": 0.41}, "zapping": 0.07, "binge": 0.33, "returned": 0.6,
        }
    ],
}  # fmt: skip
CURVE = {
    "from": _AT - 86_400_000, "to": _AT, "views": 812, "next": None,
    "items": [{"at": 0.0, "share": 1.0}, {"at": 0.5, "share": 0.66}, {"at": 1.0, "share": 0.31}],
}  # fmt: skip
ALERT = {
    "alert": "stalls", "status": "firing", "since_at": _AT, "at": _AT + 60_000, "by": {"cdn": "two"}, "metric": "rebuffer_ratio",
    "value": 0.041, "sessions": 1200, "severity": "page",
}  # fmt: skip
ALERTS = {"items": [ALERT], "next": None, "rules_error": None}
TOLD = {
    "items": [
        {
            "id": f"{_AT}-0", "alert": "stalls", "status": "firing", "at": _AT + 120_000, "since_at": _AT, "by": {"cdn": "two"},
            "metric": "rebuffer_ratio", "where": "", "value": 0.041, "bound": 0.02, "sessions": 1200, "severity": "page",
        }
    ],
    "next": None,
}  # fmt: skip
FIGURED = (
    "Views that began in the period and are over: watched time, completion and quartiles of those of known length, zapping, binge, accounts "
    "that came back within a week. `silent` are views whose end was found by silence. A share of nothing is null; docs/quality.md "
    "defines each. A service token (scope `read`)."
)
CURVED = "Of the views of known length of one content, which share came so far. A service token (scope `read`)."
ALERTED = "Those that fire, the longest first. `rules_error` says what is wrong with the file of rules. A service token (scope `read`)."
HISTORY = "What fired and was over, the newest first. A service token (scope `read`)."


def query(*, curve: bool = False) -> list[Schema]:
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    whole = moment()
    found: list[Schema] = [
        {
            "name": "from",
            "in": "query",
            "schema": whole,
            "description": "ms; a day before `to` unless given",
            "example": _AT - 86_400_000,
        },
        {
            "name": "to",
            "in": "query",
            "schema": whole,
            "description": "ms; now unless given; 90 days after `from` at most",
            "example": _AT,
        },
    ]
    for name in FILTERS:
        needed = curve and name == "content"
        schema = {**text, "minLength": 1} if needed else text
        found.append(
            {
                "name": name,
                "in": "query",
                "required": needed,
                "schema": schema,
                "description": "only these",
                "example": "film-1" if needed else "",
            }
        )
    if not curve:
        found.append({
            "name": "by", "in": "query", "schema": {"type": "string"}, "example": "kind",
            "description": f"at most {BY_MAX} of {', '.join(BY)}, comma-separated",
        })  # fmt: skip
        limit = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}
        found.append(
            {"name": "limit", "in": "query", "schema": limit, "description": f"{LIMIT} unless given", "example": LIMIT}
        )
    return found


def alerts_query() -> list[Schema]:
    return [
        {
            "name": "status",
            "in": "query",
            "schema": {"enum": list(STATUSES)},
            "description": "firing unless given",
            "example": "firing",
        }
    ]


def history_query() -> list[Schema]:
    limit = {"type": "integer", "minimum": 1, "maximum": TOLD_MAX}
    before = moment(1)
    return [
        {"name": "limit", "in": "query", "schema": limit, "description": "", "example": 100},
        {
            "name": "before",
            "in": "query",
            "schema": before,
            "description": "only those told before, ms",
            "example": AT_MAX,
        },
    ]


def schemas() -> dict[str, Schema]:
    text, whole = {"type": "string"}, {"type": "integer"}
    share = {"type": ["number", "null"]}
    item = _object({
        "by": {"type": "object"}, "views": whole, "silent": whole, "watched_ms": whole, "accounts": whole, "completion": share,
        "quartiles": {"type": "object", "additionalProperties": share}, "zapping": share, "binge": share, "returned": share,
    })  # fmt: skip
    point = _object({"at": {"type": "number", "description": "share of the length"}, "share": {"type": "number"}})
    alert: dict[str, Schema] = {
        "alert": text, "since_at": whole, "at": whole, "by": {"type": "object"}, "metric": {"type": ["string", "null"]},
        "value": {"type": ["number", "null"]}, "sessions": whole, "severity": {"type": ["string", "null"]},
    }  # fmt: skip
    now = _object(alert | {"status": {"enum": list(STATUSES)}})
    told = _object(
        alert | {"id": text, "status": {"enum": ["firing", "resolved"]}, "where": text, "bound": {"type": "number"}}
    )
    period = {"from": whole, "to": whole, "next": {"type": "null"}}
    return {
        "Behaviour": _object(period | {"items": {"type": "array", "items": item}}),
        "Dropoff": _object(period | {"views": whole, "items": {"type": "array", "items": point}}),
        "Alerts": _object(
            {
                "items": {"type": "array", "items": now},
                "next": {"type": "null"},
                "rules_error": {"type": ["string", "null"]},
            }
        ),
        "AlertsTold": _object({"items": {"type": "array", "items": told}, "next": {"type": "null"}}),
    }


def _object(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}
