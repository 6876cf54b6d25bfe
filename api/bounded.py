"""A connection whose every wait is bounded: for a head, a body, the next request, and for its peer to take an answer.

Also which connection is missed least when there are too many (`api/connections.py`).
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.exchange import Door, last
from api.head import FULL, SLOW, Refusal
from api.http import error_answer, new_request_id
from api.joined import Joined

_LINGER_S = 2.0
"""For a peer to read the last answer and to stop sending."""
_WORK_S = 1.0
"""Whoever is busy so shortly is not slow."""
_GUEST_S = 2.0
_GONE_S = 2.0
"""For an answer to a peer that will send nothing more: whoever has gone looks like that, and a long question need not be answered."""


NOTHING, HEAD, BODY, NO_MORE = range(4)
"""What of a request is being read; `NO_MORE`: nothing any more, the connection ends. No enum, because that costs a microsecond a
heartbeat."""


class Bounded(HttpToolsProtocol):
    _door: Door
    _running: Any = None
    """The cycle or exchange that is being answered, or was last."""
    _reading = NOTHING
    _asked = False
    """Whether a whole request has come."""
    _guest = False
    _stuck_since: float | None = None
    _ended_at: float | None = None
    """When the peer said that it will send nothing more."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, Joined(transport, self.loop)))
        self.app_state = self.app_state | {"transport": self.transport}
        self._door = self.app_state["door"]
        self._all = self._door.connections
        self._limits = self._all.limits
        self._fields, self._head_bytes = self._limits.fields, self._limits.head_bytes
        self._quiet = min(self._limits.head_s, self._limits.idle_s)
        self._part = self._all.enter(self)
        self._since = self._all.now
        room = self._all.room()
        self._guest = not room
        if room is None:
            self.give_way()

    def look(self, now: float) -> None:
        waited = now - self._since
        if waited < self._quiet and self._reading == NOTHING and not self._guest:
            return  # as nearly always
        if self._reading == NO_MORE and not self._answering():
            if waited > _LINGER_S:
                self.transport.abort()
        elif self.transport.is_closing():
            if waited > self._limits.body_s:
                self.transport.abort()
        elif self._answering():
            self._look_at_answer(now)
        elif self._reading == NOTHING and self._running is not None:
            if waited > self._limits.idle_s:
                self._close(now)
        elif waited > (self._limits.body_s if self._reading == BODY else self._limits.head_s):
            if self._reading == NOTHING:
                self._close(now)
            else:
                self._refuse(SLOW)
        elif self._guest and waited > _GUEST_S:
            self._refuse(FULL)

    def _look_at_answer(self, now: float) -> None:
        if self._reading == BODY and not self.pipeline and now - self._since > self._limits.body_s:
            self._refuse(SLOW)
        elif self._ended_at is not None and now - self._ended_at > _GONE_S:
            self.transport.abort()
        elif not self.flow.write_paused:
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since > self._limits.body_s:
            self.transport.abort()

    def _close(self, now: float) -> None:
        self._since = now
        self.transport.close()

    def missed(self, now: float) -> tuple[bool, float] | None:
        if now - self._since < _WORK_S or self._reading == NO_MORE or self._guest or self.transport.is_closing():
            return None
        if self._reading == NOTHING and self._answering() and not self.flow.write_paused:
            return None
        return self._asked, self._since

    def give_way(self) -> None:
        if self._running is None:
            self._door.refused(FULL.status)
            self.transport.write(text_of(FULL))
        self.transport.close()

    @abstractmethod
    def _refuse(self, refusal: Refusal) -> None:
        """Says this after the answers to what came before, and reads nothing more."""

    def _answering(self) -> bool:
        running = self._running
        return running is not None and not running.response_complete


def text_of(refusal: Refusal) -> bytes:
    status, body, headers = error_answer(refusal.error, refusal.status)
    return last(status, headers, body, new_request_id())
