"""The part of `/openapi.json` about erasure and audit; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

from api.openapi_history import moment
from engine.wire import ID_MAX, PRINTABLE

Schema = dict[str, Any]

_AT = 1_800_000_000_000
JOB = "3f0c9a52-7a39-4e58-9d2b-0f5c1a7e6b11"
RECEIPT = {
    "job": JOB, "erased_at": _AT,
    "removed": {
        "sessions": 2, "outbox": 0, "log": 412, "projections": {"resume": 9, "views": 31}, "kept": 0,
        "lake": {"rows": 52_310, "files": 118},
    },
}  # fmt: skip
BLOCK = {
    "id": "17-1800000000000-0", "at": _AT, "type": "block", "account": "ann", "profile": "", "device": "kitchen",
    "session": "tv-2", "content": "final", "kind": "live", "provider": "sport-one", "rule": "streams", "limit": 2,
    "reason": "limit_reached", "by": None,
}  # fmt: skip
BLOCKS = {
    "job": JOB, "items": [BLOCK], "next": None, "total": 1,
    "counts": {
        "type": {"block": 1}, "rule": {"streams": 1}, "reason": {"limit_reached": 1}, "provider": {"sport-one": 1},
        "content": {"final": 1}, "day": {"2027-01-15": 1},
    },
}  # fmt: skip


def job_path() -> list[Schema]:
    schema = {"type": "string", "pattern": "^[0-9a-f-]{36}$"}
    return [{"name": "job", "in": "path", "required": True, "schema": schema, "example": JOB}]


def blocks_query() -> list[Schema]:
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    at = moment()
    return [
        *({"name": name, "in": "query", "schema": text, "example": ""} for name in ("account", "rule", "provider", "content")),
        {"name": "from", "in": "query", "schema": at, "example": _AT - 86_400_000, "description": "ms; a day before `to`"},
        {"name": "to", "in": "query", "schema": at, "example": _AT, "description": "ms, exclusive; now"},
        {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 1000}, "example": 100},
        {"name": "cursor", "in": "query", "schema": {"type": "string"}, "example": "", "description": "`next` of the page before"},
    ]  # fmt: skip


def schemas() -> dict[str, Schema]:
    whole: Schema
    whole, text, null = {"type": "integer"}, {"type": "string"}, {"type": ["string", "null"]}
    counts = {"type": "object", "additionalProperties": whole}
    return {
        "Job": _object({"job": text}, "It is under way; ask `/v1/jobs/{job}`."),
        "Receipt": _object(
            {"job": text, "erased_at": whole, "removed": {"type": "object"}}, "What was removed, in numbers: it names nobody."
        ),
        "Answer": {"type": "object", "description": "What the job was asked for.", "required": ["job"]},
        "Enforcement": _object(
            dict.fromkeys(("id", "type", "account", "profile", "device", "session", "content", "kind"), text)
            | {"at": whole, "limit": {"type": ["integer", "null"]}}
            | dict.fromkeys(("provider", "rule", "reason", "by"), null), "One block, eviction or takeover.",
        ),
        "Blocks": _object(
            {"job": text, "items": {"type": "array", "items": {"$ref": "#/components/schemas/Enforcement"}}, "next": null,
             "total": whole, "counts": {"type": "object", "additionalProperties": counts}},
            "Newest first; `counts` and `total` are over all that match.",
        ),
    }  # fmt: skip


def _object(properties: dict[str, Schema], description: str) -> Schema:
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": list(properties),
    }  # fmt: skip
