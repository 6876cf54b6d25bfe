"""What was enforced, for content providers: blocks, evictions and takeovers, from the lake and the log, counted and listed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.events import EVENTS, Event
from engine.lake import Lake
from engine.settings import Settings
from workers.history import history
from workers.reading import LogReader
from workers.runtime import Runtime, runtime

TYPES = frozenset(["block", "evict", "takeover"])
_COUNTED = ("type", "rule", "reason", "provider", "content")


def blocks(asked: dict[str, Any]) -> dict[str, Any]:
    """The RQ job. `asked` holds `from`, `to` (ms), `limit`, `after` (an item's id) and any of account, rule, provider, content.

    Returns {items, next, counts}: items newest first; counts over all that match, by type, rule, reason, provider, content, day.
    """
    return found(runtime(Settings.from_env(os.environ)), asked)


def found(run: Runtime, asked: Mapping[str, Any]) -> dict[str, Any]:
    wanted = {name: asked[name] for name in ("account", "rule", "provider", "content") if asked.get(name)}
    counts: dict[str, Counter[str]] = {name: Counter() for name in (*_COUNTED, "day")}
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for event in _enforcement(run, asked["from"], asked["to"]):
        if event.type not in TYPES or not asked["from"] <= event.at < asked["to"] or event.id in seen:
            continue
        seen.add(event.id)
        item = _item(event)
        if all(item[name] == value for name, value in wanted.items()):
            items.append(item)
            for name in _COUNTED:
                counts[name][item[name] or ""] += 1
            counts["day"][datetime.fromtimestamp(item["at"] / 1000, UTC).strftime("%Y-%m-%d")] += 1
    items.sort(key=_newest)
    start = next((n + 1 for n, item in enumerate(items) if item["id"] == asked.get("after")), 0)
    page = items[start : start + asked["limit"]]
    more = start + len(page) < len(items)
    return {
        "items": page,
        "next": page[-1]["id"] if more else None,
        "total": len(items),
        "counts": {name: dict(counted.most_common()) for name, counted in counts.items()},
    }


def _newest(item: Mapping[str, Any]) -> tuple[int, str]:
    return -item["at"], item["id"]


def _item(event: Event) -> dict[str, Any]:
    data = event.details()
    return {
        "id": event.id, "at": event.at, "type": event.type, "account": event.account, "profile": event.profile,
        "device": event.device, "session": event.session, "content": event.content, "kind": event.kind,
        "provider": _text(data, "provider"), "rule": _text(data, "rule"), "limit": data.get("limit"), "reason": _text(data, "reason"),
        "by": data.get("by"),
    }  # fmt: skip


def _text(data: Mapping[str, Any], name: str) -> str | None:
    """What is counted by must be text, whatever somebody wrote there."""
    found = data.get(name)
    return found if isinstance(found, str) else None


def _enforcement(run: Runtime, start: int, end: int) -> Iterator[Event]:
    """The lake first, then what it does not hold yet. An event that moves from one to the other meanwhile comes twice."""
    positions: dict[int, str] = {}
    if run.settings.lake_dir:
        lake = Lake(Path(run.settings.lake_dir), partitions=run.settings.partitions)
        positions = lake.positions()
        yield from lake.read(topics=(EVENTS,), types=TYPES, from_ms=start, to_ms=end)
    reader = LogReader(run.log, run.keys, range(run.settings.partitions), (EVENTS,))
    while found := reader.look(positions):
        if found.behind and run.settings.lake_dir:
            # The log was trimmed in between; what went is in the lake.
            yield from history(run.settings, (EVENTS,), {p: positions.get(p, "0-0") for p in found.behind})
        yield from found.events
        positions |= found.behind | found.ends
