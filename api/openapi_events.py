"""The part of `/openapi.json` about tracking events; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.settings import Settings
from engine.tracking import FIELDS, EventBatch, Sent
from engine.wire import OWN_TYPES, PRINTABLE

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
ROUTE = "/v1/events"
_AT = 1_800_000_000_000
MOST = Settings().events_max

BATCH = {
    "session": "9b2f7c1e-6a41-4f0e-9d0c-1f2a3b4c5d6e",
    "events": [
        {"type": "seek", "seq": 4, "at": _AT, "data": {"from": 61.5, "to": 1200}},
        {"type": "ad_start", "id": "ad-7-1", "data": {"ad": "a-7", "duration": 15, "campaign": "autumn"}},
        {"type": "subtitles_on", "id": "8c1e", "data": {"language": "pt"}},
    ],
}
TRACKED = {
    "accepted": 1, "duplicates": 1,
    "rejected": [{"index": 2, "error": {
        "code": "invalid", "message": "events[2].data.to: Expected `float | null`, got `str`", "field": "events[2].data.to",
    }}],
}  # fmt: skip


def schemas() -> dict[str, Schema]:
    """What is sent, from the structs that validate it, and what comes back."""
    _, found = msgspec.json.schema_components([EventBatch, Sent, *FIELDS.values()], ref_template=_REF)
    for schema in found.values():
        for field in schema["properties"].values():
            if field.get("default", 0) in ("", None):
                del field["default"]
    batch = found["EventBatch"]["properties"]
    batch["events"] |= {
        "maxItems": MOST, "items": {"description": "any JSON; what is no good `Event` is rejected, alone"},
        "description": f"at most {MOST}, unless `PULSEGATE_EVENTS_MAX` says otherwise",
    }  # fmt: skip
    batch["token"] |= {"pattern": f"^{PRINTABLE}*$", "description": "where there is no header"}
    batch["account"]["description"] += "; required with a service token"
    for name in ("device", "content", "profile"):
        batch[name]["description"] += "; else that of the session's last heartbeat"
    event = found.pop("Sent")
    event["description"] = "A tracking event. The fields of a known type stand beside `type`, or in `data`."
    event["properties"]["type"]["not"] = {"enum": sorted(OWN_TYPES)}
    event["properties"]["data"] = {
        "description": "free JSON; of a known type's fields, those that are there must be good"
    }
    known = {f"{cls.__name__}Fields": found.pop(cls.__name__) for cls in FIELDS.values()}
    event["allOf"] = [
        {
            "if": {"properties": {"type": {"const": kind}}, "required": ["type"]},
            "then": {"$ref": _REF.format(name=f"{cls.__name__}Fields")},
        }
        for kind, cls in FIELDS.items()
    ]
    text, count = {"type": "string"}, {"type": "integer", "minimum": 0}
    error: dict[str, Schema] = {
        "code": {"description": "stable, for programs", "enum": ["invalid", "invalid_json", "reserved", "too_deep", "too_large"]},
        "message": text, "field": {"type": "string", "description": "`events[2].data.to`, say"},
    }  # fmt: skip
    rejected: dict[str, Schema] = {
        "index": count | {"description": "its place in the batch"},
        "error": _object(error, "Why."),
    }
    tracked: dict[str, Schema] = {
        "accepted": count, "duplicates": count | {"description": "told before, by `id` or by session, type and `seq`"},
        "rejected": {"type": "array", "items": _object(rejected, "One that was not accepted.")},
    }  # fmt: skip
    return found | known | {"Event": event, "Tracked": _object(tracked, "What became of the events.")}


def _object(properties: dict[str, Schema], description: str) -> Schema:
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": list(properties),
    }  # fmt: skip


def request_body() -> Schema:
    """The batch, as JSON or as the text that `sendBeacon` sends."""
    beacon = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(name="EventBatch")},
    }
    text = '{"session": "tv-1", "device": "tv", "content": "film-1", "kind": "vod", "events": [{"type": "custom"}]}'
    json = {"schema": {"$ref": _REF.format(name="EventBatch")}, "examples": {"batch": {"value": BATCH}}}
    return {"required": True, "content": {"application/json": json, "text/plain": {"schema": beacon, "example": text}}}


DESCRIPTION = """Each event is judged by itself and goes byte for byte into the event log; one that is rejected is kept with its
reason and can be replayed. Sending a batch again is safe where its events carry an `id`, or a `seq` of the session: those
told within the last 24 h are dropped. The token may be in the header, in the body (`token`) or in the query, because
`sendBeacon` has no headers, and passes up to 10 min past its expiry. A service token (scope `signals`) names the account in
the body. Events are no evidence that a stream is alive. After 429 or 503 send it again. The body may have 1 MiB."""
