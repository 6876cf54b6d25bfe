"""CMCD as it comes: a list of keys in the manner of RFC 8941 (`bl=(6000;v 900;a),cid="C1",e=ps,bg`), one report a line. Pure.

It takes more than the standard lets a player send: `ec=1234` bare, decimals anywhere, empty members, CRLF, empty lines, UTF-8 in
strings. A line that is no list of keys at all is bad; its neighbours are not touched. An ill-typed key costs that key only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.cmcd.keys import Item, Value, fitted, known
from engine.errors import BadRequest

VERSION = 2
LINES_MAX = 500
LINE_MAX_BYTES = 8192
HEADERS = ("CMCD-Object", "CMCD-Request", "CMCD-Session", "CMCD-Status")
ARGUMENT = "CMCD"

# Possessive throughout: a hostile line costs no more than its length.
_KEY = r"[A-Za-z*][A-Za-z0-9_.*-]{0,63}+"
_STRING = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*+"'
_BARE = r'[^\s,;()"\x00-\x1f\x7f]'
_PARAMS = rf"(?:;[ ]*+{_KEY}(?:=(?:{_STRING}|{_BARE}*+))?+)*+"
_LIST = rf"\([ ]*+(?:(?:{_STRING}|{_BARE}++){_PARAMS}[ ]*+)*+\)"
_MEMBER = re.compile(rf"[ \t]*+(?:({_KEY})(?:=(?:({_STRING})|({_LIST})|({_BARE}*+)))?+{_PARAMS})?+[ \t]*+(?:,|\Z)")
_ITEM = re.compile(rf"({_STRING})|({_BARE}++)|{_PARAMS}[ ]*+")
_ESCAPED = re.compile(r"\\(.)")
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Report:
    """One good report: its keys in JSON-ready values, and the line as it came. `index` counts the body's lines from 0."""

    keys: dict[str, Value]
    raw: str
    index: int = 0

    def text(self, key: str) -> str:
        """'' if it is not there."""
        value = self.keys.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> float | None:
        value = self.keys.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def sn(self) -> int | None:
        """Counts the session's reports to one target from 0; None if the player does not count."""
        value = self.number("sn")
        return None if value is None else int(value)


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no report: `reason` is encoding, too_long, syntax or sid."""

    index: int
    reason: str
    message: str
    raw: bytes


@dataclass(slots=True)
class Parsed:
    """A body. `newer` counts reports of a version we do not know, `dropped` the known keys whose values were ill-typed."""

    reports: list[Report] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    newer: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def parse_body(body: bytes) -> Parsed:
    """The reports of an event-mode body. Raises BadRequest only for too many lines."""
    lines = [
        (index, line) for index, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").split(b"\n")) if line.strip()
    ]
    if len(lines) > LINES_MAX:
        raise BadRequest(f"body: at most {LINES_MAX} reports at once", field="body")
    parsed = Parsed()
    for index, line in lines:
        _parse_line(parsed, index, line.strip(b" \t\r"))
    return parsed


def _parse_line(parsed: Parsed, index: int, line: bytes) -> None:
    if len(line) > LINE_MAX_BYTES:
        message = f"longer than {LINE_MAX_BYTES} bytes"
        parsed.bad.append(Bad(index, "too_long", message, line[:LINE_MAX_BYTES]))
        return
    try:
        text = line.decode()
    except UnicodeDecodeError:
        parsed.bad.append(Bad(index, "encoding", "not UTF-8", line))
        return
    try:
        keys, dropped = parse_keys(text)
    except ValueError as error:
        parsed.bad.append(Bad(index, "syntax", str(error), line))
        return
    if not keys and not dropped:
        return
    if _version(keys) > VERSION:
        parsed.newer += 1
        return
    parsed.dropped.update(dropped)
    if "sid" not in keys:
        message = "sid is too long, no printable string, or a name of ours" if "sid" in dropped else "sid is missing"
        parsed.bad.append(Bad(index, "sid", message, line))
        return
    parsed.reports.append(Report(keys, text, index))


def of_request(argument: str, headers: Iterable[str] = ()) -> dict[str, Value]:
    """What a media request says of itself (request mode, version 1 or 2): the URL-decoded argument, else the four headers.

    {} for nothing, for what cannot be read, and for a newer version: a request is served whatever its CMCD.
    """
    text = argument or ",".join(filter(None, headers))
    if not text or len(text) > LINE_MAX_BYTES:
        return {}
    try:
        keys, _ = parse_keys(text)
    except ValueError:
        return {}
    return keys if _version(keys) <= VERSION else {}


def parse_keys(text: str) -> tuple[dict[str, Value], list[str]]:
    """The keys, and the known ones whose values were ill-typed. The last good value of a key given twice counts. Raises ValueError."""
    keys: dict[str, Value] = {}
    dropped: list[str] = []
    position, end = 0, len(text)
    while position < end:
        member = _MEMBER.match(text, position)
        if member is None:
            raise ValueError(f"no CMCD from character {position + 1} on")
        position = member.end()
        key, string, inner, bare = member.groups()
        if key is None:
            continue
        value = _value(string, inner, bare)
        value = None if value is None else fitted(key, value)
        if value is not None:
            keys[key] = value
        elif known(key):
            dropped.append(key)
    return keys, dropped


def _value(string: str | None, inner: str | None, bare: str | None) -> Value | None:
    if string is not None:
        return _unquoted(string)
    if inner is not None:
        return _items(inner)
    return True if bare is None else _bare(bare)


def _items(inner: str) -> list[Item]:
    """Of an inner list: `(2000;v 1900;a)` is [2000, 1900]."""
    found: list[Item] = []
    position, end = 1, len(inner) - 1
    while position < end:
        item = _ITEM.match(inner, position, end)
        if item is None or item.end() == position:
            break
        position = item.end()
        string, bare = item.groups()
        value = _unquoted(string) if string is not None else _bare(bare) if bare is not None else None
        if value is not None:
            found.append(value)
    return found


def _unquoted(string: str) -> str | None:
    """None for characters that no id or label may have."""
    text = string[1:-1]
    if "\\" in text:
        text = _ESCAPED.sub(r"\1", text)
    return text if text.isprintable() else None


def _bare(text: str) -> Item | None:
    """A number, a boolean, else a token."""
    if _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    if text in ("?0", "?1"):
        return text == "?1"
    return text if text and text.isprintable() else None


def _version(keys: dict[str, Value]) -> int:
    """Left out it is 1."""
    version = keys.get("v", 1)
    return version if isinstance(version, int) else 1
