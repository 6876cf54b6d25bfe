"""The part of `/openapi.json` about trending, audiences and the catalogue; `api/openapi.py` merges it."""

from __future__ import annotations

from typing import Any

import msgspec

from api.trending import LIMIT, LIMIT_MAX
from engine.catalogue import CONTENTS_MAX, Content
from engine.wire import ID_MAX, PRINTABLE

Schema = dict[str, Any]

_REF = "#/components/schemas/{name}"
_AT = 1_800_000_000_000

ITEM = {
    "content": "channel-5", "title": "News at ten", "observed": 640.0, "expected": 201.4, "score": 30.1, "concurrent": 655,
    "distinct": 702, "since": _AT - 240_000,
}  # fmt: skip
LIST = {
    "kind": "live", "rank": "trending", "provider": None, "published_at": _AT, "formula": {"name": "surprise"}, "items": [ITEM],
    "next": None,
}  # fmt: skip
NOTHING = LIST | {"published_at": None, "formula": None, "items": []}
EVENT = (
    'retry: 2000\n\nevent: trending\nid: 1800000000000\ndata: {"kind":"live","rank":"trending","provider":null,'
    '"published_at":1800000000000,"formula":{"name":"surprise"},"items":[],"next":null}\n\n:\n\n'
)
AUDIENCE = {
    "content": "channel-5", "title": "News at ten", "kind": None, "concurrent": 655,
    "by_kind": {"live": 655, "vod": 0, "unknown": 0}, "distinct": {"5m": 702, "1h": 1_930, "24h": 11_204},
    "series": [{"at": _AT - 60_000, "concurrent": 641}, {"at": _AT, "concurrent": 655}],
}  # fmt: skip
CONTENT = {"content": "film-1", "kind": "vod", "title": "A film", "runtime": 5400, "provider": "studio-1"}
ENTRY = CONTENT | {"hidden": False}

LISTED = (
    "Live and on-demand apart. `trending`: watched more than expected, for this hour of the week too; `popular` (`vod` only): "
    "hours viewed by runtime. Each item has the parts its score was made of, `formula` says how. Lists are computed every 5 s; hidden "
    "contents are left out. `published_at` is null before there is a list. A player's token, or a service token (scope `read`)."
)
STREAMED = (
    "Server-sent events: `event: trending`, `id` is `published_at`, `data` the document of `/v1/trending`. The newest list at once, unless "
    "`Last-Event-ID` is its id, then each as it is published, and a comment every 15 s. A reader that takes nothing for 5 s is "
    "disconnected. A stream ends with its token, when the process stops, and after an hour; browsers connect again. The token may be in "
    "the query, because `EventSource` has no headers."
)
AUDIENCED = (
    "Views now; different accounts in the last 5 min, hour and 24 h, of all kinds; views minute by minute for the last 6 h, null where "
    "nobody measured. Zeros for a content that nobody watches. A player's token, or a service token (scope `read`)."
)
SAID = (
    f"One content or a list of up to {CONTENTS_MAX}, with a service token (scope `admin`). A field left out stays as it is known, null "
    "forgets it, `remove` forgets the content. A list with one bad item is refused whole; the error's field is `[i].name`. The body "
    "may have 1 MiB."
)


def lists_query() -> list[Schema]:
    kind = {"name": "kind", "in": "query", "required": True, "schema": {"enum": ["live", "vod"]}, "example": "vod"}
    rank = {"name": "rank", "in": "query", "schema": {"enum": ["trending", "popular"]}, "example": "trending",
            "description": "trending unless given; there is no popular of live"}  # fmt: skip
    text = {"type": "string", "maxLength": ID_MAX, "pattern": f"^{PRINTABLE}*$"}
    provider = {
        "name": "provider",
        "in": "query",
        "schema": text,
        "description": "of this provider only",
        "example": "",
    }
    whole = {"type": "integer", "minimum": 1, "maximum": LIMIT_MAX}
    limit = {"name": "limit", "in": "query", "schema": whole, "description": f"{LIMIT} unless given", "example": LIMIT}
    return [kind, rank, provider, limit]


def stream_query() -> list[Schema]:
    last = {
        "name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}, "example": "",
        "description": "the id of the last list the reader has, as browsers send it; what is none is ignored",
    }  # fmt: skip
    return [*lists_query(), last]


def audience_query() -> list[Schema]:
    kind = {"enum": ["live", "vod", ""]}
    return [{"name": "kind", "in": "query", "schema": kind, "description": "of this kind only", "example": ""}]


def contents_body() -> Schema:
    one = {"$ref": _REF.format(name="Content")}
    return {"required": True, "content": {"application/json": {
        "schema": {"anyOf": [one, {"type": "array", "items": one, "maxItems": CONTENTS_MAX}]},
        "examples": {"one": {"value": CONTENT}, "list": {"value": [{"content": "film-2", "hidden": True}]}},
    }}}  # fmt: skip


def schemas() -> dict[str, Schema]:
    """What is sent, from the struct that validates it, and what comes back."""
    _, found = msgspec.json.schema_components([Content], ref_template=_REF)
    text, whole, number = {"type": "string"}, {"type": "integer"}, {"type": "number"}
    item: dict[str, Schema] = {
        "content": text, "title": _nullable("string", "null if nobody has said"),
        "observed": number, "expected": number, "score": number,
        "concurrent": whole | {"description": "views now"}, "distinct": whole | {"description": "accounts lately"},
        "since": whole | {"description": "on the list since, ms"},
    }  # fmt: skip
    listed: dict[str, Schema] = {
        "kind": {"enum": ["live", "vod"]}, "rank": {"enum": ["trending", "popular"]}, "provider": _nullable("string", "null: all"),
        "published_at": _nullable("integer", "ms; null: there is no list (yet)"),
        "formula": _nullable("object", "how the score is made, with its parameters"),
        "items": {"type": "array", "items": {"$ref": _REF.format(name="TrendingItem")}, "maxItems": LIMIT_MAX},
        "next": {"type": "null", "description": "there is one page"},
    }  # fmt: skip
    point = _object({"at": whole, "concurrent": _nullable("integer", "null: not measured")}, "A minute.")
    counts = _object({"live": whole, "vod": whole, "unknown": whole}, "By kind; one only if it was asked for.")
    counts["required"] = []
    audience: dict[str, Schema] = {
        "content": text, "title": _nullable("string", "null if nobody has said"), "kind": {"enum": ["live", "vod", None]},
        "concurrent": whole | {"minimum": 0}, "by_kind": counts,
        "distinct": _object({"5m": whole, "1h": whole, "24h": whole}, "Different accounts."),
        "series": {"type": "array", "items": point, "maxItems": 360},
    }  # fmt: skip
    entry: dict[str, Schema] = {
        "content": text, "kind": {"enum": ["live", "vod", None]}, "title": _nullable("string", ""),
        "runtime": _nullable("number", "seconds"), "provider": _nullable("string", ""), "hidden": {"type": "boolean"},
    }  # fmt: skip
    items = _object(item, "A content and the parts of its score.")
    return found | {
        "TrendingItem": items | {"required": ["content", "title"], "additionalProperties": True},
        "Trending": _object(listed, "A published list, best first."),
        "Audience": _object(audience, "How many watch a content."),
        "Entry": _object(entry, "What is known of a content; null: nobody has said."),
        "Said": _object({"accepted": whole | {"description": "contents in the request"}}, "It is known from now on."),
    }


def _nullable(kind: str, description: str) -> Schema:
    return {"type": [kind, "null"]} | ({"description": description} if description else {})


def _object(properties: dict[str, Schema], description: str) -> Schema:
    return {
        "type": "object", "description": description, "properties": properties, "additionalProperties": False,
        "required": list(properties),
    }  # fmt: skip
