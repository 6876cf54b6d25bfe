"""`python -m tests.players.record`: plays once more and renews tests/data/cmcd, the bodies that stock players post, for the parser's tests.

One file for each player and story; in it the bodies as they came, one after the other. Each ends with a newline, so the file is itself a
body of many reports.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import tool
from tests.players import HERE, MANIFESTS
from tests.players.browser import Browser
from tests.players.origin import Origin
from tests.players.stream import VIDEO, make
from tests.servers import wait_for

DATA = HERE.parent / "data" / "cmcd"
STORIES = {"viewed": ("", b"sta=e"), "starved": ("hold", b"sta=p"), "missing": ("fail", b"e=e,")}
"""Name → what is done to the film, and what the story's last report says."""


def record(name: str, story: str, film: Path, log: Path) -> bytes:
    fault, last = STORIES[story]
    with Origin(film) as origin, Origin() as collector:
        if fault == "fail":
            origin.fail(f"{VIDEO}00003" if name == "dash" else MANIFESTS[name], 404)
        more = {"act": "yes"} if not fault else {}
        source, target = f"{origin.base}/media/{MANIFESTS[name]}", f"{collector.base}/collect"
        with Browser(
            tool("chromium"), log, origin.page, player=name, source=source, sid=f"{name}-{story}", cid="film",
            collector=target, **more,
        ):  # fmt: skip

            def said(part: bytes) -> int:
                return sum(part in posted.body for posted in collector.reports)

            def bodies() -> bytes:
                return b"".join(posted.body for posted in collector.reports)

            if fault == "hold":
                with origin.hold("chunk-stream.-00003"):
                    wait_for(lambda: said(b"sta=p"), "it plays")
                    wait_for(lambda: b"sta=r" in bodies().partition(b"sta=p")[2], "it starves")
            wait_for(lambda: last in bodies().rpartition(b"sta=r")[2], f"{name} says {last.decode()}")
        return bodies()


def main() -> int:
    DATA.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as directory:
        film = Path(directory) / "film"
        make(tool("ffmpeg"), film)
        for name in MANIFESTS:
            for story in STORIES:
                body = record(name, story, film, Path(directory) / "browser.log")
                (DATA / f"{name}-{story}.txt").write_bytes(body)
                print(f"{name}-{story}: {len(body.splitlines())} reports")
    return 0


if __name__ == "__main__":
    sys.exit(main())
