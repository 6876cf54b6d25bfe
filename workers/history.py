"""What the log no longer holds, from the lake."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.events import Event
from engine.settings import Settings


def lake_positions(settings: Settings) -> dict[int, str]:
    """Partition → up to where the lake holds everything."""
    if not settings.lake_dir:
        return {}
    # Most workers never look back, and pyarrow takes its time and memory.
    from engine.lake import Lake

    return Lake(Path(settings.lake_dir), partitions=settings.partitions).positions()


def history(settings: Settings, topics: Sequence[str], after: Mapping[int, str]) -> Iterator[Event]:
    """The events of these partitions beyond these ids, in order within each; none without a lake."""
    if settings.lake_dir:
        from engine.lake import Lake

        yield from Lake(Path(settings.lake_dir), partitions=settings.partitions).read(
            topics=topics, partitions=list(after), after=dict(after)
        )
