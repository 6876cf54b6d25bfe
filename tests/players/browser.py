"""Chromium without a window, with one page."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import urlencode

from tests.servers import Child

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required", "--mute-audio",
    "--no-first-run", "--no-default-browser-check", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--no-proxy-server", "--window-size=640,360",
    "--password-store=basic",
)  # fmt: skip


class Browser(Child):
    """One Chromium with a profile of its own. Leaving it is kill -9: a tab that closes tells no more than one that is killed."""

    def __init__(self, chromium: str, log: Path, page: str, **query: str | int) -> None:
        self._profile = mkdtemp(prefix="pulsegate-browser-")
        url = f"{page}?{urlencode(query)}"
        super().__init__([chromium, *OPTIONS, f"--user-data-dir={self._profile}", url], log)

    def close(self) -> None:
        self.kill()
        # Its helpers may write for an instant after they were killed.
        with contextlib.suppress(OSError):
            shutil.rmtree(self._profile, ignore_errors=True)
