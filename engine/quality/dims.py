"""What a `User-Agent` says of the device: operating system, browser, and the player where it names itself. Parsed by ua-parser.

Parsing costs 0.3–1 ms, a repeated one nothing: the last 20,000 are remembered, which is more than a population's distinct ones in an hour.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ua_parser import parse_os, parse_user_agent

LONGEST = 512
"""Characters read of it: what comes after says nothing more, and patterns over hostile text cost time."""

_OS = {
    "Mac OS X": "macOS", "ATV OS X": "tvOS", "Web0S": "webOS", "Chrome OS": "ChromeOS", "Chromecast": "Google Cast",
    "Ubuntu": "Linux", "Fedora": "Linux", "Debian": "Linux",
}  # fmt: skip
_BROWSERS = {"HeadlessChrome": "Chrome", "Chrome Mobile": "Chrome", "Chrome Mobile WebView": "WebView", "Mobile Safari": "Safari",
             "Mobile Safari UI/WKWebView": "WebView", "Firefox Mobile": "Firefox", "Edge Mobile": "Edge", "Opera Mobile": "Opera"}  # fmt: skip
_NOT_BROWSERS = frozenset(
    ["Android", "okhttp", "ExoPlayer", "Roku", "VLC", "Kodi", "Apache-HttpClient", "CFNetwork", "Dalvik"]
)

# Names that players put into it themselves, the most telling first.
_PLAYERS = (
    (re.compile(r"AndroidXMedia3/([\w.]+)"), "Media3"),
    (re.compile(r"ExoPlayerLib/([\w.]+)"), "ExoPlayer"),
    (re.compile(r"ExoPlayer/([\w.]+)"), "ExoPlayer"),
    (re.compile(r"AppleCoreMedia/([\w.]+)"), "AVPlayer"),
    (re.compile(r"LibVLC/([\w.]+)"), "VLC"),
    (re.compile(r"\bVLC/([\w.]+)"), "VLC"),
    (re.compile(r"\bKodi/([\w.]+)"), "Kodi"),
    (re.compile(r"Roku/DVP-([\w.]+)"), "Roku"),
    (re.compile(r"\bmpv ([\w.]+)"), "mpv"),
    (re.compile(r"\bLavf/([\w.]+)"), "FFmpeg"),
    (re.compile(r"\bGStreamer souphttpsrc ([\w.]+)"), "GStreamer"),
    (re.compile(r"stagefright/([\w.]+)"), "stagefright"),
)  # fmt: skip


class Agent(NamedTuple):
    """'' is unknown. `browser` has its major version, the operating system has none: too many for a dimension that one compares by."""

    os: str = ""
    browser: str = ""
    player: str = ""
    player_version: str = ""


def agent_of(user_agent: str) -> Agent:
    """Never raises; a string that says nothing gives ''s."""
    return _parsed(user_agent[:LONGEST]) if user_agent else Agent()


@lru_cache(maxsize=20_000)
def _parsed(user_agent: str) -> Agent:
    player, version = "", ""
    for pattern, name in _PLAYERS:
        if found := pattern.search(user_agent):
            player, version = name, found[1]
            break
    system, browser = parse_os(user_agent), parse_user_agent(user_agent)
    return Agent(_system(system.family) if system else "", "" if player else _browser(browser), player, version[:32])


def _system(family: str) -> str:
    return "" if family == "Other" else _OS.get(family, family)


def _browser(found: object) -> str:
    family, major = getattr(found, "family", ""), getattr(found, "major", None)
    if not family or family == "Other" or family in _NOT_BROWSERS:
        return ""
    family = _BROWSERS.get(family, family)
    return f"{family} {major}" if major else str(family)
