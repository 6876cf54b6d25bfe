"""The figures an alert is judged by: its metric over the last `window_s`, apart for each group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from engine.alerts.rules import Rule
from engine.errors import BadRequest, ConfigError
from engine.quality.ask_jobs import Database, ask_metrics
from engine.quality.metrics import PERCENTILES
from engine.quality.query import Asked, by_of, metrics_of, where_of

GROUPS_MAX = 1_000
"""The groups with most sessions."""

Group = tuple[str, ...]
"""Values of the rule's `by`, in its order."""
Figure = tuple[float | None, int]
"""Value (None: not measurable) and the sessions behind it."""


def check(rule: Rule) -> None:
    """Raises ConfigError if the rule's figure cannot be asked for."""
    try:
        _asked(rule, 1)
    except BadRequest as error:
        raise ConfigError(f"alert {rule.name}: {error.message}", field=error.field) from None
    part = rule.metric.partition(".")[2]
    if part and part not in PERCENTILES:
        raise ConfigError(f"alert {rule.name}: {part!r} is none of {', '.join(PERCENTILES)}", field="metric")


def figures(database: Database, rule: Rule, now: int) -> dict[Group, Figure]:
    """Over the relation `facts`. Raises duckdb.Error."""
    found = ask_metrics(database, msgspec.to_builtins(_asked(rule, now)))
    metric, _, part = rule.metric.partition(".")
    return {
        tuple(item["by"][name] for name in rule.by): _figure(item["metrics"][metric], part or "value")
        for item in found["items"]
    }


def _figure(said: dict[str, Any], part: str) -> Figure:
    value = said.get(part)
    return (float(value) if isinstance(value, int | float) else None), int(said["sessions"])


def _asked(rule: Rule, now: int) -> Asked:
    (metric,) = metrics_of(rule.metric.partition(".")[0])
    start = max(0, now - rule.window_s * 1000)
    return Asked((metric,), start, now, by_of(",".join(rule.by)), where_of(rule.where), limit=GROUPS_MAX)


def relation(files: Sequence[Path]) -> dict[str, list[str]]:
    """For `Database.begin`."""
    return {"facts": [str(path) for path in files]}
