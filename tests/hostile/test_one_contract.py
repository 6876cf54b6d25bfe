"""A heartbeat is answered by the protocol itself or by the ASGI route of the same name, as HTTP's framing has it: the same answer, the
same headers, the same counters."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from engine.embedded import VOLATILE, Server
from engine.keys import Keys
from engine.settings import Settings
from tests.harness import PARTITIONS
from tests.hostile.wires import Answer, Wire, account, beat
from tests.servers import ApiProcess, player, service

PREFIX = "contract"
ORIGIN = "https://player.example"
REQUESTS = 150
BODY_MAX = Settings().body_max_bytes
SEGMENT = 8_192
"""What is longer may come in pieces; an answer before the last piece of a chunked body ends the connection."""

Framing = Callable[[list[str], bytes], bytes]


def plain(lines: list[str], body: bytes) -> bytes:
    """What the protocol answers by itself, if it can."""
    return _request("/v1/heartbeats", [*lines, f"Content-Length: {len(body)}"], body)


def chunked(lines: list[str], body: bytes) -> bytes:
    middle = len(body) // 2
    parts = [part for part in (body[:middle], body[middle:]) if part]
    sent = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return _request("/v1/heartbeats", [*lines, "Transfer-Encoding: chunked"], sent + b"0\r\n\r\n")


def absolute(lines: list[str], body: bytes) -> bytes:
    return _request("http://h/v1/heartbeats", [*lines, f"Content-Length: {len(body)}"], body)


def asking(lines: list[str], body: bytes) -> bytes:
    return _request("/v1/heartbeats?", [*lines, f"Content-Length: {len(body)}"], body)


def expecting(lines: list[str], body: bytes) -> bytes:
    return _request("/v1/heartbeats", ["Expect: 100-continue", *lines, f"Content-Length: {len(body)}"], body)


BY_ROUTE: tuple[Framing, ...] = (chunked, absolute, asking, expecting)


def _request(target: str, lines: list[str], body: bytes) -> bytes:
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: h", *lines, "", ""]).encode("latin-1") + body


def _authorizations(name: str) -> list[str]:
    """Header lines, empty for none. The first are those that admit."""
    now = time.time()
    good = [
        player(name, max_streams=2), player(name, device="tv", max_streams=1), player(name, profiles=["kids"]), player(name, kind="live"),
        player(name, plan="oldest"), player(name, plan="by_stream"),
    ]  # fmt: skip
    past = player(name, ttl_s=60, now=now - 120)
    gone = player(name, ttl_s=60, now=now - 100_000)
    return [
        *(f"Authorization: Bearer {token}" for token in good), f"authorization:Bearer {good[0]}", f"Authorization: bearer {good[0]}",
        f"Authorization: Bearer  {good[0]}", f"Authorization: Bearer {past}", f"Authorization: Bearer {gone}",
        f"Authorization: Bearer {good[0][:-3]}abc", f"Authorization: Bearer {service('signals', 'admin')}", "Authorization: Basic YTpi",
        "Authorization: Bearer", "Authorization: Bearer ey", "Authorization: ", "", f"Authorization: Bearer {good[0]}, Bearer {good[1]}",
        f"Authorization: Bearer ey\xff{good[0]}",
    ]  # fmt: skip


def _body(rng: random.Random, seq: int) -> bytes:
    fields: dict[str, Any] = {
        "session": rng.choice(("a", "b", "c", "a", "b", "a" * 128)), "device": rng.choice(("tv", "phone", "tablet")),
        "content": rng.choice(("film", "film", "news", "fülm")), "kind": rng.choice(("vod", "vod", "live")), "seq": seq,
        "state": rng.choice(("playing",) * 4 + ("paused", "ended", "starting", "error")), "position": seq + 0.5,
    }  # fmt: skip
    odd = rng.random()
    if odd < 0.15:
        fields["profile"] = rng.choice(("kids", "adults"))
    elif odd < 0.2:
        fields["seq"] = max(0, seq - rng.randrange(4))
    elif odd < 0.25:
        fields |= {
            "duration": 100,
            "credits": 90,
            "rate": 2,
            "title": "t",
            "quality": {"a": [1, 1.5, None]},
            "mine": {"x": [[]]},
        }
    elif odd < 0.35:
        fields["events"] = rng.choice((
            [], [{"type": "seek", "from": 1, "to": 2}], [{"type": "seek", "from": "x"}], [{"type": "view_end"}], [{}], [1], {},
            [{"type": "custom"}] * 101, [{"type": "custom", "id": str(seq)}, {"type": "ad_start", "index": -1}],
        ))  # fmt: skip
    elif odd < 0.5:
        name, value = rng.choice((
            ("session", ""), ("session", "x" * 129), ("session", 1), ("session", "a\nb"), ("device", "\x7f"), ("kind", "radio"), ("position", None),
            ("position", -1), ("seq", -1), ("seq", "0"), ("state", "dancing"), ("rate", 99), ("title", "x" * 513), ("content", "\u202e"),
            ("device", ""), ("provider", "p"), ("device_type", "tv"), ("duration", 0), ("deep", [[[[]]] * 20]),
        ))  # fmt: skip
        fields[name] = value
    elif odd < 0.55:
        del fields[rng.choice(sorted(fields))]
    text = json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode()
    if rng.random() < 0.9:
        return text
    return rng.choice((
        b"", b" ", b"{", b"[]", b"null", text[:-1], text + b" ", text + b"x", b"\xef\xbb\xbf" + text, text.replace(b"film", b"\xff"),
        text[:-1] + b', "x": 1e999}', text[:-1] + b', "x": ' + b"[" * 33 + b"]" * 33 + b"}", text + b" " * (BODY_MAX - len(text)),
        text + b" " * (BODY_MAX - len(text) + 1), text[:-1] + b', "a": "\\ud800"}',
    ))  # fmt: skip


def _lines(rng: random.Random, authorizations: list[str]) -> list[str]:
    admitted = rng.random() < 0.8
    lines = [rng.choice(authorizations[:8] if admitted else authorizations[6:])]
    lines.append(
        rng.choice(("", "", f"Origin: {ORIGIN}", "Origin: https://elsewhere.example", "Origin: null", "Origin:"))
    )
    lines.append(rng.choice((
        "", "", "X-Request-Id: abc", "X-Request-Id: a b", "X-Request-Id: \xe9", "X-Request-Id: " + "x" * 128, "X-Request-Id: " + "x" * 129,
        "X-Request-Id:", "X-Request-Id: one\r\nx-request-id: two", "X-Request-Id:\r\nX-Request-Id: two",
    )))  # fmt: skip
    lines.append(rng.choice(("", "Content-Type: application/json", "Content-Type: text/plain", "Content-Type: x")))
    lines.append(
        rng.choice(("", "Connection: keep-alive", "Connection: x", "Accept: text/html", "Cookie: a=1\r\nCookie: b=2"))
    )
    lines.append(
        rng.choice(
            ("", "User-Agent: me", "X-Forwarded-For: 1.2.3.4", "Content-Encoding: gzip", "Accept-Encoding: gzip")
        )
    )
    if rng.random() < 0.03:
        lines.append(rng.choice(("Origin: a\r\nOrigin: b", lines[0], "Content-Type: a\r\nContent-Type: a")))
    rng.shuffle(lines)
    return [line for line in lines if line]


def _as_seen(answer: Answer) -> tuple[int, dict[str, str], Any]:
    """An answer without what is new in each."""
    headers = dict(answer.headers)
    if re.fullmatch("[0-9a-f]+-[0-9a-f]+", headers.get("x-request-id", "")):
        headers["x-request-id"] = "new"
    assert int(headers.pop("content-length")) == len(answer.body)
    return answer.status, headers, _timeless(json.loads(answer.body))


def _timeless(said: Any) -> Any:
    if isinstance(said, dict):
        return {name: _timeless(value) for name, value in said.items()}
    if isinstance(said, list):
        return [_timeless(value) for value in said]
    return "a time" if isinstance(said, int) and said > 1e11 else said


def _counters(api: ApiProcess) -> dict[str, float]:
    """Whatever counts; but not times, nor what is counted of Redis' own calls."""
    return {
        name: float(value)
        for name, value in re.findall(r"^(pulsegate_\S+(?:_total|_count)(?:\{[^}]*\})?) (\S+)$", api.get("/metrics").text, re.MULTILINE)
        if "/metrics" not in name and "redis_seconds" not in name
    }  # fmt: skip


def _since(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in now.items() if value != before.get(name, 0)}


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    directory = tmp_path_factory.mktemp("api")
    with ApiProcess(single.url, directory, prefix=PREFIX, cors_origins=ORIGIN, log_level="error") as process:
        yield process


def _ms() -> int:
    return time.time_ns() // 1_000_000


class Talk:
    """Requests one after another, on connections that are used until they are closed."""

    def __init__(self, api: ApiProcess) -> None:
        self._api = api
        self._wire = Wire(api)

    def ask(self, text: bytes) -> tuple[int, dict[str, str], Any]:
        # Each in a millisecond of its own: who came first must not depend on how quickly one is answered.
        now = _ms()
        while _ms() == now:
            pass
        answer = self._wire.send(text).answer()
        if answer.headers.get("connection") == "close":
            assert self._wire.closed()
            self._wire.close()
            self._wire = Wire(self._api)
        return _as_seen(answer)

    def close(self) -> None:
        self._wire.close()


@pytest.mark.parametrize("seed", range(8))
def test_one_contract(api: ApiProcess, seed: int) -> None:
    told: list[list[tuple[list[str], bytes, tuple[int, dict[str, str], Any]]]] = []
    counted = []
    for by_route in (False, True):
        rng, framings = random.Random(seed), random.Random(seed)
        authorizations = _authorizations(account("contract"))
        talk, before, answers = Talk(api), _counters(api), []
        # Verified by the route, known from then on.
        for line in authorizations[:6]:
            talk.ask(plain([line], b"{}"))
        for number in range(REQUESTS):
            lines, body = _lines(rng, authorizations), _body(rng, number)
            framing = framings.choice(BY_ROUTE) if by_route else plain
            answers.append((lines, body, talk.ask(framing(lines, body))))
        talk.close()
        told.append(answers)
        counted.append(_since(before, _counters(api)))
    for (lines, body, quick), (_, _, slow) in zip(*told, strict=True):
        if len(body) > SEGMENT:
            for _, headers, _ in (quick, slow):
                headers.pop("connection", None)
        assert quick == slow, (lines, body)
    assert counted[0] == counted[1]
    assert {quick[0] for _, _, quick in told[0]} >= {200, 400, 401}
    assert {quick[2]["decision"] for _, _, quick in told[0] if quick[0] == 200} == {"allow", "block"}


def test_over_what_may_be_under_way(tmp_path: Path) -> None:
    # A server of its own, because it is made to wait.
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    bounds = {"account_inflight_max": 1, "redis_timeout_ms": 5000, "redis_silent_ms": 9000}
    try:
        with ApiProcess(server.url, tmp_path, prefix=PREFIX, **bounds) as api, ExitStack() as stack:
            first, second = (stack.enter_context(Wire(api)) for _ in range(2))
            client = stack.enter_context(Redis.from_url(server.url))
            line = f"Authorization: Bearer {player(account('busy'))}"
            assert first.send(plain([line], beat())).answer().status == 200
            client.client_pause(4_000)
            first.send(plain([line], beat()))
            seen = [_as_seen(second.send(framing([line], beat())).answer()) for framing in (plain, *BY_ROUTE)]
            client.client_unpause()
            status, headers, said = seen[0]
            assert (status, headers["retry-after"], said["error"]["code"]) == (429, "1", "account_busy")
            assert headers["x-request-id"] == "new"
            assert all(each == seen[0] for each in seen)
            assert first.answer().status == 200
    finally:
        server.stop()


@pytest.mark.parametrize("framing", [plain, *BY_ROUTE])
def test_what_redis_cannot_run(api: ApiProcess, single: Server, framing: Framing) -> None:
    name = account("broken")
    line = f"Authorization: Bearer {player(name)}"
    with Wire(api) as wire, Redis.from_url(single.url) as client:
        assert wire.send(plain([line], beat())).answer().status == 200
        client.delete(Keys(PREFIX, PARTITIONS).account(name).leases)
        client.set(Keys(PREFIX, PARTITIONS).account(name).leases, "not what it should be")
        before = _counters(api)
        status, headers, said = _as_seen(wire.send(framing([line, "X-Request-Id: mine"], beat())).answer())
        assert (status, said["error"]["code"], headers["x-request-id"]) == (500, "internal", "mine")
        assert _since(before, _counters(api))['pulsegate_requests_total{route="/v1/heartbeats",status="500"}'] == 1


def test_redis_away(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    try:
        with ApiProcess(server.url, tmp_path, prefix=PREFIX) as api, Wire(api) as wire:
            line = f"Authorization: Bearer {player(account('away'))}"
            assert wire.send(plain([line], beat())).answer().status == 200
            server.stop()
            wire.send(plain([line], beat())).answer()
            seen, counted = [], []
            for framing in (plain, *BY_ROUTE):
                before = _counters(api)
                seen.append(_as_seen(wire.send(framing([line], beat(seq=1))).answer()))
                counted.append(
                    {
                        name: n
                        for name, n in _since(before, _counters(api)).items()
                        if "decisions" in name or "requests" in name
                    }
                )
            assert seen[0][2]["degraded"]
            assert all(each == seen[0] for each in seen)
            assert all(each == counted[0] for each in counted)
    finally:
        server.stop()
