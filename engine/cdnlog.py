"""CDN access logs as backend signals: one line in, one signal out. Pure: no files, no network, no clock.

    line ── Parser.parse ──▶ signal | why it was skipped | None (directive, blank)      or BadLine
    signal ── Batch.add ──▶ coalesced with its like, or one more of at most 500 and 60 KB

Two formats, told apart line by line: W3C extended as CloudFront writes it (the order of the fields comes
from `#Fields`, which may change within a file), and JSON objects (by a mapping of dotted paths or, without
one, by CloudFront's own names). `docs/ingest-log.md` says which part of a request becomes what in a signal.

A request must become the same account, device and content here as at the edge (`api/edge.py`): where the two
see the same stream, they must not count it twice.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote

import jwt
import msgspec
import orjson

from engine.errors import ConfigError, PulsegateError
from engine.wire import AT_MAX, ID_MAX, RANKS, SIGNALS_MAX

Signal = dict[str, str | int | float]
Skip = Literal["method", "status", "path"]

IDENTITY = ("account", "device", "content", "kind", "session", "provider")
MAPPABLE = (*IDENTITY, "token", "evidence", "time", "method", "status", "path", "query", "cookie")
PATH = r"^/(?:t/(?P<token>[^/]+)/)?(?P<kind>live|vod)/(?P<content>[^/]+)/"
MANIFEST = r"\.(m3u8|mpd)$"
STATUSES = "200-299,304"
BODY_BYTES = 60_000  # the server refuses 64 KiB; the rest is for what an escaped character may add

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"\d{1,20}(?:\.\d{0,20})?")
_ORIGIN = re.compile(r"^https?://[^/?#]*", re.IGNORECASE)
_CLAIMS = {name: (name,) for name in IDENTITY} | {"account": ("sub",), "session": ("sid", "jti")}
_CACHE, _TOKEN_MAX = 10_000, 16_384
_SIGNATURE_ONLY = {f"verify_{claim}": False for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")}
_COLUMNS = (
    "date", "time", "timestamp", "timestamp(ms)",
    "cs-method", "sc-status", "cs-uri-stem", "cs-uri-query", "cs(Cookie)", "cs-cookie",
)  # fmt: skip


class BadLine(PulsegateError):
    """A line that names no signal. `code` is the reason it is counted under, `message` the detail."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, code=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which requests count and where a signal's parts are found.

    `query`, `cookies` and `mapping` are name → argument, cookie or dotted path. `ttl_s` (seconds) and
    `evidence` are sent with every signal if set. `secret` verifies tokens; without it they are read only if
    `trust_tokens`.
    """

    path: re.Pattern[str] = re.compile(PATH)
    manifest: re.Pattern[str] = re.compile(MANIFEST)
    query: Mapping[str, str] = field(default_factory=lambda: {"token": "token"})
    cookies: Mapping[str, str] = field(default_factory=lambda: {"token": "pulsegate"})
    mapping: Mapping[str, str] = field(default_factory=dict)
    methods: frozenset[str] = frozenset({"GET"})
    statuses: frozenset[int] = frozenset({*range(200, 300), 304})
    evidence: str = ""
    ttl_s: float | None = None
    secret: bytes | None = None
    trust_tokens: bool = False


@dataclass(slots=True)
class _Request:
    """What both formats say of a request; None: this log does not say."""

    time: object
    method: str | None
    status: object
    path: str | None
    query: str
    cookie: str
    named: dict[str, str] = field(default_factory=dict)


class Parser:
    """Turns lines into signals. `fields` is the order of W3C columns, replaced by every `#Fields` line."""

    def __init__(self, rules: Rules, fields: Sequence[str] = ()) -> None:
        self.rules = rules
        self.fields = tuple(fields)
        self._tokens = _Tokens(rules.secret, rules.trust_tokens)

    def parse(self, line: str) -> Signal | Skip | None:
        """A signal, the reason to skip the line, or None (directive, blank). Raises BadLine, nothing else."""
        text = line.lstrip("\ufeff").rstrip("\r\n")
        if not text.strip():
            return None
        if text.startswith("#"):
            self._directive(text)
            return None
        request = self._from_json(text) if text.lstrip().startswith("{") else self._from_w3c(text)
        if request.method is not None and request.method.upper() not in self.rules.methods:
            return "method"
        if request.status is not None and _status(request.status) not in self.rules.statuses:
            return "status"
        return self._signal(request)

    def _directive(self, text: str) -> None:
        name, _, rest = text[1:].partition(":")
        if name.strip().lower() != "fields":
            return
        # Forgotten first: lines after an unreadable header must not be read by the order of the one before.
        self.fields = tuple(rest.split())
        if not self.fields:
            raise BadLine("bad_directive", "#Fields names no fields")

    def _from_w3c(self, text: str) -> _Request:
        if not self.fields:
            raise BadLine("no_fields", "not JSON, and no #Fields line came before it (see --fields)")
        values = text.split("\t") if "\t" in text else text.split()
        if len(values) != len(self.fields):
            raise BadLine("field_count", f"{len(values)} values for {len(self.fields)} fields")
        return _from_cloudfront(dict(zip(self.fields, values, strict=True)))

    def _from_json(self, text: str) -> _Request:
        try:
            record = orjson.loads(text)
        except ValueError as error:
            raise BadLine("bad_json", str(error)) from None
        if not isinstance(record, dict):
            raise BadLine("bad_json", "not an object")
        mapping = self.rules.mapping
        if not mapping:
            return _from_cloudfront({name: _text(record.get(name), name) for name in _COLUMNS})
        found = {name: _dig(record, path) for name, path in mapping.items()}
        for name in ("time", "method", "status", "path"):
            if name in mapping and found[name] is None:
                raise BadLine("missing_field", f"{mapping[name]} ({name}) is missing")
        text_of = {name: _text(value, mapping[name]) for name, value in found.items() if name != "time"}
        path, _, query = _ORIGIN.sub("", text_of.get("path", "")).partition("?")
        return _Request(
            time=found.get("time"),
            method=text_of.get("method"),
            status=text_of.get("status"),
            path=path if "path" in mapping else None,
            query="&".join(filter(None, (query, text_of.get("query", "").lstrip("?")))),
            cookie=text_of.get("cookie", ""),
            named={name: text_of[name] for name in (*IDENTITY, "token", "evidence") if text_of.get(name)},
        )

    def _signal(self, request: _Request) -> Signal | Skip:
        rules = self.rules
        path = _clean(_unquote(request.path or ""))
        match = rules.path.search(path)
        cookies, arguments = _cookies(request.cookie, rules.cookies), _arguments(request.query, rules.query)
        groups = {name: value for name, value in match.groupdict().items() if value} if match else {}
        if groups.get("kind") not in ("live", "vod"):
            groups.pop("kind", None)
        named = cookies | arguments | groups | request.named
        if request.path is not None and match is None and not (request.named | arguments).get("content"):
            # A poster fetched with the viewer's cookie is no sign of a stream.
            return "path"
        at = parse_time(request.time)
        places = (request.named, cookies, arguments, groups)
        token = next((place["token"] for place in places if place.get("token")), "")
        named |= self._tokens.identity(token)
        if token and not named.get("device"):
            named["device"] = _device_of(token)
        evidence = rules.evidence or named.get("evidence")
        if not evidence:
            evidence = "manifest" if rules.manifest.search(path) else "segment"
        return _checked({name: named.get(name, "") for name in IDENTITY}, evidence, at, rules.ttl_s)


class _Tokens:
    """Reads tokens and remembers what they said: a player shows the same one with every segment."""

    def __init__(self, secret: bytes | None, trusted: bool) -> None:
        self._secret = secret
        self._trusted = trusted
        self._known: dict[str, dict[str, str]] = {}

    def identity(self, token: str) -> dict[str, str]:
        """The parts of a signal that a JWT names; nothing for a token of another make. Raises BadLine."""
        if token.count(".") != 2:
            return {}
        known = self._known.get(token)
        if known is None:
            known = self._read(self._claims(token))
            if len(self._known) >= _CACHE:
                self._known.clear()
            self._known[token] = known
        return known

    def _claims(self, token: str) -> dict[str, Any]:
        if self._secret is None and not self._trusted:
            raise BadLine("token_unverified", "give --jwt-secret-file, or --trust-tokens")
        if len(token) > _TOKEN_MAX:
            raise BadLine("bad_token", f"longer than {_TOKEN_MAX} characters")
        try:
            if self._secret is None:
                return jwt.decode(token, options={"verify_signature": False})
            # Not its expiry: the bytes were delivered, and that is what a signal tells.
            return jwt.decode(token, self._secret, algorithms=["HS256"], options=_SIGNATURE_ONLY)  # type: ignore[arg-type]
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise BadLine("bad_token", f"{error}") from None

    @staticmethod
    def _read(claims: Mapping[str, object]) -> dict[str, str]:
        out = {}
        for name, keys in _CLAIMS.items():
            value = next((claims[key] for key in keys if claims.get(key)), None)
            if value is not None:
                out[name] = _text(value, f"claim {keys[0]}")
        return out


@dataclass(frozen=True, slots=True)
class Entry:
    """A signal and the line it came from, so that a refusal can be kept with its line."""

    signal: Signal
    number: int
    line: str


class Batch:
    """Signals for one request. Like ones within `window_ms` become one: a segment a second adds nothing.

    Windows are fixed slices of the time line, so the outcome depends neither on the order of the lines
    (CloudFront's are not sorted) nor on where a batch begins.
    """

    def __init__(self, window_ms: int, *, size: int = SIGNALS_MAX, body_bytes: int = BODY_BYTES) -> None:
        self._window_ms = window_ms
        self._size = size
        self._body_bytes = body_bytes
        self._entries: dict[object, Entry] = {}
        self._bytes = 2

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> Literal["new", "like", "full"]:
        """`like`: one of the two was coalesced away. `full`: not added; take the batch, then add again."""
        signal = entry.signal
        key = self._key(signal)
        known = self._entries.get(key)
        if known is not None:
            if int(signal["at"]) > int(known.signal["at"]):
                self._entries[key] = entry
            return "like"
        size = len(msgspec.json.encode(signal)) + 1
        if self._entries and (len(self) >= self._size or self._bytes + size > self._body_bytes):
            return "full"
        self._entries[key] = entry
        self._bytes += size
        return "new"

    def take(self) -> list[Entry]:
        """Empties the batch. Oldest first: which content a device left and which it went to depends on it."""
        entries = sorted(self._entries.values(), key=lambda entry: entry.signal["at"])
        self._entries, self._bytes = {}, 2
        return entries

    def _key(self, signal: Signal) -> object:
        if not self._window_ms:
            return len(self._entries)
        slice_ = int(signal["at"]) // self._window_ms
        return (*(signal.get(name) for name in (*IDENTITY, "evidence")), slice_)


def encode(entries: Iterable[Entry]) -> bytes:
    """The body of `POST /v1/signals`."""
    return msgspec.json.encode([entry.signal for entry in entries])


def parse_time(value: object) -> int:
    """ms since the epoch, from ISO 8601 (UTC unless it says), epoch seconds or epoch ms. Raises BadLine."""
    try:
        if isinstance(value, str) and not _NUMBER.fullmatch(value):
            moment = datetime.fromisoformat(value)
            at = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
            ms = at // timedelta(milliseconds=1)
        elif isinstance(value, (str, int, float)) and not isinstance(value, bool):
            number = float(value)
            # 1e11 s is the year 5138, 1e11 ms is 1973: no log's clock is near.
            ms = round(number if number >= 1e11 else number * 1000)
        else:
            raise BadLine("bad_time", "no time")
    except (ValueError, OverflowError):
        raise BadLine("bad_time", f"{value!r:.64} is not a time") from None
    if not 0 <= ms <= AT_MAX:
        raise BadLine("bad_time", f"{value!r:.64} is out of range")
    return ms


def compile_pattern(option: str, text: str, *, groups: Iterable[str] | None = None) -> re.Pattern[str]:
    """Raises ConfigError that names the option; `groups` are the names it may use."""
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{option} is not a regular expression: {error}", field=option) from None
    unknown = set(pattern.groupindex) - set(groups) if groups is not None else set()
    if unknown:
        raise ConfigError(f"{option} has the unknown group {min(unknown)}", field=option)
    return pattern


def parse_pairs(option: str, items: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """`["account=claims.sub"]` → `{"account": "claims.sub"}`. Raises ConfigError that names the option."""
    allowed, pairs = tuple(names), {}
    for item in items:
        name, _, target = item.partition("=")
        if name not in allowed or not target:
            raise ConfigError(f"{option} {item}: want NAME=…, NAME one of {', '.join(allowed)}", field=option)
        pairs[name] = target
    return pairs


def parse_statuses(option: str, text: str) -> frozenset[int]:
    """`"200-299,304"` → the statuses. Raises ConfigError that names the option."""
    out: set[int] = set()
    for part in text.split(","):
        span = re.fullmatch(r"\s*(\d{3})(?:-(\d{3}))?\s*", part)
        if span is None:
            raise ConfigError(f"{option} {text}: want statuses and ranges such as {STATUSES}", field=option)
        out.update(range(int(span[1]), int(span[2] or span[1]) + 1))
    return frozenset(out)


def _from_cloudfront(fields: Mapping[str, str]) -> _Request:
    """By CloudFront's names, standard and real-time. Values are URL-encoded once more than the client sent them."""

    def value(name: str) -> str:
        raw = fields.get(name) or "-"
        return "" if raw == "-" else _unquote(raw)

    for name in ("cs-method", "sc-status", "cs-uri-stem"):
        if not value(name):
            raise BadLine("missing_field", f"{name} is missing")
    time = value("timestamp(ms)") or value("timestamp") or f"{value('date')}T{value('time')}"
    # In real-time logs the stem has the query behind it.
    path, _, query = value("cs-uri-stem").partition("?")
    return _Request(
        time=time,
        method=value("cs-method"),
        status=value("sc-status"),
        path=path,
        query=value("cs-uri-query") or query,
        cookie=value("cs(Cookie)") or value("cs-cookie"),
    )


def _checked(identity: dict[str, str], evidence: str, at: int, ttl_s: float | None) -> Signal:
    """The finished signal. What the server would refuse is refused here, with the line. Raises BadLine."""
    for name in ("account", "device"):
        if not identity[name]:
            raise BadLine(f"no_{name}", f"nothing in the request names the {name}")
    for name, value in identity.items():
        if len(value) > ID_MAX or not value.isprintable():
            raise BadLine(f"bad_{name}", f"{name} must be 1–{ID_MAX} printable characters")
    if identity["kind"] not in ("", "live", "vod"):
        raise BadLine("bad_kind", f"kind is {identity['kind']!r}, not live or vod")
    if evidence not in RANKS:
        raise BadLine("bad_evidence", f"evidence is {evidence!r:.64}, none of {', '.join(RANKS)}")
    signal: Signal = {name: value for name, value in identity.items() if value}
    signal |= {"evidence": evidence, "at": at}
    if ttl_s is not None:
        signal["ttl_s"] = ttl_s
    # The same line gives the same id, so a batch sent twice counts once.
    name_of = "\0".join((*identity.values(), evidence, str(at)))
    signal["request_id"] = "log-" + hashlib.sha256(name_of.encode()).hexdigest()[:24]
    return signal


def _device_of(token: str) -> str:
    """Where nothing names a device, one token is one device."""
    return "token:" + hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()[:16]


def _status(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and len(text) == 3):
        raise BadLine("bad_status", f"{text!r:.64} is not a status")
    return int(text)


def _dig(record: dict[str, Any], path: str) -> object:
    """The value at a dotted path, None if there is none; a key that itself contains dots is found too."""
    if path in record:
        return record[path]
    here: object = record
    for part in path.split("."):
        here = here.get(part) if isinstance(here, dict) else None
    return here


def _text(value: object, name: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BadLine("bad_field", f"{name} is neither text nor a number")
    return str(value)


def _unquote(text: str) -> str:
    # Bytes that are not UTF-8 become surrogates, which no id may contain: two ids never become one.
    return unquote(text, errors="surrogateescape")


def _clean(path: str) -> str:
    """Without `//`, `.` and `..`: the spelling under which a server looks the path up, and which the edge judges."""
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith(("/", "/.", "/..")) else "")


def _arguments(query: str, wanted: Mapping[str, str]) -> dict[str, str]:
    """The first of each argument, as most servers take it."""
    if not query or not wanted:
        return {}
    found: dict[str, str] = {}
    for name, value in parse_qsl(query, errors="surrogateescape"):
        found.setdefault(name, value)
    return {name: found[argument] for name, argument in wanted.items() if argument in found}


def _cookies(header: str, wanted: Mapping[str, str]) -> dict[str, str]:
    if not header or not wanted:
        return {}
    found: dict[str, str] = {}
    for part in header.split(";"):
        name, _, value = part.strip().partition("=")
        if bare := value.strip(' "'):
            found.setdefault(name, bare)
    return {name: found[cookie] for name, cookie in wanted.items() if cookie in found}
