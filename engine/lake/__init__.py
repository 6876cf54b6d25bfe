"""The event log's permanent form: Parquet files, and a manifest that says which of them count (docs/lake.md)."""

from engine.lake.compact import Compacted
from engine.lake.erase import Receipt
from engine.lake.lake import Lake
from engine.lake.manifest import Conflict

__all__ = ["Compacted", "Conflict", "Lake", "Receipt"]
