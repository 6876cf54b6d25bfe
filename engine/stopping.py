"""A flag that a signal handler may raise.

`threading.Event` is not one: its lock cannot be taken twice, so a handler that interrupts `wait` (or another `set`)
at the wrong moment waits for itself for ever. A pipe has no such moment.
"""

from __future__ import annotations

import os
import select
import signal
import time


class Stop:
    """Set once, by a signal or by hand; whoever waits wakes at once."""

    def __init__(self) -> None:
        self._set = False
        self._reader, self._writer = os.pipe()

    @classmethod
    def on_signals(cls) -> Stop:
        """One that SIGTERM and SIGINT raise."""
        stop = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        return stop

    def set(self) -> None:
        if not self._set:
            self._set = True
            os.write(self._writer, b".")

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Whether it was set, at the latest after `seconds`."""
        until = time.monotonic() + seconds
        while not self._set and (left := until - time.monotonic()) > 0:
            select.select([self._reader], [], [], left)
        return self._set
