"""Whatever stands in a question's URL: never an error of ours, and a refusal names what it is about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from engine.embedded import Server
from tests.quality_plain import fill, seeded
from tests.servers import ApiProcess, player, service

ROUTES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "/v1/quality": ({"metrics": "plays,view_duration"}, ("metrics", "by", "where", "from", "to", "interval", "limit")),
    "/v1/quality/worst": ({"metric": "bitrate"}, ("metric", "by", "where", "from", "to", "limit")),
    "/v1/quality/players": ({}, ("from", "to", "limit")),
    "/v1/quality/sessions/s": ({"account": "a"}, ("account", "from", "to")),
    "/v1/behaviour": ({}, ("by", "from", "to", "limit", "content", "profile")),
    "/v1/behaviour/dropoff": ({"content": "x"}, ("content", "from", "to")),
    "/v1/alerts": ({}, ("status",)),
    "/v1/alerts/history": ({}, ("limit", "before")),
    "/v1/trending": ({"kind": "vod"}, ("kind", "rank", "provider", "limit")),
    "/v1/contents/x/audience": ({}, ("kind",)),
}
VALUES: tuple[str | bytes, ...] = (
    "", "NaN", "Infinity", "1e999", "-1", "1.5", "9" * 16, "9" * 400, "٣", "\x00", "%00", "'; DROP VIEW facts; --", "a" * 5_000, "[[[[",
    " ", "\n", "../../etc/passwd", "*", "💥", "$p0", "cdn=\\", "cdn==x", "label.'=1", "label.\x00=1", ";" * 30, ",", "cdn,cdn",
    b"\xff\xfe", b"\xed\xa0\x80", b"label.\xed\xa0\x80=\xed\xa0\x80",
)  # fmt: skip


@pytest.fixture(scope="module")
def api(single: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    lake: Path = tmp_path_factory.mktemp("lake")
    fill(lake, seeded(31, 300))
    with ApiProcess(single.url, tmp_path_factory.mktemp("api"), prefix="hostile", lake_dir=lake) as process:
        yield process


@pytest.mark.parametrize("route", ROUTES)
def test_arguments(api: ApiProcess, route: str) -> None:
    usual, names = ROUTES[route]
    for name in names:
        for value in VALUES:
            said = {key: quote(text, safe="") for key, text in usual.items()} | {name: quote(value, safe="")}
            written = "&".join(f"{key}={text}" for key, text in said.items())
            for url in (f"{route}?{written}", f"{route}?{written}&{name}={said[name]}"):
                answer = api.get(url, token=service("read"))
                assert answer.status_code in (200, 400, 404), (url, answer.text)
                if answer.status_code == 400:
                    assert answer.json()["error"]["field"] in (name, "from"), (url, answer.text)


@pytest.mark.parametrize("route", ROUTES)
def test_who_asks(api: ApiProcess, route: str) -> None:
    open_to_players = route in ("/v1/trending", "/v1/contents/x/audience")
    url = route + "?" + "&".join(f"{key}={text}" for key, text in ROUTES[route][0].items())
    assert api.get(url).status_code == 401
    for token in ("x", "ey.ey.ey", service("read")[:-2], "e" * 10_000):
        assert api.get(url, token=token).json()["error"]["field"] == "authorization"
    assert api.get(url, token=service("signals")).status_code == 403
    assert api.get(url, token=player("a")).status_code == (200 if open_to_players else 403)
