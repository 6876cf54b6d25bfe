"""The process the log reader runs in: its clock, its interruption, what it says. Replaced in tests."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Self


class Pace:
    """Time and interruption. SIGTERM and SIGINT set `stopped` and end a wait."""

    def __init__(self) -> None:
        self.stopped = False

    def __enter__(self) -> Self:
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._stop) for number in signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._woken)
        os.close(self._wake)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        # The byte is never read: it also ends every wait that begins after this.
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"!")

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait(self, seconds: float, fd: int | None = None) -> None:
        """Returns after `seconds`, or when `fd` has data, or when stopped."""
        select.select([self._woken] if fd is None else [self._woken, fd], [], [], seconds)


def say(message: str) -> None:
    """On standard error; standard output is for the summary."""
    print(f"ingest-log: {message}", file=sys.stderr, flush=True)
