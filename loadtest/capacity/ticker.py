"""A clock that wakes the loop when a request is due. uvloop's own timers round to whole milliseconds, which at thousands of
requests a second would turn an even stream into bursts; Linux's timerfd keeps to some ten microseconds."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_SHORTEST_S = 0.0001
"""Not woken more often than this: what is due meanwhile goes together."""
_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("value", _Moment))


class Ticker:
    """Calls `work` until it answers None; otherwise it answers when to be called next (time.perf_counter, seconds).

    Use it in one event loop. `done` is set when `work` has answered None or has raised.
    """

    def __init__(self, work: Callable[[], float | None]) -> None:
        self._work = work
        self._loop = asyncio.get_running_loop()
        self._libc, self._fd = _timerfd()
        self._timer: asyncio.TimerHandle | None = None
        self.done: asyncio.Future[None] = self._loop.create_future()
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._fired)
        self._tick()

    def poke(self) -> None:
        """Calls `work` now: what is due next has changed."""
        if not self.done.done():
            self._tick()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if not self.done.done():
            self.done.set_result(None)

    def _fired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._tick()

    def _tick(self) -> None:
        try:
            due = self._work()
        except Exception as error:
            self.done.set_exception(error)
            self.close()
            return
        if due is None:
            self.close()
            return
        delay = max(due - time.perf_counter(), _SHORTEST_S)
        if self._fd >= 0:
            whole = int(delay)
            value = _Timer(_Moment(0, 0), _Moment(whole, int((delay - whole) * 1e9)))
            self._libc.timerfd_settime(self._fd, 0, ctypes.byref(value), None)
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, self._tick)


def _timerfd() -> tuple[ctypes.CDLL, int]:
    """(the C library, a timer's file descriptor); -1 where there is none."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "timerfd_create"):
        return libc, -1
    return libc, int(libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC))
