"""Where alerts are kept, in the log Redis: each rule's and group's state, and what was told, the newest 10,000.

| key                    | type   | holds                                                                 |
|------------------------|--------|-----------------------------------------------------------------------|
| pg:{alerts}:states     | hash   | JSON [rule, group] → JSON `State`                                       |
| pg:{alerts}:told       | stream | JSON of each alert that fired or is over, as the webhook gets it        |
| pg:{alerts}:sent       | string | id of the last one the webhook has taken                                |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import orjson

from engine.alerts.judge import State, Told
from engine.alerts.rules import Rule

TOLD_MAX = 10_000

Place = tuple[str, tuple[str, ...]]
"""Rule and group."""


def field(place: Place) -> str:
    return orjson.dumps(place).decode()


def read(stored: Mapping[bytes, bytes]) -> dict[Place, State]:
    """The states; one that cannot be read begins anew."""
    found: dict[Place, State] = {}
    for name, state in stored.items():
        try:
            rule, group = orjson.loads(name)
            found[rule, tuple(group)] = msgspec.json.decode(state, type=State)
        except (ValueError, TypeError, msgspec.DecodeError):
            continue
    return found


def said(rule: Rule, group: Iterable[str], told: Told) -> bytes:
    """What is told, as JSON: without the id, which it has in the stream."""
    return orjson.dumps(
        {
            "alert": rule.name, "status": told.status, "at": told.at, "since_at": told.since, "by": dict(zip(rule.by, group, strict=True)),
            "metric": rule.metric, "where": rule.where, "value": told.value, "bound": told.bound, "sessions": told.sessions,
            "severity": rule.severity,
        }
    )  # fmt: skip


def shown(place: Place, state: State, rules: Mapping[str, Rule]) -> dict[str, Any]:
    """A state as `GET /v1/alerts` has it. A rule that is no longer in the file has its name only."""
    name, group = place
    rule = rules.get(name)
    by = dict(zip(rule.by, group, strict=False)) if rule else {}
    return {
        "alert": name, "status": state.status, "since_at": state.since, "at": state.at, "by": by, "metric": rule.metric if rule else None,
        "value": state.value, "sessions": state.sessions, "severity": rule.severity if rule else None,
    }  # fmt: skip
