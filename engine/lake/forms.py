"""What the files of a topic look like: their columns, how these are packed, and how rows are sorted.

A new column goes to the end of its schema, and never changes its type: files written before stay as they are, and are read as if they had
it (`absent`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.lake import layout
from engine.quality import columns

FACTS = "facts"
"""The topic of quality facts (engine/quality/columns.py), in a lake of their own."""

_DELTA = ("partition", "stream_ms", "stream_seq", "at", "ms", "bits_ms")


@dataclass(frozen=True, slots=True)
class Form:
    """All of them have the columns partition, stream_ms, stream_seq, at and account."""

    schema: pa.Schema
    order: list[tuple[str, str]]
    encoding: dict[str, Any]
    partition: int
    stream_ms: int
    """Where these columns are."""

    @classmethod
    def of(cls, schema: pa.Schema, order: list[tuple[str, str]], encoding: dict[str, Any]) -> Form:
        return cls(schema, order, encoding, schema.get_field_index("partition"), schema.get_field_index("stream_ms"))

    def whole(self, rows: pa.Table) -> pa.Table:
        """Rows of a file that may be older than some column: with all columns. Rows that have one which this version does not know stay as
        they are, and cannot be written: better no merging than losing what a newer version has put there."""
        if rows.schema.names == self.schema.names or not set(rows.schema.names) < set(self.schema.names):
            return rows
        columns = [
            rows[field.name] if field.name in rows.schema.names
            else pa.repeat(pa.scalar(absent(field.type), field.type), rows.num_rows)
            for field in self.schema
        ]  # fmt: skip
        return pa.table(columns, self.schema)


def absent(type_: pa.DataType) -> str | bool | None:
    """What a column of that type has in rows that are older than it: the empty text, false, null."""
    if pa.types.is_string(type_):
        return ""
    return False if pa.types.is_boolean(type_) else None


_EVENTS = Form.of(layout.SCHEMA, layout.ORDER, layout.ENCODING)
_FACTS = Form.of(
    columns.SCHEMA,
    [*layout.ORDER, ("part", "ascending")],
    {
        "compression": "zstd",
        "use_dictionary": [f.name for f in columns.SCHEMA if pa.types.is_string(f.type)],
        "column_encoding": dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED"),
        "write_page_checksum": True,
    },
)


def form_of(topic: str) -> Form:
    return _FACTS if topic == FACTS else _EVENTS
