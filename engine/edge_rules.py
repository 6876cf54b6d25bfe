"""What a viewer's request says of a stream: where its parts are found, and when two spellings are the same.

The edge (`api/edge.py`) asks while the request is under way, `engine/cdnlog` afterwards. Both may see the same
stream; they must find the same account, device and content in it, or one viewer counts twice.

A token is taken from the first of cookie, query and path. The device is the token's, else one named by the
request, else the token itself. CMCD comes last: it names the content that token and path leave open, and the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qs, unquote_to_bytes

from engine import names
from engine.errors import ConfigError


def compiled(option: str, text: str, groups: Iterable[str] | None = None) -> re.Pattern[str]:
    """Raises ConfigError that names the option; `groups` are the names it may use (None: any)."""
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{option} is not a regular expression: {error}", field=option) from None
    unknown = set() if groups is None else set(pattern.groupindex) - set(groups)
    if unknown:
        raise ConfigError(f"{option} has the unknown group {min(unknown)}", field=option)
    return pattern


def looked_up(raw: bytes) -> str:
    """The path under which a server looks for it: decoded, then without `//`, `.` and `..`.

    No other spelling of a path slips past a pattern. Bytes that are not UTF-8 become surrogates, which no id may
    contain, so that two ids never become one.
    """
    path = unquote_to_bytes(raw).decode(errors="surrogateescape")
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del kept[-1:]
        elif part not in ("", "."):
            kept.append(part)
    return "/" + "/".join(kept) + ("/" if kept and path.endswith(("/", "/.", "/..")) else "")


def parts(pattern: re.Pattern[str], path: str) -> dict[str, str] | None:
    """The groups that matched, without a kind that is none of ours; None if the path is no stream's."""
    match = pattern.search(path)
    if match is None:
        return None
    found = {name: value for name, value in match.groupdict().items() if value}
    if found.get("kind") not in ("live", "vod"):
        found.pop("kind", None)
    return found


def cookie(header: str, name: str) -> str:
    """The first that is not empty, else ''. By hand: http.cookies gives up at a neighbour it dislikes."""
    for part in header.split(";"):
        key, _, value = part.partition("=")
        if key.strip() == name and (bare := value.strip(' "')):
            return bare
    return ""


def argument(query: str, name: str) -> str:
    """The first that is not empty, as most servers take it, else ''."""
    return parse_qs(query, errors="surrogateescape").get(name, [""])[0] if query else ""


def session_of(said: Mapping[str, object], device: str) -> str:
    """The session that a request's CMCD names, where the token names neither session nor device: what a player writes links no
    request to the session of another device, nor to one that Pulsegate has made."""
    session = "" if device else str(said.get("sid", ""))
    return "" if names.own_session(session) else session
