"""Which content has which slot. All that is known of the contents lies in lists by slot, so that a tick is a few passes over lists.

Bounded: a content not watched for long gives its slot back. When all are taken, a new one needs more viewers than one that is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

CHUNK = 1024


class Slots:
    """`names[slot]` is the content, or None; `born` and `seen` are hours since the epoch: first known, last watched."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.names: list[str | None] = []
        self.born: list[int] = []
        self.seen: list[int] = []
        self.index: dict[str, int] = {}
        self.changed: set[int] = set()
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def room(self) -> int:
        return self._most - len(self.index)

    def add(self, content: str, hour: int) -> int:
        """The slot of a content that has none; it may be one past the end, where the caller's lists must grow."""
        if self._free:
            slot = self._free.pop()
            self.names[slot], self.born[slot], self.seen[slot] = content, hour, hour
        else:
            slot = len(self.names)
            self.names.append(content)
            self.born.append(hour)
            self.seen.append(hour)
        self.index[content] = slot
        self.changed.add(slot // CHUNK)
        return slot

    def drop(self, slots: Iterable[int]) -> list[int]:
        gone = []
        for slot in slots:
            name = self.names[slot]
            if name is not None:
                del self.index[name]
                self.names[slot] = None
                self._free.append(slot)
                self.changed.add(slot // CHUNK)
                gone.append(slot)
        return gone

    def unwatched_since(self, hour: int) -> list[int]:
        return [
            slot for slot, (name, seen) in enumerate(zip(self.names, self.seen, strict=True)) if name and seen < hour
        ]

    def least(self, count: int, audience: Sequence[float], keep: Callable[[str], bool]) -> list[int]:
        """The `count` slots that are missed least: those unwatched for longest, then those of the smallest audience."""
        taken = [slot for slot, name in enumerate(self.names) if name is not None and not keep(name)]
        taken.sort(key=lambda slot: (audience[slot] if audience[slot] >= 0.5 else 0.0, self.seen[slot]))
        return taken[:count]

    def restore(self, rows: Sequence[tuple[str, int] | None], seen: Sequence[int]) -> None:
        """From what was dumped: name and `born` by slot. A name that is there twice keeps its first slot."""
        self.names, self.born, self.seen, self.index, self._free = [], [], list(seen), {}, []
        for slot, row in enumerate(rows):
            known = row is not None and row[0] not in self.index
            self.names.append(row[0] if row is not None and known else None)
            self.born.append(row[1] if row is not None and known else 0)
            if row is not None and known:
                self.index[row[0]] = slot
            else:
                self._free.append(slot)
