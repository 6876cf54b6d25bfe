"""`/openapi.json`: every route, its input, and every answer that can really come back.

Request bodies are generated from the structs that validate them (`engine/wire.py`), so the two cannot drift apart;
`tests/test_openapi.py` holds the rest against a running server.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

import msgspec

from api import openapi_admin, openapi_audience, openapi_behaviour, openapi_events, openapi_history, openapi_quality
from engine.router import REFUSALS
from engine.wire import (
    EVENT_TYPE,
    EVENTS_MAX,
    ID_MAX,
    OWN_TYPES,
    PRINTABLE,
    SIGNALS_MAX,
    STATES,
    Heartbeat,
    PlayerEvent,
    Revocation,
    Signal,
    Stop,
    Takeover,
)  # fmt: skip

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_AT = 1_800_000_000_000
ENVOY_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")

INFO = """Players send a heartbeat every 10 s; the answer says whether the stream may go on. A block is a normal answer
(200); only `/v1/edge/authorize` turns it into 403.

Times end in `_at` and are ms since the epoch; durations end in their unit. Every error is
`{"error": {"code", "message", "field"}}`: `code` is stable, `field` says what to correct (`body`, `authorization`,
`path` and `method` stand for those parts of the request). Bodies are read as JSON whatever their content type, and
unknown fields in them are kept, not refused; an integer is written without fraction or exponent. A body over its limit (64 KiB, `/v1/events` and `/v1/contents` 1 MiB) is answered 413 before it is parsed, a
method a route does not have 405 with `Allow`. `HEAD` answers like `GET`, without a body. All player routes answer
CORS preflight (`OPTIONS`, 204). Every answer but preflight's carries `X-Request-Id`, the caller's own if it sent one;
a successful heartbeat or CMCD report only then."""

HEARTBEAT = {
    "session": "9b2f7c1e-6a41-4f0e-9d0c-1f2a3b4c5d6e", "device": "living-room", "content": "film-1", "kind": "vod",
    "position": 61.5, "duration": 5400, "credits": 5160, "state": "playing", "seq": 6, "title": "A film", "device_type": "tv",
    "quality": {"bitrate": 4_200_000},
    "events": [{"type": "bitrate_change", "at": _AT, "to": 4_200_000}],
}  # fmt: skip
SIGNAL = {
    "account": "ann", "device": "living-room", "content": "film-1", "kind": "vod", "evidence": "licence",
    "request_id": "licence-8d1f",
}  # fmt: skip
ALLOW = {
    "decision": "allow", "session": HEARTBEAT["session"], "reason": None, "rule": None, "limit": None, "by": None,
    "lease_expires_at": _AT + 30_000, "next_heartbeat_ms": 10_000, "retry_at": None, "conflicts": [],
    "duplicate": False, "last_seq": 6, "token_expires_at": _AT + 3_600_000, "degraded": False,
}  # fmt: skip
CONFLICT = {
    "session": "tv-1", "device": "bedroom", "device_type": "tv", "content": "film-2", "since_at": _AT - 60_000,
    "last_evidence_at": _AT - 4_000, "last_evidence": "heartbeat",
}  # fmt: skip
BLOCK = ALLOW | {
    "decision": "block", "reason": "limit_reached", "rule": "streams", "limit": 1, "lease_expires_at": None,
    "retry_at": _AT + 11_000, "conflicts": [CONFLICT], "last_seq": None,
}  # fmt: skip
SESSION = CONFLICT | {
    "account": "ann", "kind": "vod", "profile": "", "provider": "", "state": "playing", "view": 1, "revision": 0,
    "position": 56.0, "watched_ms": 56_000, "seq": 5, "started_at": _AT - 60_000, "lease_expires_at": _AT + 26_000,
    "yields_at": _AT + 11_000, "rules": ["streams"], "origin": "player", "paused_at": None, "proven_until": None,
}  # fmt: skip


def _object(properties: dict[str, Schema], description: str, optional: tuple[str, ...] = ()) -> Schema:
    """An object of ours: no other properties, and all of them there unless `optional`."""
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": [name for name in properties if name not in optional],
    }  # fmt: skip


def _of(kind: str, description: str, *, null: bool = False, **more: Any) -> Schema:
    return {"type": [kind, "null"] if null else kind, "description": description, **more}


def _answers() -> dict[str, Schema]:
    """The schemas of what comes back."""
    text, whole = {"type": "string"}, {"type": "integer"}
    conflict: dict[str, Schema] = {
        "session": text, "device": text, "device_type": _of("string", "null if nobody said", null=True),
        "content": _of("string", "null where it is of a profile that the token is not for", null=True),
        "since_at": _of("integer", "when it was admitted, ms"),
        "last_evidence_at": _of("integer", "when it last showed itself, ms"),
        "last_evidence": {"enum": ["heartbeat", "token", "licence", "manifest", "segment"]},
    }  # fmt: skip
    decision = {
        "decision": {"enum": ["allow", "block"]},
        "session": _of("string", "the session this is about; '' for a check that named none"),
        "reason": {
            "description": "why it is blocked",
            "enum": [
                "limit_reached",
                "evicted",
                "takeover",
                "displaced",
                "superseded",
                "takeover_limited",
                "quota",
                "account_busy",
                None,
            ],
        },
        "rule": _of("string", "the rule whose limit is reached", null=True),
        "limit": _of("integer", "that rule's limit", null=True),
        "by": _of("string", "the session that took the place", null=True),
        "lease_expires_at": _of("integer", "the slot is held until then without further evidence, ms", null=True),
        "next_heartbeat_ms": _of("integer", "send the next heartbeat after this long; stretches under load"),
        "retry_at": _of("integer", "the earliest moment a slot can come free, ms", null=True),
        "conflicts": {"type": "array", "items": {"$ref": _REF.format(name="Conflict")}},
        "duplicate": _of("boolean", "this or a later seq was answered before; nothing was changed"),
        "last_seq": _of("integer", "the highest seq accepted in this run", null=True),
        "token_expires_at": _of("integer", "ms; null where no token was judged", null=True),
        "degraded": _of("boolean", "decided without session Redis, in the viewer's favour"),
    }
    session: dict[str, Schema] = conflict | {
        "account": text, "content": text, "kind": {"enum": ["live", "vod", ""]}, "profile": text, "provider": text,
        "state": {"enum": sorted(STATES)},
        "view": _of("integer", "counts the contents watched in this session, from 1"),
        "revision": _of("integer", "how often the view was reopened"),
        "position": _of("number", "seconds", null=True),
        "watched_ms": whole,
        "seq": _of("integer", "the last seq accepted; null if the player never spoke", null=True),
        "started_at": whole, "lease_expires_at": whole,
        "yields_at": _of("integer", "from then on somebody who asks may take the slot, ms"),
        "rules": _of("array", "the rules it holds a slot under", items=text),
        "origin": _of("string", "who showed it first", enum=["player", "backend"]),
        "paused_at": _of("integer", "ms; null if not paused", null=True),
        "proven_until": _of("integer", "ms; null if the backend never saw it", null=True),
    }  # fmt: skip
    error = {"code": _of("string", "stable, for programs"), "message": _of("string", "for people"),
             "field": _of("string", "what to correct; absent if nothing in the request is wrong")}  # fmt: skip
    ready: dict[str, Schema] = {"ready": {"type": "boolean"}, "redis": {"enum": ["up", "down", "slow", "oom", *REFUSALS.values()]},
             "memory": {"enum": ["ok", "high"], "description": "high: only decisions write; a warning, not an outage"},
             "plans": _of("string", "'ok', or what is wrong with the plans file"),
             "api_processes": _of("integer", "API processes alive")}  # fmt: skip
    sessions: dict[str, Schema] = {"items": {"type": "array", "items": {"$ref": _REF.format(name="Session")}},
                "next": _of("null", "all are in `items`")}  # fmt: skip
    return {
        "Conflict": _object(conflict, "A stream that holds one of the slots wanted."),
        "Decision": _object(decision, "May the stream go on?"),
        "Session": _object(session, "A running session."),
        "Sessions": _object(sessions, "The account's running sessions, longest running first."),
        "Error": _object({"error": _object(error, "What went wrong.", ("field",))}, "Every error."),
        "Ready": _object(ready, "Whether this process can decide."),
        "Health": _object({"ok": {"const": True}}, "The process lives."),
    }


def _requests() -> dict[str, Schema]:
    """The schemas of what is sent: the very structs that validate it, and what `engine/wire.py` checks besides."""
    structs = [Heartbeat, PlayerEvent, Stop, Takeover, Signal, Revocation]
    _, found = msgspec.json.schema_components(structs, ref_template=_REF)
    for schema in found.values():
        for field in schema["properties"].values():
            if field.get("default", 0) in ("", None):
                del field["default"]
    beat = found["Heartbeat"]
    beat["properties"]["device"]["description"] += "; required where the token names no device"
    beat["properties"]["position"]["description"] = "seconds; required for vod"
    beat["properties"]["quality"]["description"] = "free JSON"
    beat["properties"]["events"]["anyOf"][0]["items"] = {"$ref": _REF.format(name="PlayerEvent")}
    beat["if"] = {"properties": {"kind": {"const": "vod"}}, "required": ["kind"]}
    beat["then"] = {"properties": {"position": {"type": "number"}}, "required": ["position"]}
    found["Stop"]["properties"]["token"] |= {"pattern": f"^{PRINTABLE}*$", "description": "where there is no header"}
    found["PlayerEvent"]["properties"]["type"] |= {
        "pattern": f"^{EVENT_TYPE}$", "not": {"enum": sorted(OWN_TYPES)},
        "description": "a name of your own or one of Pulsegate's, except those only Pulsegate writes",
    }  # fmt: skip
    return found


def _json(name: str, **examples: Any) -> Schema:
    """A JSON body of one component, with examples by name."""
    said = {key: {"value": value} for key, value in examples.items()}
    return {"application/json": {"schema": {"$ref": _REF.format(name=name)}, "examples": said}}


def _error(description: str, code: str, field: str | None, headers: dict[str, Schema] | None = None) -> Schema:
    said = {"code": code, "message": description.lower()} | ({"field": field} if field else {})
    return {
        "description": description,
        "headers": _headers(**(headers or {})),
        "content": _json("Error", error={"error": said}),
    }


def _headers(**more: Schema) -> dict[str, Schema]:
    return {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}} | more


_RETRY = {
    "Retry-After": {"required": True, "description": "seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
}
_ERRORS = {
    400: _error("The input is wrong", "invalid", "content"),
    401: _error("No token, or one that does not verify", "token_expired", "authorization"),
    403: _error("The token does not reach this far", "other_account", "account"),
    404: _error("No such running session to stop", "unknown_session", "stop"),
    409: _error("The session was never seen: name device, content and kind", "unknown_session", "session"),
    410: _error(
        "The token has expired or was revoked, or nothing is collected: send no more", "token_revoked", "authorization"
    ),
    413: _error("The body exceeds its limit", "too_large", "body"),
    422: _error("The question needs more time or memory than one may have: ask for less", "query_too_slow", None),
    429: _error(
        "Too many at once: decisions under way, streams of one, requests that wait; or (code `quota`) this account asks for more "
        "than one may",
        "overloaded",
        None,
        _RETRY,
    ),
    503: _error("Session Redis is away", "unavailable", None, _RETRY),
}


def _operation(name: str, summary: str, answers: dict[int, Schema], *errors: int, **more: Any) -> Schema:
    responses = answers | {status: _ERRORS[status] for status in errors}
    return {"operationId": name, "summary": summary, **more,
            "responses": {str(status): responses[status] for status in sorted(responses)}}  # fmt: skip


def _ok(name: str, status: int = 200, **examples: Any) -> dict[int, Schema]:
    return {status: {"description": "OK", "headers": _headers(), "content": _json(name, **examples)}}


def _done(description: str) -> dict[int, Schema]:
    return {204: {"description": description, "headers": _headers()}}


def _path(name: str, example: str) -> list[Schema]:
    schema = {"type": "string", "minLength": 1, "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}+$"}
    return [{"name": name, "in": "path", "required": True, "schema": schema, "example": example}]


def _body(name: str, *, required: bool = True, **examples: Any) -> Schema:
    return {"required": required, "content": _json(name, **examples)}


def _asked() -> list[Schema]:
    """What `check` reads from the query; an empty value is one left out."""
    described = {"session": "if it has an id yet", "device": "required where the token names none", "profile": "",
                 "device_type": "", "provider": ""}  # fmt: skip
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    content, kind = {**text, "minLength": 1}, {"enum": ["live", "vod", ""]}
    return [
        {"name": "content", "in": "query", "required": True, "schema": content, "example": "film-1"},
        {"name": "kind", "in": "query", "schema": kind, "example": "vod"},
        *({"name": name, "in": "query", "schema": text, "description": description,
           "example": HEARTBEAT.get(name, "")} for name, description in described.items()),
    ]  # fmt: skip


def _player_paths() -> Schema:
    session, decision = (
        _path("session", "9b2f7c1e-6a41-4f0e-9d0c-1f2a3b4c5d6e"),
        _ok("Decision", allow=ALLOW, block=BLOCK),
    )
    live = {"session": "s-2", "device": "phone", "content": "channel-5", "kind": "live", "state": "playing", "seq": 0}
    stop = _body("Stop", required=False, empty={}, repeatable={"seq": 7, "request_id": "stop-1"})
    beacon = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": {"$ref": _REF.format(name="Stop")},
    }
    stop["content"]["text/plain"] = {"schema": beacon, "example": '{"request_id": "stop-2"}'}
    stopping = {
        "security": [{"bearer": []}, {"query": []}, {}], "requestBody": stop,
        "description": "The token may be in the header, in the body (`token`) or in the query, because `sendBeacon` has no "
        "headers. A service token (scope `admin`) names the account in the body. Stopping twice is the same as once, "
        "and under a `request_id` also after the session has started again.",
    }  # fmt: skip
    gone = _done("Ended, or there was nothing to end")
    choice = {"stop": "oldest", "device": "phone", "content": "film-1", "kind": "vod", "request_id": "takeover-1"}
    account = _path("account", "ann")
    return {
        "/v1/heartbeats": {"post": _operation(
            "heartbeat", "A player shows that its stream is alive", decision, 400, 401, 403, 413, 429,
            requestBody=_body("Heartbeat", vod=HEARTBEAT, live=live),
            description=f"Also carries up to {EVENTS_MAX} events of the player's own. A session that was admitted before "
            "its token expired is answered for another 10 min. 401 is not a block: renew the token and go on.",
        )},
        "/v1/check": {"get": _operation(
            "check", "What a heartbeat would be answered now", decision, 400, 401, 403, 429, parameters=_asked(),
            description="Reads only; reserves nothing, is no evidence.",
        )},
        "/v1/sessions/{session}/stop": {"post": _operation(
            "stop", "The viewer is done: frees the slot at once", gone, 400, 401, 403, 413, 429, 503,
            parameters=session, **stopping,
        )},
        "/v1/sessions/{session}": {"delete": _operation(
            "delete", "The same as stop", gone, 400, 401, 403, 413, 429, 503, parameters=session, **stopping,
        )},
        "/v1/sessions/{session}/takeover": {"post": _operation(
            "takeover", "The viewer chooses which stream ends so that this one may start", decision, 400, 401, 403, 404,
            409, 413, 429, 503, parameters=session,
            requestBody=_body("Takeover", oldest=choice),
            description="`stop` is a session or `oldest`. What the session was last refused with need not be repeated. "
            "Nothing changes unless that frees every full rule.",
        )},
        openapi_events.ROUTE: {"post": _operation(
            "events", "Tracking events, any JSON, in batches", _ok("Tracked", 202, some=openapi_events.TRACKED), 400, 401,
            403, 413, 429, 503, security=stopping["security"], requestBody=openapi_events.request_body(),
            description=openapi_events.DESCRIPTION,
        )},
        "/v1/cmcd": {"post": _operation(
            "cmcd", "A stock player reports (CMCD event mode)", _done("Taken; what was bad is kept with its reason"), 400, 401,
            403, 410, 413, 429, 503, security=[{"query": []}, {"bearer": []}], parameters=openapi_quality.cmcd_query(),
            requestBody=openapi_quality.cmcd_body(), description=openapi_quality.CMCD_DESCRIPTION,
        )},
        "/v1/accounts/{account}/sessions": {"get": _operation(
            "sessions", "An account's running sessions", _ok("Sessions", one={"items": [SESSION], "next": None}),
            400, 401, 403, 429, 503, parameters=account,
            description="A player's token reads its own account, a service token (scope `read`) any.",
        )},
    }  # fmt: skip


def _history_paths() -> Schema:
    history = openapi_history
    content, whose = _path("content", "film-1"), history.whose()
    one, later = _ok("Position", one=history.POSITION), _ok("Accepted", 202, later={"accepted": True})
    unknown = {404: _error("Nothing is known of this content, or it is hidden", "not_found", "content")}
    reads, writes = (history.WHOSE.format(scope=scope) for scope in ("read", "admin"))
    return {
        "/v1/resume": {"get": _operation(
            "resumeList", "Continue watching: what was begun and neither completed nor hidden",
            _ok("Positions", some={"items": [history.POSITION], "next": None}), 400, 401, 403, 503,
            parameters=history.resume_list(), description=f"{history.LISTED} {reads}",
        )},
        "/v1/resume/{content}": {
            "get": _operation(
                "resume", "Where to go on", one | unknown, 400, 401, 403, 503, parameters=[*content, *whose], description=reads,
            ),
            "put": _operation(
                "resumeSet", "A position set by hand", one | later, 400, 401, 403, 413, 429, 503,
                parameters=[*content, *whose], requestBody=_body("ResumeSet", position=history.SET),
                description=f"Holds until something is seen that happens later. 202 if the workers are behind. {writes}",
            ),
            "delete": _operation(
                "resumeHide", "Hide a content, until a view that starts later", _done("Hidden") | later, 400, 401, 403, 429,
                503, parameters=[*content, *whose], description=f"202 if the workers are behind. {writes}",
            ),
        },
        "/v1/views": {"get": _operation(
            "views", "View records: by account, content, session and time",
            _ok("Views", some={"items": [history.VIEW], "next": None}), 400, 401, 403, 503, parameters=history.views_list(),
            description=f"{history.LISTED} A page may hold fewer than `limit` and still have a next. A player's token sees its "
            "own account; a service token (scope `read`) names account or content, or a span of time of a day at most.",
        )},
    }  # fmt: skip


def _audience_paths() -> Schema:
    audience, content = openapi_audience, _path("content", "film-1")
    listed = _ok("Trending", some=audience.LIST, none=audience.NOTHING)
    events = {200: {"description": "Server-sent events", "headers": _headers(), "content": {
        "text/event-stream": {"schema": {"type": "string"}, "example": audience.EVENT}}}}  # fmt: skip
    unknown = {404: _error("Nobody has said anything of this content", "not_found", "content")}
    return {
        "/v1/trending": {"get": _operation(
            "trending", "What is trending, or popular, now", listed, 400, 401, 403, 503, parameters=audience.lists_query(),
            description=audience.LISTED,
        )},
        "/v1/trending/stream": {"get": _operation(
            "trendingStream", "The same, as it is published", events, 400, 401, 403, 429, 503, parameters=audience.stream_query(),
            security=[{"bearer": []}, {"query": []}], description=audience.STREAMED,
        )},
        "/v1/contents": {"post": _operation(
            "contents", "Titles, runtimes, providers, and what lists must not show", _ok("Said", one={"accepted": 1}), 400, 401,
            403, 413, 503, requestBody=audience.contents_body(), description=audience.SAID,
        )},
        "/v1/contents/{content}": {"get": _operation(
            "content", "What is known of a content", _ok("Entry", one=audience.ENTRY) | unknown, 400, 401, 403, 503,
            parameters=content, description="A player's token, or a service token (scope `read`).",
        )},
        "/v1/contents/{content}/audience": {"get": _operation(
            "audience", "How many watch a content", _ok("Audience", one=audience.AUDIENCE), 400, 401, 403, 503,
            parameters=[*content, *audience.audience_query()], description=audience.AUDIENCED,
        )},
    }  # fmt: skip


def _quality_paths() -> Schema:
    said = openapi_quality
    unknown = {404: _error("Nothing is known of this session in that time", "unknown_session", "session")}
    return {
        "/v1/quality": {"get": _operation(
            "quality", "How good the picture is", _ok("Quality", some=said.METRICS_SAID), 400, 401, 403, 422, 429, 503,
            parameters=said.metrics_query(), description=said.METRICS_DESCRIPTION,
        )},
        "/v1/quality/worst": {"get": _operation(
            "qualityWorst", "What hurts most", _ok("Worst", some=said.WORST_SAID), 400, 401, 403, 422, 429, 503,
            parameters=said.worst_query(), description=said.WORST_DESCRIPTION,
        )},
        "/v1/quality/players": {"get": _operation(
            "qualityPlayers", "What players report, and what they get wrong", _ok("Players", some=said.PLAYERS_SAID), 400, 401, 403,
            422, 429, 503, parameters=said.players_query(), description=said.PLAYERS_DESCRIPTION,
        )},
        "/v1/quality/sessions/{session}": {"get": _operation(
            "qualitySession", "One playback from beginning to end", _ok("Timeline", one=said.TIMELINE_SAID) | unknown, 400, 401, 403,
            422, 429, 503, parameters=[*_path("session", "9b2f7c1e"), *said.timeline_query()], description=said.TIMELINE_DESCRIPTION,
        )},
    }  # fmt: skip


def _behaviour_paths() -> Schema:
    said = openapi_behaviour
    return {
        "/v1/behaviour": {"get": _operation(
            "behaviour", "How people watch", _ok("Behaviour", some=said.FIGURES), 400, 401, 403, 422, 429, 503, parameters=said.query(),
            description=said.FIGURED,
        )},
        "/v1/behaviour/dropoff": {"get": _operation(
            "dropoff", "Where people stop watching a content", _ok("Dropoff", some=said.CURVE), 400, 401, 403, 422, 429, 503,
            parameters=said.query(curve=True), description=said.CURVED,
        )},
        "/v1/alerts": {"get": _operation(
            "alerts", "Alerts on stream quality that fire now", _ok("Alerts", some=said.ALERTS), 400, 401, 403, 503,
            parameters=said.alerts_query(), description=said.ALERTED,
        )},
        "/v1/alerts/history": {"get": _operation(
            "alertsTold", "Alerts that were told", _ok("AlertsTold", some=said.TOLD), 400, 401, 403, 503,
            parameters=said.history_query(), description=said.HISTORY,
        )},
    }  # fmt: skip


def _admin_paths() -> Schema:
    later = _ok("Job", 202, later={"job": openapi_admin.JOB})
    patience = "202 if the worker takes longer; then ask for the job. A service token (scope `{}`) only."
    return {
        "/v1/accounts/{account}": {"delete": _operation(
            "erase", "Erase an account everywhere: sessions, projections, event log, lake",
            _ok("Receipt", done=openapi_admin.RECEIPT) | later | {
                409: _error("A projection is being replayed; try again when that is done", "replay", None)}, 400, 401, 403, 429, 503, parameters=_path("account", "ann"),
            description=f"Idempotent; a replay does not bring it back. {patience.format('admin')}",
        )},
        "/v1/jobs/{job}": {"get": _operation(
            "job", "The answer of an earlier call that took too long", _ok("Answer", done=openapi_admin.RECEIPT) | later | {
                404: _error("No such job, or it is an hour old", "unknown_job", "job")}, 400, 401, 403, 503,
            parameters=openapi_admin.job_path(),
        )},
        "/v1/audit/blocks": {"get": _operation(
            "blocks", "What was enforced: blocks, evictions, takeovers, listed and counted",
            _ok("Blocks", some=openapi_admin.BLOCKS) | later, 400, 401, 403, 429, 503,
            parameters=openapi_admin.blocks_query(), description=f"From the lake and the event log. {patience.format('read')}",
        )},
    }  # fmt: skip


def _backend_paths() -> Schema:
    one, many = {"$ref": _REF.format(name="Signal")}, {"$ref": _REF.format(name="Decision")}
    signals = {"required": True, "content": {"application/json": {
        "schema": {"anyOf": [one, {"type": "array", "items": one, "maxItems": SIGNALS_MAX}]},
        "examples": {"one": {"value": SIGNAL}, "list": {"value": [SIGNAL | {"request_id": "licence-8d20"}]}},
    }}}  # fmt: skip
    said = {"application/json": {
        "schema": {"anyOf": [many, {"type": "array", "items": many}]},
        "examples": {"one": {"value": ALLOW | {"token_expires_at": None}}, "list": {"value": [BLOCK]}},
    }}  # fmt: skip
    read = {
        200: {"description": "A decision, or a list of them in the same order", "headers": _headers(), "content": said}
    }
    revocation = {"jti": "token-17", "expires_at": _AT}
    return {
        "/v1/signals": {"post": _operation(
            "signals", "The backend saw a stream: a playback token, a licence, a manifest, a segment", read, 400, 401, 403,
            413, 429, requestBody=signals,
            description=f"One signal or a list of up to {SIGNALS_MAX}, with a service token (scope `signals`). A list with one "
            "bad item is refused whole; the error's field is `[i].name`. After 429 send it again: `request_id` and `at` "
            "keep it from counting twice.",
        )},
        "/v1/edge/authorize": _edge(""),
        "/v1/edge/authorize/{original}": _edge("Envoy"),
        "/v1/tokens/revoke": {"post": _operation(
            "revoke", "From now on a token is refused", _done("Revoked, here at once, elsewhere within a second"), 400, 401,
            403, 413, 503, requestBody=_body("Revocation", one=revocation),
            description="With a service token (scope `admin`). `expires_at` is when the token would have expired anyway.",
        )},
    }  # fmt: skip


def _edge(form: str) -> Schema:
    """nginx names the viewer's request in a header; Envoy appends its path to ours and keeps its method."""
    text = {"type": "string"}
    degraded = {"X-Pulsegate-Degraded": {"schema": {"const": "1"}, "description": "passed without a decision"}}
    reason: Schema = {"description": "a decision's reason or an error's code", "schema": text, "required": True}
    blocked: dict[str, Schema] = {
        "X-Pulsegate-Reason": reason,
        "X-Pulsegate-Rule": {"description": "the rule whose limit is reached", "schema": text},
        "X-Pulsegate-Retry-At": {"description": "ms since the epoch", "schema": text},
    }
    uri = {
        "name": "X-Original-URI", "in": "header", "schema": text, "example": "/vod/film-1/seg-1.m4s",
        "description": "path and query the viewer asked for",
    }  # fmt: skip
    given = {
        "name": "original", "in": "path", "required": True, "schema": text, "example": "vod/film-1/seg-1.m4s",
        "description": "the path the viewer asked for, slashes and all",
    }  # fmt: skip
    answers = {
        200 if form else 204: {"description": "Let it pass", "headers": _headers(**degraded)},
        401: {
            "description": "No token, or one that does not verify",
            "headers": _headers(**{"X-Pulsegate-Reason": reason}),
        },
        403: {"description": "Blocked", "headers": _headers(**blocked)},
    }
    return {
        method: _operation(
            f"authorize{form}{method.title()}",
            f"Asked before each segment or manifest, by {form or 'nginx'}",
            answers if method != "options" else {200: answers[200]},
            security=[{"bearer": []}, {}],
            parameters=[given if form else uri],
            description="The player's token may be in the header, in a cookie, in the viewer's query or path. The "
            "request is evidence that the stream is alive. When Pulsegate cannot tell, the viewer passes.",
        )
        for method in (ENVOY_METHODS if form else ("get", "post"))
    }


def _operation_paths() -> Schema:
    open_to_all: list[Schema] = []
    metrics = {200: {"description": "Prometheus' text format", "headers": _headers(),
                     "content": {"text/plain": {"schema": {"type": "string"}, "example": "pulsegate_redis_up 1.0\n"}}}}  # fmt: skip
    document_ = {200: {"description": "OpenAPI 3.1", "headers": _headers(), "content": {
        "application/json": {"schema": {"type": "object"}, "example": {"openapi": "3.1.0"}}}}}  # fmt: skip
    ready = {"ready": True, "redis": "up", "memory": "ok", "plans": "ok", "api_processes": 1}
    red = {503: {"description": "Session Redis is away, or refuses; calls are answered in degraded mode", "headers": _headers(),
                 "content": _json("Ready", down=ready | {"ready": False, "redis": "down"})}}  # fmt: skip
    return {
        "/healthz": {"get": _operation(
            "healthz", "The process lives", _ok("Health", up={"ok": True}), security=open_to_all)},
        "/readyz": {"get": _operation(
            "readyz", "Send it traffic?", _ok("Ready", up=ready) | red, security=open_to_all)},
        "/metrics": {"get": _operation(
            "metrics", "Counts of all API processes of this server", metrics, 401, 403, security=[{}, {"bearer": []}],
            description="Open, unless `PULSEGATE_METRICS_PUBLIC` is false: then with a service token (scope `read`).")},
        "/openapi.json": {"get": _operation("openapi", "This document", document_, security=open_to_all)},
    }  # fmt: skip


@cache
def document() -> dict[str, Any]:
    """The document, built once."""
    identity = {"description": "the caller's own, else one made up", "schema": {"type": "string"}}
    bearer = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
              "description": "A player's token names its account (`sub`); a service token carries `scope`."}  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pulsegate", "version": version("pulsegate"), "description": INFO},
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": _player_paths()
        | _history_paths()
        | _audience_paths()
        | _quality_paths()
        | _behaviour_paths()
        | _admin_paths()
        | _backend_paths()
        | _operation_paths(),
        "components": {
            "schemas": _requests()
            | _answers()
            | openapi_admin.schemas()
            | openapi_audience.schemas()
            | openapi_behaviour.schemas()
            | openapi_quality.schemas()
            | openapi_events.schemas()
            | openapi_history.schemas(),
            "headers": {"X-Request-Id": identity},
            "securitySchemes": {"bearer": bearer, "query": {"type": "apiKey", "in": "query", "name": "token"}},
        },
    }
