"""Bodies and queries that were changed until they make no sense: every route that reads one."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any, ClassVar
from urllib.parse import quote

from loadtest.attack.base import HEARTBEATS, Attack, Finding

_MEANT = frozenset([200, 202, 204, 400, 401, 403, 404, 405, 409, 410, 413, 414, 422, 429, 431])
"""What a bad input may be answered. 503 is for what is away, and nothing is."""
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**53, 2**63, 2**64, -(2**63), 1e308, -0.0, "", " ", "a", "\0", "\n", "\u202e", "é" * 80, "x" * 128,
    "x" * 129, "x" * 5_000, "~", "@", ":", "\t", "{}", "../..", "%00", "\ud800", [], {}, [[]], {"": ""}, [None], ["a"] * 50, {"a": {"b": [1]}},
    "1e999", "NaN", 1_700_000_000, 1_700_000_000_000, 99_999_999_999_999, "oldest", "token:abc", "\ufeff", "\U0001f600",
)  # fmt: skip
_RAW = (
    b"NaN",
    b"1e999",
    b"-",
    b"01",
    b"'a'",
    b"[" * 200,
    b"\xff",
    b'"\\ud800"',
    b'"\\u0000"',
    b"{,}",
    b"",
    b"1.",
    b"0x1",
    b"Infinity",
)


def changed(chance: random.Random, value: Any) -> Any:
    """The value with something in it replaced, left out, doubled or put deeper."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        copy = dict(value)
        name = chance.choice(list(copy))
        how = chance.randrange(6)
        if how == 0:
            del copy[name]
        elif how == 1:
            copy[chance.choice(("x" * 300, "", "\0", "type", "at", "seq", "session"))] = chance.choice(_VALUES)
        elif how == 2:
            copy[name] = {"deep": copy[name]}
        else:
            copy[name] = changed(chance, copy[name])
        return copy
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return value[:at] + [changed(chance, value[at])] * chance.choice((1, 1, 1, 2, 40)) + value[at + 1 :]
    return chance.choice(_VALUES)


class Bodies(Attack):
    name = "fuzz-bodies"
    line = "fuzzing: bodies"
    what = "the JSON of every route, with values, names, types, depth and bytes changed"
    holds = "a player's token; for a backend's routes a service token"

    async def prepare(self) -> None:
        target = self.target
        self._player, self._service = target.player("bodies", max_streams=50), target.service("signals read admin")
        self._odd: Counter[str] = Counter()
        self._inputs = 0

    async def fire(self, n: int) -> None:
        method, path, body, service = _ROUTES[n % len(_ROUTES)]
        text = self._text(body)
        path = path.replace(
            "*",
            quote(str(self.random.choice(("odd", "~a", "%", "x" * 128, "x" * 200, "\0", "a/b", "@", "é"))), safe=""),
        )
        answer = await self.ask(method, path, text, self._service if service else self._player)
        self._inputs += 1
        ours = answer.status < 400 or b'"error":' in answer.body
        if answer.status not in _MEANT or not ours:
            self._odd[f"{method} {path.partition('?')[0][:40]}: {answer.status}"] += 1

    def _text(self, body: Any) -> bytes:
        for _ in range(self.random.randint(0, 3)):
            body = changed(self.random, body)
        text = json.dumps(body).encode()
        if self.random.random() < 0.2 and text:
            at = self.random.randrange(len(text))
            text = text[:at] + self.random.choice(_RAW) + text[at + self.random.randint(0, 3) :]
        return text

    async def finish(self) -> list[Finding]:
        found = [Finding("answers that are not meant for it", self._odd.total(), self._inputs, most=0)]
        return found + [Finding(what, count, most=0) for what, count in self._odd.most_common(8)]


_BEAT = {
    "session": "odd", "device": "odd", "content": "film", "kind": "vod", "state": "playing", "position": 1.5, "seq": 1, "duration": 5400,
    "credits": 5000, "profile": "kids", "device_type": "tv", "provider": "studio", "title": "A film", "rate": 1, "quality": {"bitrate": 1},
    "events": [{"type": "ad_start", "at": 1_800_000_000_000, "ad": "a"}, {"type": "mine"}],
}  # fmt: skip
_EVENTS = {"session": "odd", "device": "odd", "content": "film", "events": [
    {"type": "seek", "seq": 4, "event_id": "e", "at": 1_800_000_000_000, "data": {"from": 1, "to": 2}}, {"type": "mine", "data": {"a": [1]}},
]}  # fmt: skip
_SIGNAL = {
    "account": "odd", "device": "tablet", "content": "film", "kind": "vod", "evidence": "segment", "at": 1_800_000_000_000, "session": "s",
    "ttl_s": 30, "plan": "standard", "max_streams": 2, "profile": "kids", "request_id": "1",
}  # fmt: skip
_ROUTES: tuple[tuple[str, str, Any, bool], ...] = (
    ("POST", HEARTBEATS, _BEAT, False),
    ("POST", "/v1/sessions/*/stop", {"request_id": "r", "seq": 3}, False),
    ("POST", "/v1/sessions/*/takeover", {"stop": "oldest", "device": "d", "content": "c", "kind": "vod", "request_id": "t"}, False),
    ("POST", "/v1/events", _EVENTS, False),
    ("PUT", "/v1/resume/*", {"position": 1800, "duration": 5400}, False),
    ("POST", "/v1/signals", _SIGNAL, True),
    ("POST", "/v1/signals", [_SIGNAL, {**_SIGNAL, "evidence": "licence"}], True),
    ("POST", "/v1/contents", [{"content": "film", "kind": "vod", "title": "A", "runtime": 5400, "hidden": False}], True),
    ("POST", "/v1/tokens/revoke", {"jti": "j", "expires_at": 1_800_000_000_000}, True),
)  # fmt: skip


class Reports(Bodies):
    name = "fuzz-cmcd"
    line = "fuzzing: CMCD"
    what = "CMCD reports with keys, values and bytes changed"
    holds = "a player's token"

    async def fire(self, n: int) -> None:
        lines = []
        for _ in range(self.random.randint(1, 5)):
            keys = [
                f"{key}{self.random.choice(('=', '=', '=', '', '==', ':'))}{self.random.choice((value, value, *_CMCD_VALUES))}"
                for key, value in _CMCD if self.random.random() < 0.8
            ]  # fmt: skip
            self.random.shuffle(keys)
            lines.append(",".join(keys))
        text = "\n".join(lines).encode("utf-8", "surrogatepass")
        if self.random.random() < 0.2:
            at = self.random.randrange(len(text) + 1)
            text = text[:at] + bytes([self.random.randrange(256)]) * self.random.choice((1, 10_000)) + text[at:]
        query = f"?kind={self.random.choice(('vod', 'live', 'odd', ''))}&device=odd&target={quote(self.random.choice(('', 'a', '~', 'x' * 200)))}"
        answer = await self.ask("POST", f"/v1/cmcd{query}", text, self._player, b"Content-Type: application/cmcd\r\n")
        self._inputs += 1
        if answer.status not in _MEANT:
            self._odd[f"POST /v1/cmcd: {answer.status}"] += 1


_CMCD = (
    ("e", "ps"), ("sta", "p"), ("sid", '"odd"'), ("cid", '"film"'), ("sn", "2"), ("ts", "1795400848573"), ("br", "(4200)"), ("bl", "(6000)"),
    ("v", "2"), ("pt", "12000"), ("pr", "1"), ("ec", '("1234")'), ("com.example-seat", '"a"'), ("msd", "800"), ("ltc", "3000"), ("bs", ""),
)  # fmt: skip
_CMCD_VALUES = (
    "", '"', '""', "(", "()", "(())", '("a" "b")', "-1", "1e999", "99999999999999999999", "?1", "?2", ":AAAA:", "@1", '"' + "x" * 9_000 + '"',
    '"~a"', '"\\"', "a;b=c", "1;a", "\u00e9", '"\u00e9"', "\0", "1700000000",
)  # fmt: skip


class Questions(Attack):
    name = "fuzz-questions"
    line = "fuzzing: questions"
    what = "questions on quality and behaviour with arguments that make no sense"
    holds = "a service token, `read`"
    at_once = 8
    paths: ClassVar[tuple[str, ...]] = (
        "/v1/quality", "/v1/quality/worst", "/v1/quality/players", "/v1/quality/sessions/odd", "/v1/behaviour", "/v1/behaviour/dropoff", "/v1/audit/blocks",
        "/v1/views", "/v1/alerts", "/v1/alerts/history",
    )  # fmt: skip

    async def prepare(self) -> None:
        self._token = self.target.service("read")
        self._odd: Counter[str] = Counter()
        self._inputs = 0

    async def fire(self, n: int) -> None:
        names = [name for name in _ARGUMENTS if self.random.random() < 0.35]
        names += [self.random.choice(names)] if names and self.random.random() < 0.1 else []
        query = "&".join(f"{name}={self._value(name)}" for name in names)
        path = self.random.choice(self.paths)
        answer = await self.ask("GET", f"{path}?{query}", token=self._token)
        self._inputs += 1
        if answer.status not in _MEANT:
            self._odd[f"{path}: {answer.status}"] += 1

    def _value(self, name: str) -> str:
        good = self.random.random() < 0.6
        value = self.random.choice(_ARGUMENTS[name] if good else _NONSENSE)
        return quote(value.encode("utf-8", "surrogatepass"))

    async def finish(self) -> list[Finding]:
        found = [Finding("answers that are not meant for it", self._odd.total(), self._inputs, most=0)]
        return found + [Finding(what, count, most=0) for what, count in self._odd.most_common(8)]


_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "metric": ("sessions", "startup_time", "rebuffer_ratio", "score", "bitrate", "quartiles"),
    "by": ("content", "provider,cdn", "content,kind,os", "label.seat", "hour", "experiment"),
    "where": ("country=PT,ES", "device_type!=tv", "cdn=", "content=a\\,b;kind=vod", ";".join(["os=a"] * 21)),
    "from": ("0", "1700000000000", "1"), "to": ("99999999999999", "1700000000000"), "interval": ("10s", "1m", "1d"),
    "limit": ("1", "20", "10000"), "account": ("odd",), "content": ("film",), "session": ("odd",), "cursor": ("", "0", "AAAA"),
    "kind": ("vod",), "profile": ("kids",), "job": ("x",),
}  # fmt: skip
_NONSENSE = (
    "", "'", '"', "' OR 1=1 --", "1; DROP TABLE facts", "\0", "-1", "1e9", "nan", "a" * 3_000, "=", ";", "\\", "a=b=c", "label.", "label.'\"", "%", "%%", "_",
    "\u202e", "\ud800", "999999999999999999999", "1700000000", ",,,", "content,content", "*", "count(*)", "read_csv('x')", "0x10", " 1", "1 ",
)  # fmt: skip

ALL: tuple[type[Attack], ...] = (Bodies, Reports, Questions)
