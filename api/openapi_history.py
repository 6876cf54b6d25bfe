"""The part of `/openapi.json` about resume positions and views; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.resumes import ResumeSet
from engine.wire import AT_MAX, ID_MAX, MS_LEAST, PRINTABLE

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_AT = 1_800_000_000_000

POSITION = {
    "content": "film-1", "profile": "", "kind": "vod", "title": "A film", "provider": None, "position": 1271.5,
    "duration": 5400.0, "in_progress": True, "completed": False, "completed_at": None, "updated_at": _AT,
    "session": "9b2f7c1e-6a41-4f0e-9d0c-1f2a3b4c5d6e", "device": "living-room",
}  # fmt: skip
SET = {"position": 1271.5, "duration": 5400, "title": "A film"}
VIEW = {
    "account": "ann", "profile": None, "device": "living-room", "session": POSITION["session"], "view": 1,
    "content": "film-1", "kind": "vod", "running": False, "started_at": _AT - 1_300_000, "last_seen_at": _AT,
    "ended_at": _AT + 30_000, "estimated_end_at": _AT + 5_000, "reason": "timeout", "by": None, "rule": None,
    "watched_ms": 1_270_000, "max_position": 1271.5, "duration": 5400.0, "completed": False, "revision": 0,
}  # fmt: skip
LISTED = "The newest comes first. `next` is the `cursor` of the next page, null on the last."
WHOSE = (
    "A player's token reaches its own account, and of its profiles those that the token names. A service token "
    "(scope `{scope}`) names the account in the query."
)


def _text(name: str, description: str, example: str = "") -> Schema:
    schema = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    return {"name": name, "in": "query", "schema": schema, "description": description, "example": example}


def _number(name: str, description: str, low: int, high: int, example: int) -> Schema:
    schema = {"type": "integer", "minimum": low, "maximum": high}
    return {"name": name, "in": "query", "schema": schema, "description": description, "example": example}


def moment(low: int = 0) -> Schema:
    """A time in a query, ms: none that could be seconds (`api.asking.moment`)."""
    late: Schema = {"type": "integer", "minimum": MS_LEAST, "maximum": AT_MAX}
    return late if low else {"anyOf": [{"type": "integer", "const": 0}, late]}


def _moment(name: str, description: str, example: int) -> Schema:
    return {"name": name, "in": "query", "schema": moment(), "description": description, "example": example}


def _page(default: int, most: int) -> list[Schema]:
    cursor = {"name": "cursor", "in": "query", "schema": {"type": "string"}, "description": "`next` of the page before"}
    return [_number("limit", f"{default} unless given", 1, most, default), cursor | {"example": ""}]


def whose() -> list[Schema]:
    """The query of all resume calls."""
    return [
        _text("account", "with a service token: whose", "ann"),
        _text(
            "profile",
            "that of the heartbeats; without, the token's only one, else the positions of heartbeats that name none",
        ),
    ]


def resume_list() -> list[Schema]:
    return [*whose(), *_page(20, 100)]


def views_list() -> list[Schema]:
    return [
        _text("account", "with a service token: whose; a player's token sees its own", "ann"),
        _text("content", ""), _text("session", ""),
        _moment("from", "views that began then or later, ms", _AT - 86_400_000),
        _moment("to", "views that began before, ms", _AT), *_page(50, 500),
    ]  # fmt: skip


def schemas() -> dict[str, Schema]:
    """What is sent, from the struct that validates it, and what comes back."""
    _, found = msgspec.json.schema_components([ResumeSet], ref_template=_REF)
    given = found["ResumeSet"]
    for said in given["properties"].values():
        if said.get("default", 0) in ("", None):
            del said["default"]
    given["properties"]["completed"]["description"] = "without, the position tells, as it would in a heartbeat"
    given["properties"]["start_over"]["description"] = "live content has a position only where it can be started over"
    given["if"] = {"properties": {"kind": {"const": "live"}}, "required": ["kind"]}
    given["then"] = {"properties": {"start_over": {"const": True}}, "required": ["start_over"]}
    page = {"next": _nullable("string", "`cursor` of the next page; null: this is the last")}
    return found | {
        "Position": _object(_position(), "Where a profile stands in one content."),
        "Positions": _object({"items": _items("Position")} | page, "Continue watching."),
        "View": _object(_view(), "One view: one content watched in one session, from its start to its end."),
        "Views": _object({"items": _items("View")} | page, "View records."),
        "Accepted": _object(
            {"accepted": {"const": True}}, "It is recorded, and takes effect when the workers get to it."
        ),
    }


def _position() -> dict[str, Schema]:
    text = {"type": "string"}
    return {
        "content": text, "profile": text | {"description": "'' where heartbeats name none"},
        "kind": {"enum": ["vod", "live", None]}, "title": _nullable("string", ""), "provider": _nullable("string", ""),
        "position": _nullable("number", "seconds; null if all that is known is that it was completed"),
        "duration": _nullable("number", "seconds"),
        "in_progress": {"type": "boolean", "description": "go on at `position`; false: start from the beginning"},
        "completed": {"type": "boolean", "description": "was watched to the end once; watching it again does not change that"},
        "completed_at": _nullable("integer", "the first time, ms"),
        "updated_at": {"type": "integer", "description": "when the position was seen or set, ms"},
        "session": _nullable("string", "where it was watched"), "device": _nullable("string", ""),
    }  # fmt: skip


def _view() -> dict[str, Schema]:
    text, whole = {"type": "string"}, {"type": "integer"}
    return {
        "account": text, "profile": _nullable("string", ""), "device": text, "session": text,
        "view": whole | {"description": "counts the contents watched in this session, from 1"}, "content": text,
        "kind": {"enum": ["vod", "live", None]}, "running": {"type": "boolean"}, "started_at": whole,
        "last_seen_at": whole | {"description": "the last sign of life, ms"},
        "ended_at": _nullable("integer", "ms; null while it runs"),
        "estimated_end_at": _nullable("integer", "when a view that did not say so itself really ended, ms"),
        "reason": _nullable("string", "why it ended"),
        "by": _nullable("string", "the session that took its place"), "rule": _nullable("string", "the rule it had to yield to"),
        "watched_ms": whole, "max_position": _nullable("number", "seconds"), "duration": _nullable("number", "seconds"),
        "completed": _nullable("boolean", "null while it runs, and where nothing tells"),
        "revision": whole | {"description": "how often it was reopened"},
    }  # fmt: skip


def _items(name: str) -> Schema:
    return {"type": "array", "items": {"$ref": _REF.format(name=name)}}


def _nullable(kind: str, description: str) -> Schema:
    return {"type": [kind, "null"]} | ({"description": description} if description else {})


def _object(properties: dict[str, Schema], description: str) -> Schema:
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": list(properties),
    }  # fmt: skip
