"""One content watched in one session, physically: where the playhead is, and what is written of it."""

from __future__ import annotations

from typing import Any

from loadtest.simulator.catalogue import Content
from loadtest.simulator.world import World

PAUSE_COUNTS_MS = 300_000
"""A pause counts as watching for so long (docs/audience.md)."""


class View:
    """Nothing is written of a view before it is admitted, or played in spite of everything. Positions are seconds."""

    def __init__(
        self, world: World, who: dict[str, Any], content: Content, position: float, *, tells_position: bool = True
    ) -> None:
        self.world, self.content = world, content
        self.who = who | {"content": content.id, "kind": content.kind}
        self.started_at = world.now
        self.state: str | None = "starting"
        self.tells_position = tells_position
        self.admitted = False
        self.completed = False
        self.played_ms = 0.0
        self.delivered = 0
        self.delivered_at: int | None = None
        self.delivered_position: float | None = None
        self.since, self._from = world.now, position
        """Since when it is in this state."""
        self._last_at = world.now
        self._waiting: list[dict[str, Any]] | None = []

    @property
    def where(self) -> float:
        """The playhead, now."""
        if self.state != "playing":
            return self._from
        position = round(self._from + (self.world.now - self.since) / 1000, 3)
        return min(position, self.content.runtime) if self.content.runtime else position

    @property
    def said(self) -> float | None:
        """What the player says of it."""
        return self.where if self.tells_position else None

    @property
    def counts(self) -> bool:
        """Whether somebody watches, a short pause included."""
        return self.state is not None and (self.state != "paused" or self.world.now - self.since < PAUSE_COUNTS_MS)

    def admit(self) -> None:
        self.admitted = True
        self.tell()

    def tell(self) -> None:
        """From now on everything is written."""
        for line in self._waiting or ():
            self.world.truth.write(line)
        self._waiting = None

    def turn(self, state: str | None) -> None:
        """What happens from now on; None: nothing, the device is not there."""
        now, where = self.world.now, self.where
        if self.state is not None:
            self._last_at = now
            if self.state == "playing":
                self.played_ms += (where - self._from) * 1000
                self.completed = self.completed or bool(self.content.runtime and where >= self.content.runtime)
            if now > self.since:
                self._write(
                    {
                        "type": "play",
                        "at": now,
                        **self.who,
                        "started_at": self.since,
                        "ended_at": now,
                        "from_position": self._from,
                        "to_position": where,
                        "state": self.state,
                        "rate": 1.0,
                    }
                )
        self.state, self.since, self._from = state, now, where

    def jump(self, position: float) -> None:
        """A seek ends there."""
        self.turn(self.state)
        self._from = round(position, 3)

    def heard(self, position: float | None) -> None:
        """A sign of this view has reached the server and was let in."""
        self.delivered += 1
        self.delivered_at, self.delivered_position = self.world.now, position

    def close(self, end: str) -> None:
        """It is over, as of when it was last there. A view that never began is not written, unless it turns out to have been let in:
        its first heartbeat was still on the way."""
        self.turn(None)
        self._write(
            {
                "type": "view",
                "at": self.world.now,
                **self.who,
                "started_at": self.started_at,
                "ended_at": self._last_at,
                "end": end,
                "played_ms": round(self.played_ms),
                "last_position": self._from,
                "duration": self.content.runtime or None,
                "last_delivered_at": self.delivered_at,
                "last_delivered_position": self.delivered_position,
                "delivered": self.delivered,
                "admitted": self.admitted,
                "completed": self.completed,
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        if self._waiting is None:
            self.world.truth.write(line)
        else:
            self._waiting.append(line)
