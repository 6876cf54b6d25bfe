"""The front door: whatever is sent to it hurts nobody but its sender."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis

from engine.embedded import Server
from engine.errors import BadRequest
from engine.keys import Keys
from engine.settings import Settings
from engine.tracking import EventBatch
from engine.wire import CONTAINERS_MAX, decode
from tests.harness import PARTITIONS
from tests.hostile.wires import HEALTH, Wire, account, beat, heartbeat, request
from tests.servers import ApiProcess, player, service, wait_for

PREFIX = "door"
HEAD_MAX = Settings().head_max_bytes
FIELDS_MAX = Settings().fields_max
GARBAGE = b"\0\r\n\r\n"


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix=PREFIX) as process:
        yield process


@pytest.fixture
def wire(api: ApiProcess) -> Iterator[Wire]:
    with Wire(api) as connection:
        yield connection


@pytest.fixture
def token(api: ApiProcess) -> str:
    """A player's token that was verified before, so that its heartbeats are exchanges."""
    name = player(account("viewer"))
    with Wire(api) as first:
        assert first.send(heartbeat(name)).answer().status == 200
    return name


class TestOnePacket:
    def test_nobody_else_is_let_in(self, api: ApiProcess, single: Server) -> None:
        """A heartbeat, a request that waits for it, and garbage, in one write: the answer was written to a transport that was closed,
        and what everybody else waited for was given up."""
        attacker, victim = player(account("attacker"), max_streams=1), player(account("bystander"), max_streams=1)
        with Wire(api) as one, Redis.from_url(single.url) as client:
            one.send(heartbeat(attacker)).answer()
            one.send(heartbeat(victim, session="first", device="first")).answer()
            for number in range(60):
                client.client_pause(20)  # the heartbeats are under way while the garbage is read
                with Wire(api) as packet:
                    packet.send(heartbeat(attacker), HEALTH, GARBAGE)
                    said = one.send(heartbeat(victim, session="second", device="second")).answer().said
                assert (said["decision"], said["degraded"]) == ("block", False), f"after {number} packets"

    @pytest.mark.parametrize("bad", [GARBAGE, request("GET", "/healthz", host=""), b"GET / HTTP/3.7\r\n\r\n"])
    def test_what_came_before_is_answered_first(self, wire: Wire, token: str, bad: bytes) -> None:
        wire.send(heartbeat(token), HEALTH, heartbeat(token), bad)
        assert [wire.answer().status for _ in range(3)] == [200, 200, 200]
        answer = wire.answer()
        assert (answer.status, answer.code, answer.headers["connection"]) == (400, "bad_http", "close")
        assert wire.closed()

    def test_a_body_that_breaks_off_is_answered_once(self, wire: Wire, token: str) -> None:
        wire.send(heartbeat(token))
        wire.send(request("POST", "/v1/heartbeats", token, None, "Transfer-Encoding: chunked"), b"zz\r\n")
        assert [wire.answer().status for _ in range(2)] == [200, 400]
        assert wire.closed()


class TestTokenFirst:
    NOBODYS = b"[" + b"[]," * 20_000 + b"[]]"
    ROUTES = (
        ("POST", "/v1/heartbeats"), ("POST", "/v1/events"), ("POST", "/v1/cmcd"), ("POST", "/v1/signals"), ("POST", "/v1/contents"),
        ("POST", "/v1/sessions/s/stop"), ("DELETE", "/v1/sessions/s"), ("POST", "/v1/sessions/s/takeover"),
        ("PUT", "/v1/resume/film"), ("POST", "/v1/tokens/revoke"),
    )  # fmt: skip

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    def test_a_body_of_nobodys_is_not_read(self, wire: Wire, method: str, path: str) -> None:
        answer = wire.send(request(method, path, "", self.NOBODYS)).answer()
        assert (answer.status, answer.code) == (401, "token_missing")

    @pytest.mark.parametrize(("method", "path"), ROUTES)
    def test_a_bad_token_is_answered_before_the_body_comes(self, wire: Wire, method: str, path: str) -> None:
        head = request(method, path, "eyJ.bad.token", b"x" * 60_000)[:-60_000]
        assert wire.send(head).answer().status == 401

    def test_a_bad_token_in_the_query_is_too(self, wire: Wire) -> None:
        for path in ("/v1/events", "/v1/sessions/s/stop"):
            head = request("POST", f"{path}?token=eyJ.bad.token", "", b"x" * 60_000)[:-60_000]
            with_body = wire.send(head)
            assert with_body.answer().status == 401
            wire.send(b"x" * 60_000)

    def test_a_body_may_carry_its_token_if_it_is_small(self, wire: Wire) -> None:
        sent = {"session": "s", "events": [{"type": "custom"}], "token": player(account("beacon"))}
        assert wire.send(request("POST", "/v1/events", "", json.dumps(sent).encode())).answer().status == 202
        sent["more"] = "x" * 65_536
        assert wire.send(request("POST", "/v1/events", "", json.dumps(sent).encode())).answer().code == "token_missing"

    def test_a_large_body_is_not_waited_for(self, api: ApiProcess) -> None:
        """Nobody reads it: it is thrown away for a while, and then the connection is gone."""
        with Wire(api) as wire:
            wire.send(request("POST", "/v1/events", "eyJ.bad.token", None, "Transfer-Encoding: chunked"))
            answer = wire.answer()
            assert (answer.status, answer.headers["connection"]) == (401, "close")
            chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
            assert not all(wire.try_send(chunk) for _ in range(400))

    @pytest.mark.parametrize("path", ["/v1/heartbeats", "/v1/events"])
    def test_who_did_not_wait_for_100_is_not_misread(self, wire: Wire, path: str) -> None:
        """The body of a refused request may come or not, so nothing on this connection can be told apart any more."""
        wire.send(request("POST", path, "eyJ.bad.token", b"x" * len(HEALTH), "Expect: 100-continue")[: -len(HEALTH)])
        answer = wire.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        wire.try_send(HEALTH)
        assert wire.closed()


def _steps(call: Any) -> int:
    """Lines of Python that a call runs."""
    count = 0

    def trace(frame: Any, event: str, arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except BadRequest:
        pass
    finally:
        sys.settrace(before)
    return count


class TestParsing:
    SIZE = 2**18
    HOSTILE = (
        b"[],", b'"",', b'"[",', b'"\\"[",', b"[", b"]", b'"', b"\\", b'\\"', b"{}", b'"\\\\",', b"[" * 31 + b"]" * 31 + b",", b'{"a":[',
    )  # fmt: skip

    @pytest.mark.parametrize("piece", HOSTILE)
    def test_no_body_is_walked_through_in_python(self, piece: bytes) -> None:
        decoder = msgspec.json.Decoder(EventBatch)
        for body in (
            piece * (self.SIZE // len(piece)),
            b'{"session":"s","events":[' + piece * (self.SIZE // len(piece)) + b"[]]}",
        ):
            assert _steps(lambda body=body: decode(decoder, body, whole=False)) < 200

    def test_containers_are_bounded(self) -> None:
        decoder = msgspec.json.Decoder()
        decode(decoder, b"[" + b"{}," * (CONTAINERS_MAX - 2) + b"{}]")
        with pytest.raises(BadRequest) as refused:
            decode(decoder, b"[" + b"{}," * (CONTAINERS_MAX - 1) + b"{}]")
        assert refused.value.code == "too_deep"

    def test_a_large_batch_is_answered_like_small_ones(self, api: ApiProcess) -> None:
        """It is taken in pieces: each event keeps its place."""
        events = [{"type": "custom" if number % 7 else "view_end", "pad": "x" * 1_500} for number in range(500)]
        said = api.post("/v1/events", token=player(account("large")), json={"session": "s", "events": events}).json()
        assert said["accepted"] == sum(event["type"] == "custom" for event in events)
        assert [bad["index"] for bad in said["rejected"]] == list(range(0, 500, 7))
        assert said["rejected"][1]["error"]["field"] == "events[7].type"

    @pytest.mark.parametrize(
        ("body", "deep"),
        [
            (b"[" * 32 + b"]" * 32, False), (b"[" * 33 + b"]" * 33, True), (b"[" * 33, True), (b'{"a":' * 33 + b"1" + b"}" * 33, True),
            (b'["' + b"[" * 99 + b'"]', False), (b'["\\"' + b"[" * 99 + b'"]', False), (b'["\\\\"' + b",[" * 33 + b"]" * 34, True),
            (b'["\\\\\\"' + b"[" * 99 + b'"]', False), (b'["","",""' + b",[" * 32 + b"]" * 33, True), (b"[" + b"[]," * 99 + b"[]]", False),
            (b'["a"' + b',["b"' * 31 + b"]" * 32, False), (b'["a"' + b',["b"' * 32 + b"]" * 33, True), (b'["' + b"[" * 99, False),
        ],
    )  # fmt: skip
    def test_the_depth_is_that_outside_of_strings(self, body: bytes, deep: bool) -> None:
        try:
            decode(msgspec.json.Decoder(), body)
            code = ""
        except BadRequest as error:
            code = error.code
        assert (code == "too_deep") == deep


class TestHeads:
    def large(self, size: int) -> bytes:
        lines = b"".join(b"X-%d: %b\r\n" % (n, b"x" * 4_000) for n in range(size // 4_010))
        return b"GET /healthz HTTP/1.1\r\nHost: h\r\n" + lines

    def test_bounded_in_bytes(self, wire: Wire) -> None:
        wire.send(self.large(HEAD_MAX - 8_000), b"\r\n")
        assert wire.answer().status == 200
        wire.send(self.large(HEAD_MAX + 8_000), b"\r\n")
        answer = wire.answer()
        assert (answer.status, answer.code) == (431, "head_too_large")
        assert wire.closed()

    def test_bounded_in_fields(self, wire: Wire) -> None:
        fields = [f"X-{n}: 1" for n in range(FIELDS_MAX)]
        assert wire.send(request("GET", "/healthz", "", None, *fields[1:])).answer().status == 200
        assert wire.send(request("GET", "/healthz", "", None, *fields)).answer().status == 431
        assert wire.closed()

    @pytest.mark.parametrize(
        "start",
        [
            b"GET /healthz HTTP/1.1\r\nHost: h\r\nX: ", b"GET /", b"GET /healthz HTTP/1.1\r\nHost: h\r\nX", b"\r\n",
            b"POST /v1/heartbeats HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX: ",
        ],
    )  # fmt: skip
    def test_one_without_end_is_cut_off(self, wire: Wire, start: bytes) -> None:
        """A header, a URL, a name, line breaks, a trailer: gathered for nobody, and for as long as it pleased its sender."""
        wire.send(start)
        more = (b"\r\n" if start == b"\r\n" else b"x") * 16_384
        assert not all(wire.try_send(more[:16_384]) for _ in range(2_000))

    def test_trailers_are_no_headers(self, api: ApiProcess, wire: Wire) -> None:
        name, other = account("mine"), player(account("other"))
        token = player(name)
        chunked = b"%x\r\n%b\r\n0\r\n"
        for path, body in (("/v1/heartbeats", beat()), ("/v1/events", b'{"session":"s","events":[]}')):
            sent = chunked % (len(body), body) + f"Authorization: Bearer {other}\r\n\r\n".encode()
            assert wire.send(request("POST", path, "", None, "Transfer-Encoding: chunked"), sent).answer().status == 401
            # And what comes next is understood.
            assert wire.send(HEALTH).answer().status == 200
        body = beat(session="mine")
        sent = chunked % (len(body), body) + f"Authorization: Bearer {other}\r\n\r\n".encode()
        assert (
            wire.send(request("POST", "/v1/heartbeats", token, None, "Transfer-Encoding: chunked"), sent)
            .answer()
            .status
            == 200
        )
        assert "mine" in {session["session"] for session in api.sessions(name)}

    @pytest.mark.parametrize(
        ("lines", "status"),
        [
            (("Authorization: Bearer a", "Authorization: Bearer b"), 400), (("Host: a",), 400), (("Content-Length: 0", "Content-Length: 0"), 400),
            (("X-Original-URI: /vod/a", "X-Original-URI: /vod/b"), 400), (("X-Forwarded-Uri: /vod/a", "X-Forwarded-Uri: /vod/a"), 400),
            (("Content-Type: a/b", "content-type: a/b"), 400), (("Origin: a", "Origin: b"), 400),
            (("Content-Length: 3", "Transfer-Encoding: chunked"), 400), (("Transfer-Encoding: gzip, chunked",), 400),
            (("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 400), (("Content-Length: +1",), 400), (("X: a", " b"), 400),
            (("X : a",), 400), (("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 1"), 400),
            (("Cookie: a=1", "Cookie: b=2"), 200), (("X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 2.2.2.2"), 200), (("Expect: tea",), 200),
            (("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), 200),
        ],
    )  # fmt: skip
    def test_what_may_come_how_often(self, wire: Wire, lines: tuple[str, ...], status: int) -> None:
        wire.send(request("GET", "/healthz", "", None, *lines))
        assert wire.answer().status == status
        if status == 200:
            assert wire.send(HEALTH).answer().status == 200
        else:
            assert wire.closed()

    def test_two_authorizations_are_refused_on_the_hot_path(self, api: ApiProcess, token: str) -> None:
        other = f"Authorization: Bearer {player(account('other'))}"
        for line in (other, other.lower()):
            with Wire(api) as wire:
                wire.send(heartbeat(token), heartbeat(token, line))
                assert [wire.answer().status for _ in range(2)] == [200, 400]

    def test_versions(self, api: ApiProcess) -> None:
        for version, host, status in (
            ("1.1", "", 400),
            ("1.0", "", 200),
            ("1.0", "Host: h", 200),
            ("2.0", "Host: h", 505),
            ("0.9", "", 505),
        ):
            with Wire(api) as wire:
                assert wire.send(request("GET", "/healthz", version=version, host=host)).answer().status == status
                assert status == 400 or wire.closed()

    def test_absolute_and_other_forms(self, wire: Wire) -> None:
        for target, status in (
            ("http://elsewhere/healthz?a=b", 200),
            ("http://elsewhere", 404),
            ("//healthz", 404),
            ("/healthz#x", 200),
        ):
            assert wire.send(request("GET", target)).answer().status == status
        assert wire.send(request("CONNECT", "h:443"), HEALTH).answer().status == 400
        assert wire.closed()

    def test_the_edge_is_not_told_two_stories(self, api: ApiProcess, token: str) -> None:
        """A viewer adds the header of the pair that his edge does not set."""
        asked = {"X-Forwarded-Uri": "/vod/film/1.ts", "X-Forwarded-Method": "GET"}
        said = api.get("/v1/edge/authorize", token=token, headers=asked | {"X-Original-URI": "/vod/free/1.ts"})
        assert (said.status_code, said.headers["x-pulsegate-reason"]) == (403, "ambiguous")
        said = api.get("/v1/edge/authorize", headers=asked | {"X-Original-Method": "OPTIONS"})
        assert said.status_code == 403
        del asked["X-Forwarded-Method"]
        assert api.get("/v1/edge/authorize", headers=asked | {"X-Original-Method": "OPTIONS"}).status_code == 401


class TestHalfClosed:
    def test_is_answered(self, api: ApiProcess, token: str, single: Server) -> None:
        events = request("POST", "/v1/events", token, b'{"session":"s","events":[]}')
        for sent, statuses in (
            (heartbeat(token), [200]), (HEALTH, [200]), (events, [202]), (heartbeat(token) + HEALTH + heartbeat(token) + events, [200, 200, 200, 202]),
            (HEALTH * 2_000, [200] * 2_000),
        ):  # fmt: skip
            with Wire(api) as wire, Redis.from_url(single.url) as client:
                client.client_pause(50)
                wire.send(sent).finish()
                assert [wire.answer().status for _ in statuses] == statuses
                assert wire.closed()

    @pytest.mark.parametrize("cut", [1, 30, 90])
    def test_half_a_request_is_none(self, api: ApiProcess, token: str, cut: int) -> None:
        for sent in (heartbeat(token), request("POST", "/v1/sessions/s/stop", token, b'{"seq": 1}' + b" " * 100)):
            with Wire(api) as wire:
                wire.send(heartbeat(token), sent[:-cut]).finish()
                assert wire.answer().status == 200
                assert wire.closed()

    def test_half_a_stop_stops_nothing(self, api: ApiProcess) -> None:
        name = account("cut")
        token = player(name)
        api.beat(token, "s", "d")
        with Wire(api) as wire:
            wire.send(request("POST", "/v1/sessions/s/stop", token, b" " * 50)[:-50]).finish()
            assert wire.closed()
        assert [session["session"] for session in api.sessions(name)] == ["s"]


def test_thousands_in_one_write_are_answered_in_order(wire: Wire, token: str) -> None:
    names = [f"r{number}" for number in range(3_000)]
    wire.send(
        *(request("GET", "/v1/check?content=film&kind=vod", token, None, f"X-Request-Id: {name}") for name in names)
    )
    assert [wire.answer().headers["x-request-id"] for _ in names] == names


def test_what_lua_says_is_for_the_log(api: ApiProcess, single: Server) -> None:
    name = account("broken")
    key = Keys(PREFIX, PARTITIONS).account(name).leases
    with Redis.from_url(single.url) as client:
        client.set(key, "not a sorted set")
    for answer in (
        api.post("/v1/heartbeats", token=player(name), content=beat()), api.get(f"/v1/accounts/{name}/sessions", token=service("read")),
    ):  # fmt: skip
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert "WRONGTYPE" not in answer.text
        assert "lua" not in answer.text
    assert "WRONGTYPE" in api.said()


@pytest.fixture(scope="module")
def hasty(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    waits = {"head_s": 1, "body_s": 1, "idle_s": 1.5}
    with ApiProcess(single.url, tmp_path_factory.mktemp("hasty"), prefix=PREFIX, **waits) as process:
        yield process


class TestWaits:
    def test_who_says_nothing_is_let_go(self, hasty: ApiProcess) -> None:
        with Wire(hasty) as silent, Wire(hasty) as idle:
            assert idle.send(HEALTH).answer().status == 200
            assert silent.closed()
            assert idle.closed()

    @pytest.mark.parametrize(
        "half",
        [
            b"GET /healthz HTTP/1.1\r\nHost: h\r\n",
            request("POST", "/v1/tokens/revoke", service("admin"), b"x" * 50)[:-20],
        ],
    )
    def test_who_is_slow_is_told(self, hasty: ApiProcess, half: bytes) -> None:
        with Wire(hasty) as wire:
            answer = wire.send(half).answer()
            assert (answer.status, answer.code) == (408, "too_slow")
            assert wire.closed()

    def test_a_slow_heartbeat_too(self, hasty: ApiProcess) -> None:
        token = player(account("slow"))
        with Wire(hasty) as wire:
            assert wire.send(heartbeat(token)).answer().status == 200
            assert wire.send(heartbeat(token)[:-9]).answer().status == 408
            assert wire.closed()

    def test_one_byte_now_and_then_does_not_help(self, hasty: ApiProcess) -> None:
        with Wire(hasty) as wire:
            text = iter(request("GET", "/healthz", "", None, "X: " + "x" * 4_000))
            wait_for(lambda: not wire.try_send(bytes([next(text)])), "it is cut off")

    def test_a_stream_is_not_idle(self, hasty: ApiProcess) -> None:
        token = player(account("reader"))
        with Wire(hasty) as stream, Wire(hasty) as idle:
            assert stream.send(request("GET", "/v1/trending/stream?kind=live", token)).answer().status == 200
            idle.send(HEALTH).answer()
            assert idle.closed()
            with Wire(hasty) as another:
                assert another.closed()
            stream.socket.setblocking(False)
            try:
                while stream.socket.recv(4096):
                    pass
                raise AssertionError("the stream was closed")
            except BlockingIOError:
                pass


class TestFull:
    MOST = 12

    @pytest.fixture
    def small(self, single: Server, tmp_path: Path) -> Iterator[ApiProcess]:
        process = ApiProcess(single.url, tmp_path, prefix=PREFIX, connections_max=self.MOST, streams_each_max=self.MOST)
        with process:
            yield process

    def test_the_silent_give_way(self, small: ApiProcess) -> None:
        """Ten times as many connections that say nothing, or half a head, or half a body: whoever has something to say is heard."""
        token = player(account("viewer"))
        kinds = (b"", b"GET /healthz HTTP/1.1\r\n", request("POST", "/v1/heartbeats", "", b"x" * 50)[:-40])
        held = [Wire(small).send(kinds[number % 3]) for number in range(10 * self.MOST)]

        def heard() -> bool:
            try:
                with Wire(small) as wire:
                    return wire.send(heartbeat(token)).answer().status == 200
            except (OSError, AssertionError):
                return False

        wait_for(heard, "a viewer is heard")
        for wire in held:
            wire.close()

    def test_when_all_are_at_work_the_rest_is_told(self, small: ApiProcess) -> None:
        token = player(account("reader"))
        streams: list[Wire] = []

        def taken() -> bool:
            wire = Wire(small).send(request("GET", "/v1/trending/stream?kind=live", token))
            if wire.answer().status == 200:
                streams.append(wire)
            else:
                wire.close()
            return len(streams) == self.MOST

        wait_for(taken, "all are taken")
        with Wire(small) as wire:
            answer = wire.send(heartbeat(token)).answer()
            assert (answer.status, answer.code) == (503, "connections_full")
            assert int(answer.headers["retry-after"]) > 0
            assert wire.closed()
        for path in ("/healthz", "/readyz"):
            with Wire(small) as wire:
                assert wire.send(request("GET", path)).answer().status == 200
                assert wire.closed()
        streams.pop().close()

        def served() -> bool:
            with Wire(small) as wire:
                return wire.send(heartbeat(token)).answer().status == 200

        wait_for(served, "there is room again")
        for wire in streams:
            wire.close()


def test_descriptors_are_raised_at_the_start(single: Server, tmp_path: Path) -> None:
    process = ApiProcess(single.url, tmp_path, prefix=PREFIX)
    process.command = ["sh", "-c", 'ulimit -S -n 200; exec "$@"', "sh", *process.command]
    with process:
        held = [Wire(process).send(HEALTH) for _ in range(400)]
        assert all(wire.answer().status == 200 for wire in held)
        for wire in held:
            wire.close()
