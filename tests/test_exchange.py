"""Heartbeats answered by the protocol itself: the same answers as through ASGI, whatever HTTP does around them."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from engine.embedded import VOLATILE, Server
from engine.settings import Settings
from tests.servers import ApiProcess, player, wait_for

PREFIX = "exchange"
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    origins = "https://player.example"
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix=PREFIX, cors_origins=origins) as process:
        yield process


class Wire:
    """One connection, seen as bytes."""

    def __init__(self, api: ApiProcess) -> None:
        self._socket = socket.create_connection(("127.0.0.1", api.port), timeout=10)
        self._file = self._socket.makefile("rb")
        account = f"wire-{next(_numbers)}"
        self.token = player(account)
        self._seq = itertools.count()
        # The token's first heartbeat is verified by the route; those that follow are exchanges.
        self.send(self.beat())
        assert self.answer()[0] == 200

    def beat(self, *, version: str = "1.1", headers: str = "", **fields: Any) -> bytes:
        body = json.dumps({
            "session": "s", "device": "d", "content": "film", "kind": "vod", "state": "playing", "seq": next(self._seq),
            "position": 1.5,
        } | fields)  # fmt: skip
        return self.request(body, version=version, headers=headers)

    def request(self, body: str, *, version: str = "1.1", headers: str = "", token: str = "") -> bytes:
        return (
            f"POST /v1/heartbeats HTTP/{version}\r\nHost: h\r\nAuthorization: Bearer {token or self.token}\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Status, headers, body."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers: dict[str, str] = {}
        while (text := self._file.readline().decode().strip()) != "":
            name, _, value = text.partition(": ")
            assert name not in headers, f"{name} twice"
            headers[name] = value
        body = self._file.read(int(headers["content-length"]))
        assert int(headers["content-length"]) == len(body)
        return int(line.split()[1]), headers, json.loads(body)

    def closed(self) -> bool:
        return self._file.read(1) == b""

    def leave(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def wire(api: ApiProcess) -> Iterator[Wire]:
    connection = Wire(api)
    yield connection
    connection.leave()


def test_the_answer_is_the_routes(wire: Wire) -> None:
    """`Expect`, chunks and HTTP/1.0 go through ASGI: what they are answered differs in nothing but time."""
    wire.send(wire.beat())
    status, headers, quick = wire.answer()
    chunked = wire.beat().replace(b"Content-Length: ", b"Transfer-Encoding: chunked\r\nX-Was: ")
    head, _, body = chunked.partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n" + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    by_route = wire.answer()
    assert (status, headers.keys()) == (by_route[0], by_route[1].keys())
    for answer in (quick, by_route[2]):
        assert answer["decision"] == "allow"
        assert answer.pop("last_seq")
        assert answer.pop("lease_expires_at")
    assert quick == by_route[2]


def test_pipelined_requests_are_answered_in_order(wire: Wire) -> None:
    wire.send(wire.beat() + wire.beat() + b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" + wire.beat())
    first, second, health, last = (wire.answer() for _ in range(4))
    assert [first[2]["last_seq"], second[2]["last_seq"], last[2]["last_seq"]] == [1, 2, 3]
    assert "last_seq" not in health[2]


def test_a_request_in_pieces(wire: Wire) -> None:
    text = wire.beat()
    for place in (5, 40, len(text) - 60, len(text) - 1):
        wire.send(text[:place])
        text = text[place:]
        if not text:
            break
    wire.send(text)
    assert wire.answer()[2]["decision"] == "allow"


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close\r\n"), ("1.0", "")])
def test_who_wants_the_connection_closed_gets_that(wire: Wire, version: str, header: str) -> None:
    wire.send(wire.beat(version=version, headers=header))
    assert wire.answer()[2]["decision"] == "allow"
    assert wire.closed()


def test_expect_continue(wire: Wire) -> None:
    head, _, body = wire.beat(headers="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    wire.send(head + b"\r\n\r\n")
    assert wire._file.readline().startswith(b"HTTP/1.1 100 ")
    assert wire._file.readline() == b"\r\n"
    wire.send(body)
    assert wire.answer()[2]["decision"] == "allow"


def test_cors_and_request_id(wire: Wire) -> None:
    wire.send(wire.beat(headers="Origin: https://player.example\r\nX-Request-Id: abc\r\n"))
    _, headers, _ = wire.answer()
    assert headers["access-control-allow-origin"] == "https://player.example"
    assert headers["x-request-id"] == "abc"
    assert headers["vary"] == "Origin"
    wire.send(wire.beat(headers="Origin: https://elsewhere.example\r\n"))
    _, headers, _ = wire.answer()
    assert "access-control-allow-origin" not in headers
    assert headers["vary"] == "Origin"


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ("{", 400, "body"),
        ('{"session": "s"}', 400, "content"),
        (
            '{"session": "s", "content": "c", "kind": "vod", "state": "playing", "seq": 1, "device": "d"}',
            400,
            "position",
        ),
        ("", 400, "body"),
        ("x" * (Settings().body_max_bytes + 1), 413, "body"),
    ],
)
def test_what_is_wrong_is_said_and_the_connection_goes_on(wire: Wire, body: str, status: int, field: str) -> None:
    wire.send(wire.request(body))
    got, headers, said = wire.answer()
    assert (got, said["error"]["field"]) == (status, field)
    assert headers["x-request-id"]
    wire.send(wire.beat())
    assert wire.answer()[2]["decision"] == "allow"


def test_without_a_token(wire: Wire) -> None:
    wire.send(re.sub(rb"Authorization: [^\r]*\r\n", b"", wire.beat()))
    status, headers, said = wire.answer()
    assert (status, said["error"]["code"], headers["www-authenticate"]) == (401, "token_missing", "Bearer")
    wire.send(wire.beat().replace(wire.token.encode(), b"eyJ.bad.token"))
    assert wire.answer()[0] == 401


def test_events_come_with_it(wire: Wire) -> None:
    wire.send(wire.beat(events=[{"type": "seek", "from": 1, "to": 2}]))
    assert wire.answer()[2]["decision"] == "allow"


def test_a_script_that_redis_forgot_is_loaded_again(wire: Wire, single: Server) -> None:
    with Redis.from_url(single.url) as client:
        client.script_flush()
    wire.send(wire.beat())
    _, _, said = wire.answer()
    assert said["decision"] == "allow"
    assert not said["degraded"]
    assert not said["duplicate"]


def test_who_leaves_before_the_answer_harms_nobody(api: ApiProcess, single: Server) -> None:
    gone, stays = Wire(api), Wire(api)
    with Redis.from_url(single.url) as client:
        for _ in range(20):
            client.client_pause(20)
            gone.send(gone.beat())
            gone.leave()
            stays.send(stays.beat())
            assert stays.answer()[2]["decision"] == "allow"
            gone = Wire(api)
    gone.leave()
    stays.leave()


def test_without_redis_viewers_pass_and_their_heartbeats_are_kept(tmp_path: Path) -> None:
    server = Server(tmp_path / "redis", VOLATILE)
    server.start()
    try:
        with ApiProcess(server.url, tmp_path, prefix=PREFIX, spool_dir=str(tmp_path / "spool")) as api:
            wire = Wire(api)
            server.stop()
            # The first may still be under way when the connection breaks; those after it are refused at once.
            for _ in range(3):
                wire.send(wire.beat())
                _, _, said = wire.answer()
                assert said["decision"] == "allow"
                assert said["degraded"]
            server.start()

            def recovered() -> bool:
                wire.send(wire.beat())
                return not wire.answer()[2]["degraded"]

            wait_for(recovered, "decisions are made again")
            wire.leave()
    finally:
        server.stop()


def test_a_stop_waits_for_answers_under_way(single: Server, tmp_path: Path) -> None:
    with ApiProcess(single.url, tmp_path, prefix=PREFIX, redis_timeout_ms=5000) as api:
        wire = Wire(api)
        with Redis.from_url(single.url) as client:
            client.client_pause(400)
            wire.send(wire.beat())
            answers: list[Any] = []
            reading = threading.Thread(target=lambda: answers.append(wire.answer()))
            reading.start()
            api.send(signal.SIGTERM)
            reading.join(10)
            client.client_unpause()
        assert answers
        assert answers[0][2]["decision"] == "allow"
        assert wire.closed()
        assert api.wait() == 0
        with contextlib.suppress(OSError):
            wire.leave()


def test_counted_like_every_answer(wire: Wire, api: ApiProcess) -> None:
    def count() -> float:
        found = re.search(
            r'^pulsegate_requests_total\{route="/v1/heartbeats",status="200"\} ([0-9.e+]+)$',
            api.get("/metrics").text,
            re.MULTILINE,
        )
        return float(found[1]) if found else 0.0

    before = wait_for(count, "something was counted")
    for _ in range(5):
        wire.send(wire.beat())
        wire.answer()
    wait_for(lambda: count() >= before + 5, "the five are counted")
