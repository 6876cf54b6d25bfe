"""Facts as the lake's columns. Apart from the facts themselves, because whoever only names dimensions needs no Arrow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from engine.quality.facts import Fact

_text, _int = pa.string(), pa.int64()
_TYPES: dict[str, Any] = {
    "partition": pa.int32(), "stream_ms": _int, "stream_seq": _int, "part": pa.int32(), "at": pa.timestamp("ms"), "view": _int, "started_at": pa.timestamp("ms"),
    "ms": _int, "value": pa.float64(), "before": pa.float64(), "bits": pa.float64(), "bits_ms": _int, "count": _int,
    "ad": pa.bool_(), "fatal": pa.bool_(), "business": pa.bool_(), "started": pa.bool_(), "stalls_known": pa.bool_(),
    "skipped": pa.bool_(), "completed": pa.bool_(), "silent": pa.bool_(), "labels": pa.map_(_text, _text),
}  # fmt: skip
_FIRST = ("partition", "stream_ms", "stream_seq", "part", "at", "fact")
_NAMES = (*_FIRST, *(name for name in Fact.__struct_fields__ if name not in _FIRST))
SCHEMA = pa.schema([pa.field(name, _TYPES.get(name, _text)) for name in _NAMES])
"""The columns of the lake's topic `facts`, named as the fields."""


def table(facts: Sequence[Fact]) -> pa.Table:
    """One row for each, in their order."""
    columns = []
    for field in SCHEMA:
        values = [getattr(fact, field.name) for fact in facts]
        if field.name == "labels":
            values = [list(labels.items()) for labels in values]
        elif field.name == "started_at":
            values = [began or None for began in values]
        columns.append(pa.array(values, field.type))
    return pa.table(columns, SCHEMA)
