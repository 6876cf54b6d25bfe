"""Stock players in a real browser: what tests/test_players.py plays, with what, and from where.

    stream.py ─▶ HLS and DASH files ─▶ origin.py (faults on demand) ─▶ page.html with hls.js or dash.js in browser.py ─▶ CMCD reports

`package.json` and its lock file pin the players; `scripts/install-test-tools` installs them and Chromium. `record.py` renews tests/data/cmcd.
"""

from __future__ import annotations

from pathlib import Path

HERE = Path(__file__).resolve().parent

SCRIPTS = {
    "hls": HERE / "node_modules" / "hls.js" / "dist" / "hls.min.js",
    "dash": HERE / "node_modules" / "dashjs" / "dist" / "modern" / "umd" / "dash.all.min.js",
}
"""The players' own builds, unchanged."""

MANIFESTS = {"hls": "master.m3u8", "dash": "manifest.mpd"}
