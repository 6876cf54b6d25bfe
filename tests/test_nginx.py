"""Real input, no player: ffmpeg makes HLS, real nginx serves it with docs/nginx.conf, two ffmpeg clients pull it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from grp import getgrgid
from pathlib import Path
from pwd import getpwuid

import httpx
import pytest

from engine.embedded import VOLATILE, Server, free_port
from tests.conftest import tool
from tests.servers import ROOT, ApiProcess, Child, player, wait_for

LIFETIME_MS = 4000
"""Of a segment's or manifest's evidence; the stream's segments are one second long."""

# One stream: whoever starts second is refused, or (stop_oldest) evicts the first.
PLANS = """
default = "one"
[plans.one]
[[plans.one.rules]]
name = "streams"
limit = 1
[plans.oldest]
at_limit = "stop_oldest"
[[plans.oldest.rules]]
name = "streams"
limit = 1
"""


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A document root with a minute of film as HLS in segments of one second."""
    root = tmp_path_factory.mktemp("media")
    for kind, content in (("vod", "film"), ("live", "news")):
        (root / kind / content).mkdir(parents=True)
    film = root / "vod" / "film"
    command = [
        tool("ffmpeg"), "-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc=size=128x72:rate=5:duration=60",
        "-c:v", "libx264", "-preset", "ultrafast", "-g", "5", "-threads", "1",
        "-f", "hls", "-hls_time", "1", "-hls_playlist_type", "vod", str(film / "index.m3u8"),
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=60)
    (root / "live" / "news" / "index.mpd").write_text("<MPD/>")
    (root / "vod" / "clip.mp4").write_bytes(b"a file without a directory of its own")
    (root / "outside.txt").write_text("not media")
    return root


@dataclass
class Edge:
    """nginx in front of one API process."""

    api: ApiProcess
    base: str
    directory: Path
    client: httpx.Client

    def get(self, path: str, token: str = "", method: str = "GET", **headers: str) -> httpx.Response:
        if token:
            headers["Authorization"] = f"Bearer {token}"
        return self.client.request(method, self.base + path, headers=headers)

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in self.directory.rglob("*.log"))


def start_nginx(directory: Path, media: Path, pulsegate: str, port: int) -> Child:
    """docs/nginx.conf with other paths and ports, as the current user."""
    text = (ROOT / "docs" / "nginx.conf").read_text()
    me = getpwuid(os.getuid()).pw_name, getgrgid(os.getgid()).gr_name
    scratch = "".join(f"    {kind}_temp_path {directory}/{kind};\n" for kind in TEMPORARY)
    for old, new in (
        ("worker_processes auto;", f"worker_processes 1;\n{'user ' + ' '.join(me) + ';' if os.getuid() == 0 else ''}"),
        ("/run/nginx.pid", str(directory / "nginx.pid")),
        ("/var/log/nginx/", f"{directory}/"),
        ("http {\n", "http {\n" + scratch),
        ("server 127.0.0.1:8080 ", f"server {pulsegate} "),
        ("listen 80 ", f"listen 127.0.0.1:{port} "),
        ("/srv/media", str(media)),
    ):
        assert old in text, f"docs/nginx.conf no longer says {old!r}"
        text = text.replace(old, new)
    (directory / "nginx.conf").write_text(text)
    command = [
        tool("nginx"),
        "-p",
        str(directory),
        "-c",
        str(directory / "nginx.conf"),
        "-e",
        str(directory / "start.log"),
    ]
    return Child([*command, "-g", "daemon off;"], directory / "nginx.log")


TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def redis_url(single: Server) -> str:
    return single.url


@pytest.fixture
def edge(redis_url: str, prefix: str, media: Path, tmp_path: Path) -> Iterator[Edge]:
    lifetimes = {"segment_ms": LIFETIME_MS, "manifest_ms": LIFETIME_MS}
    port = free_port()
    with (
        ApiProcess(redis_url, tmp_path, prefix=prefix, plans=PLANS, **lifetimes) as api,
        start_nginx(tmp_path, media, f"127.0.0.1:{api.port}", port) as nginx,
        httpx.Client(timeout=10, trust_env=False) as client,
    ):
        wait_for(lambda: listening(port) or not nginx.running, "nginx listens")
        assert nginx.running, nginx.said()
        yield Edge(api, f"http://127.0.0.1:{port}", tmp_path, client)


def pull(edge: Edge, token: str, name: str) -> Child:
    """An ffmpeg client at the film's own pace; the token rides in the path, because its segment URIs are relative."""
    address = f"{edge.base}/t/{token}/vod/film/index.m3u8"
    command = [tool("ffmpeg"), "-v", "verbose", "-nostdin", "-re", "-i", address, "-f", "null", "-"]
    return Child(command, edge.directory / f"{name}.out")


def segments(child: Child) -> int:
    """How many segments an ffmpeg client has opened."""
    return len(re.findall(r"Opening '[^']+\.ts' for reading", child.said()))


def test_two_ffmpeg_clients_of_one_account_and_nobody_sends_a_heartbeat(edge: Edge) -> None:
    first, second = (player("ann", device=device, max_streams=1) for device in ("tv", "phone"))
    with pull(edge, first, "first") as one:
        wait_for(lambda: segments(one) >= 2, "the first client plays")
        with pull(edge, second, "second") as two:
            assert two.wait(20) != 0
            assert "403" in two.said()
            assert segments(two) == 0
        refused = edge.get("/vod/film/index.m3u8", second)
        assert refused.status_code == 403
        assert refused.headers["x-pulsegate-reason"] == "limit_reached"
        assert refused.headers["x-pulsegate-rule"] == "streams"
        assert time.time() * 1000 < int(refused.headers["x-pulsegate-retry-at"]) < time.time() * 1000 + LIFETIME_MS
        assert refused.headers["cache-control"] == "no-store"
        # It plays past what a single request would keep alive: its segments do.
        before = segments(one)
        wait_for(lambda: segments(one) >= before + LIFETIME_MS // 1000 + 2, "the first client plays on")
        assert edge.get("/vod/film/index.m3u8", second).status_code == 403
        assert [session["device"] for session in edge.api.sessions("ann")] == ["tv"]
        one.stop()
    stopped = time.monotonic()
    wait_for(lambda: edge.get("/vod/film/index.m3u8", second).status_code == 200, "the slot is free")
    assert time.monotonic() - stopped < LIFETIME_MS / 1000 + 2
    with pull(edge, second, "again") as two:
        wait_for(lambda: segments(two) >= 2, "the second client plays")
        assert [session["device"] for session in edge.api.sessions("ann")] == ["phone"]
        assert edge.get("/vod/film/index.m3u8", first).status_code == 403
    for token in (first, second):
        assert token not in edge.logs()


def test_killed_or_frozen_it_costs_nobody_the_picture(edge: Edge) -> None:
    tv, phone = (player("ann", device=device, max_streams=1) for device in ("tv", "phone"))
    assert edge.get("/vod/film/index.m3u8", tv).status_code == 200
    assert edge.get("/vod/film/index.m3u8", phone).status_code == 403

    edge.api.send(signal.SIGSTOP)
    began = time.monotonic()
    slow = edge.get("/vod/film/index0.ts", phone)
    assert slow.status_code == 200
    assert time.monotonic() - began < 1.0
    edge.api.send(signal.SIGCONT)
    wait_for(lambda: edge.get("/vod/film/index.m3u8", phone).status_code == 403, "it decides again")

    edge.api.kill()
    for _ in range(5):
        began = time.monotonic()
        assert edge.get(f"/t/{phone}/vod/film/index0.ts").status_code == 200
        assert time.monotonic() - began < 1.0
    assert edge.get("/vod/film/index.m3u8").status_code == 200
    assert edge.get("/vod/film/nothing.ts", phone).status_code == 404
    assert edge.get(f"/t/{phone}/vod/film/nothing.ts").status_code == 404
    assert phone not in edge.logs()

    edge.api.start()
    wait_for(lambda: edge.get("/vod/film/index.m3u8").status_code == 401, "it decides again")


class TestRedisAway:
    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[Server]:
        """A server of this test's own, to be killed."""
        server = Server(tmp_path / "redis", VOLATILE)
        server.start()
        yield server
        server.kill()

    @pytest.fixture
    def redis_url(self, server: Server) -> str:
        return server.url

    def test_the_viewer_passes_and_the_edge_is_told(self, edge: Edge, server: Server) -> None:
        tv, phone = (player("ann", device=device, max_streams=1) for device in ("tv", "phone"))
        assert edge.get("/vod/film/index.m3u8", tv).status_code == 200
        assert edge.get("/vod/film/index.m3u8", phone).status_code == 403
        server.kill()
        assert edge.get("/vod/film/index.m3u8", phone).status_code == 200
        asked = edge.api.get("/v1/edge/authorize", token=phone, headers={"X-Original-URI": "/vod/film/index0.ts"})
        assert (asked.status_code, asked.headers["x-pulsegate-degraded"]) == (204, "1")
        assert edge.get("/vod/film/index.m3u8").status_code == 401  # still no way in without a token
        wait_for(lambda: "degraded=1" in edge.logs(), "the access log says so")
        server.start()
        wait_for(lambda: edge.api.get("/readyz").status_code == 200, "Redis is back")
        assert edge.get("/vod/film/index0.ts", tv).status_code == 200
        assert [session["device"] for session in edge.api.sessions("ann")] == ["tv"]
        assert edge.get("/vod/film/index.m3u8", phone).status_code == 403


def test_an_evicted_player_is_cut_at_the_edge(edge: Edge) -> None:
    tv, phone = (player("eve", device=device, plan="oldest") for device in ("tv", "phone"))
    assert edge.api.beat(tv, "s-tv", "tv")["decision"] == "allow"
    assert edge.get("/vod/film/index0.ts", tv).status_code == 200
    assert edge.api.beat(phone, "s-phone", "phone")["decision"] == "allow"
    cut = edge.get("/vod/film/index1.ts", tv)
    assert (cut.status_code, cut.headers["x-pulsegate-reason"]) == (403, "evicted")
    assert cut.headers["x-pulsegate-rule"] == "streams"
    assert edge.get("/vod/film/index1.ts", phone).status_code == 200


def test_browsers_may_ask_first_and_read_why(edge: Edge) -> None:
    preflight = edge.get("/vod/film/index.m3u8", method="OPTIONS", Origin="https://player.example")
    assert preflight.status_code == 204
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    assert preflight.headers["access-control-max-age"] == "7200"
    for token, status in (("", 401), ("x", 401), (player("ann"), 200)):
        answer = edge.get("/vod/film/index.m3u8", token, Origin="https://player.example")
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "X-Pulsegate-Reason" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-methods" not in answer.headers
    assert edge.get("/vod/film/index.m3u8").headers["www-authenticate"] == "Bearer"


def test_what_is_served_and_what_is_not(edge: Edge) -> None:
    token = player("ann", max_streams=1)
    assert edge.get("/live/news/index.mpd", token).headers["content-type"] == "application/dash+xml"
    for path in (
        "/outside.txt",
        "/",
        f"/t/{token}/outside.txt",
        f"/t/{token}/t/{token}/vod/film/index.m3u8",
        "/_pulsegate",
    ):
        assert edge.get(path, token).status_code == 404, path
    assert edge.get("/live/news/index.mpd", token, method="HEAD").status_code == 200
    assert edge.client.get(f"{edge.base}/live/news/index.mpd?token={token}&x=1").status_code == 200
    assert edge.get("/live/news/index.mpd", Cookie=f"a=b; pulsegate={token}").status_code == 200
    assert token not in edge.logs()


def raw(edge: Edge, target: str, *headers: str) -> int:
    """The status of a request whose target is sent as it stands: no client tidies it up."""
    lines = [f"GET {target} HTTP/1.1", "Host: edge", "Connection: close", *headers, "", ""]
    host, port = edge.base.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        return int(connection.makefile("rb").readline().split()[1])


SPELLINGS = (
    "/vod/clip.mp4",
    "//vod/film/index0.ts",
    "//x.example/../vod/film/index0.ts",
    "/x/../vod/film/index0.ts",
    "/%76od/film/index0.ts",
    "/%2e%2e/vod/film/index0.ts",
    "/x%2F..%2Fvod/film/index0.ts",
    "/./vod/./film/index0.ts",
    "/vod//film///index0.ts",
    "/vod/film/index0.ts#?token=x",
    "/vod/film/index0.ts?x=[",
    "//[/../vod/film/index0.ts",
    "/t/x//vod/film/index0.ts",
    "/t//x/vod/film/index0.ts",
    "http://[::1]/vod/film/index0.ts",
)


def test_no_spelling_of_a_request_is_a_way_round_the_limit(edge: Edge) -> None:
    served = 0
    for number, target in enumerate(SPELLINGS):
        tv, phone = (player(f"a{number}", device=device, max_streams=1) for device in ("tv", "phone"))
        mine, other = (f"Authorization: Bearer {token}" for token in (tv, phone))
        assert edge.get("/vod/film/index.m3u8", tv).status_code == 200
        served += raw(edge, target, mine) == 200
        assert raw(edge, target) in (400, 401), target
        for headers in (
            (),
            ("Cookie: a=\x01\xff; {",),
            ("X-Original-URI: /", "X-Original-Method: OPTIONS"),
            ("Transfer-Encoding: gzip, chunked",),
            ("X: " + "x" * 7000, "Y: " + "y" * 7000),
        ):
            assert raw(edge, target, other, *headers) in (400, 403, 501), (target, headers)
    assert served > len(SPELLINGS) // 2
