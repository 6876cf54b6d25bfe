"""Events in the vocabulary of Segment's video spec (https://segment.com/docs/connections/spec/video/), as `track` calls.

| ours                             | Segment's                                                            |
|----------------------------------|----------------------------------------------------------------------|
| view_start                       | Video Playback Started, Video Content Started                        |
| heartbeat                        | Video Content Playing                                                |
| view_reopen                      | Video Playback Resumed                                               |
| pause, resume                    | Video Playback Paused, Resumed                                       |
| seek                             | Video Playback Seek Completed                                        |
| buffer_start, buffer_end         | Video Playback Buffer Started, Buffer Completed                      |
| bitrate_change                   | Video Quality Updated                                                |
| ad_start, ad_end                 | Video Ad Started, Completed (`skipped`: Skipped)                     |
| error                            | Video Playback Interrupted if `fatal`, else under its own name       |
| view_end                         | completed: Video Content Completed, Video Playback Completed;        |
|                                  | not: Video Playback Exited (`stopped`, `content_changed`, `superseded`, `paused_timeout`), else Interrupted |
| anything else                    | under its own name, its `data` as properties                         |

`messageId` is our `event_id`, with a suffix where one event becomes two, so it is the same on every retry. Every call carries
what the envelope knows; properties of the spec that nobody has told us are left out, not invented.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from engine.events import Event

EXITS = frozenset(["stopped", "content_changed", "superseded", "paused_timeout"])
"""Reasons of a view's end by which the viewer left; by the others playback was taken away or lost."""

_NAMES = {
    "view_start": ("Video Playback Started", "Video Content Started"),
    "heartbeat": ("Video Content Playing",),
    "view_reopen": ("Video Playback Resumed",),
    "pause": ("Video Playback Paused",),
    "resume": ("Video Playback Resumed",),
    "seek": ("Video Playback Seek Completed",),
    "buffer_start": ("Video Playback Buffer Started",),
    "buffer_end": ("Video Playback Buffer Completed",),
    "bitrate_change": ("Video Quality Updated",),
    "ad_start": ("Video Ad Started",),
}
_SUFFIXES = ("", ":2")
_LARGEST = 2**53
_AD_TYPES = frozenset(["pre-roll", "mid-roll", "post-roll"])

Said = Mapping[str, Any]


def calls(event: Event) -> list[bytes]:
    """The `track` calls that an event becomes, at least one, each one JSON object."""
    data = event.details()
    # A tracking event may have its fields beside `type` or in a `data` of its own.
    inner = data.get("data")
    said: Said = {**data, **inner} if isinstance(inner, dict) else data
    id_ = event.export_id
    envelope = {
        "type": "track",
        "userId": event.account,
        "timestamp": _iso(event.at),
        "context": _context(event),
    }
    out = []
    for name, suffix in zip(names(event, said), _SUFFIXES, strict=False):
        out.append(
            msgspec.json.encode(
                {**envelope, "messageId": id_ + suffix, "event": name, "properties": _properties(name, event, said)}
            )
        )
    return out


def names(event: Event, said: Said) -> tuple[str, ...]:
    """What Segment calls this event."""
    if event.type == "view_end":
        if said.get("completed"):
            return "Video Content Completed", "Video Playback Completed"
        return ("Video Playback Exited" if said.get("reason") in EXITS else "Video Playback Interrupted",)
    if event.type == "ad_end":
        return ("Video Ad Skipped" if said.get("skipped") else "Video Ad Completed",)
    if event.type == "error" and said.get("fatal"):
        return ("Video Playback Interrupted",)
    return _NAMES.get(event.type, (event.type,))


def _context(event: Event) -> dict[str, Any]:
    context: dict[str, Any] = {"library": {"name": "pulsegate", "version": str(event.v)}}
    if event.device:
        context["device"] = {"id": event.device}
    if event.profile:
        context["traits"] = {"profile": event.profile}
    return context


def _properties(name: str, event: Event, said: Said) -> dict[str, Any]:
    """Of the spec's properties those that are known; for other names all that was said, beside them."""
    common = {
        "session_id": event.session, "livestream": event.kind == "live" if event.kind else None,
        "position": _position(event, said), "total_length": _whole(said.get("duration")),
    }  # fmt: skip
    if name.startswith("Video Content"):
        found = {"asset_id": event.content, "title": said.get("title"), **common, **_quality(said)}
    elif name.startswith("Video Ad"):
        # `position` and `duration` of an ad event are the break's place in the content, and the ad's length.
        kind = said.get("ad_type")
        found = {
            "asset_id": said.get("ad"), "pod_id": said.get("break"), "type": kind if kind in _AD_TYPES else None,
            "content": {"asset_id": event.content}, "load_type": said.get("load_type"), **common,
            "position": _whole(said.get("watched_ms"), 1000),
        }  # fmt: skip
    elif name.startswith("Video "):
        found = {"content_asset_id": event.content, **common, **_quality(said), **_more(event, said)}
    else:
        own = {key: value for key, value in said.items() if key not in ("type", "at", "seq", "id", "data", "session")}
        found = {**own, "content_asset_id": event.content, **common}
    return {key: value for key, value in found.items() if value is not None and value != ""}


def _position(event: Event, said: Said) -> int | None:
    """Seconds, whole, as the spec has them."""
    place = {"view_end": "max_position", "seek": "to"}.get(event.type, "position")
    return _whole(said.get(place))


def _quality(said: Said) -> dict[str, Any]:
    """Bitrate (kbit/s in the spec) and what else a player told of its rendition."""
    quality = said.get("quality")
    of: Said = quality if isinstance(quality, dict) else said
    bits = of.get("bitrate", said.get("to") if said.get("type") == "bitrate_change" else None)
    return {
        "bitrate": _whole(bits, 1000), "framerate": of.get("framerate"), "video_player": said.get("player"),
        "sound": said.get("sound"), "full_screen": said.get("full_screen"),
    }  # fmt: skip


def _more(event: Event, said: Said) -> dict[str, Any]:
    """Beyond the spec, what an analyst would miss."""
    if event.type == "view_end":
        return {
            key: said.get(key) for key in ("reason", "watched_ms", "last_seen_at", "estimated_end_at", "started_at")
        }
    if event.type == "seek":
        return {"seek_from": _whole(said.get("from")), "seek_position": _whole(said.get("to"))}
    if event.type == "error":
        return {"method": "error", "code": said.get("code"), "message": said.get("message")}
    if event.type == "buffer_end":
        return {"buffer_ms": said.get("duration_ms")}
    return {}


def _whole(value: Any, divisor: int = 1) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _LARGEST:
        return None
    return int(value / divisor)


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
