"""What a line says of a request: W3C extended, as CloudFront writes it, and JSON lines by a mapping."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import orjson

from engine import edge_rules
from engine.cdnlog.errors import BadLine
from engine.cmcd import parser
from engine.cmcd.keys import Value
from engine.wire import AT_MAX, MS_LEAST

NAMES = ("account", "device", "content", "kind", "session", "provider")
"""The parts of a signal that say who and what."""
MAPPABLE = (*NAMES, "token", "evidence", "time", "method", "status", "path", "query", "cookie", "cmcd")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{0,20})?")
_ORIGIN = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)


@dataclass(slots=True)
class Request:
    """None: this log does not say. `named` are parts of the signal that the log itself names."""

    time: object
    method: str | None
    status: str | None
    path: str | None
    query: str
    cookie: str
    named: dict[str, str] = field(default_factory=dict)
    cmcd: dict[str, Value] = field(default_factory=dict)
    """What the player says of the request: by the query's CMCD, else by headers that were logged."""


def columns_named(directive: str) -> tuple[str, ...] | None:
    """The order of the columns if it is `#Fields` (perhaps none); None for another directive."""
    name, _, rest = directive[1:].partition(":")
    return tuple(rest.split()) if name.strip().lower() == "fields" else None


def from_w3c(text: str, columns: Sequence[str]) -> Request:
    """Raises BadLine."""
    if not columns:
        raise BadLine("no_fields", "not JSON, and no #Fields line came before it (see --fields)")
    values = text.split("\t") if "\t" in text else text.split()
    if len(values) != len(columns):
        raise BadLine("field_count", f"{len(values)} values for {len(columns)} fields")
    return _from_cloudfront(dict(zip(columns, values, strict=True)))


def from_json(text: str, mapping: Mapping[str, str]) -> Request:
    """`mapping` is name → dotted path; without one the keys are CloudFront's names. Raises BadLine."""
    try:
        record = orjson.loads(text)
    except ValueError as error:
        raise BadLine("bad_json", str(error)) from None
    if not isinstance(record, dict):
        raise BadLine("bad_json", "not an object")
    if not mapping:
        return _from_cloudfront({name: str(value) for name, value in record.items() if value is not None})
    found = {name: _dig(record, path) for name, path in mapping.items()}
    for name in ("time", "method", "status", "path"):
        if name in mapping and found[name] is None:
            raise BadLine("missing_field", f"{mapping[name]} ({name}) is missing")
    texts = {name: text_of(value, mapping[name]) for name, value in found.items() if name != "time"}
    path, _, query = _ORIGIN.sub("", texts.get("path", "")).partition("?")
    query = "&".join(filter(None, (query, texts.get("query", "").lstrip("?"))))
    return Request(
        time=found.get("time"),
        method=texts.get("method"),
        status=texts.get("status"),
        path=path if "path" in mapping else None,
        query=query,
        cookie=texts.get("cookie", ""),
        named={name: texts[name] for name in (*NAMES, "token", "evidence") if texts.get(name)},
        cmcd=_cmcd(query, [texts.get("cmcd", "")]),
    )


def _from_cloudfront(values: Mapping[str, str]) -> Request:
    """By its names, standard and real-time. Values are URL-encoded once more than the client sent them."""

    def value(name: str) -> str:
        raw = values.get(name) or "-"
        return "" if raw == "-" else unquote(raw, errors="surrogateescape")

    for name in ("cs-method", "sc-status", "cs-uri-stem"):
        if not value(name):
            raise BadLine("missing_field", f"{name} is missing")
    # In real-time logs the stem has the query behind it.
    path, _, behind = value("cs-uri-stem").partition("?")
    query = value("cs-uri-query") or behind
    return Request(
        time=value("timestamp(ms)") or value("timestamp") or f"{value('date')}T{value('time')}",
        method=value("cs-method"),
        status=value("sc-status"),
        path=path,
        query=query,
        cookie=value("cs(Cookie)") or value("cs-cookie"),
        cmcd=_cmcd(query, [value(f"cs({name})") for name in parser.HEADERS]),
    )


def _cmcd(query: str, headers: list[str]) -> dict[str, Value]:
    argument = edge_rules.argument(query, parser.ARGUMENT) if parser.ARGUMENT in query else ""
    return parser.of_request(argument, headers)


def _dig(record: dict[str, Any], path: str) -> object:
    """The value at a dotted path, None if there is none; a key that itself contains dots is found too."""
    if path in record:
        return record[path]
    here: object = record
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here


def text_of(value: object, name: str) -> str:
    """'' for None. Raises BadLine for what is neither text nor a number."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadLine("bad_field", f"{name} is neither text nor a number")
    return str(value)


def parse_time(value: object) -> int:
    """ms since the epoch, from ISO 8601 (UTC unless it says), epoch seconds or epoch ms. Raises BadLine."""
    try:
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            moment = datetime.fromisoformat(value)
            ms = ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            number = float(value)
            # 1e11 s is the year 5138, 1e11 ms is 1973: no log's clock is near.
            ms = round(number if number >= 1e11 else number * 1000)
        else:
            raise BadLine("bad_time", "no time")
    except (ValueError, OverflowError):
        raise BadLine("bad_time", f"{value!r:.64} is not a time") from None
    # What the API would refuse, it would refuse with the whole batch.
    if ms != 0 and not MS_LEAST <= ms <= AT_MAX:
        raise BadLine("bad_time", f"{value!r:.64} is out of range")
    return ms
