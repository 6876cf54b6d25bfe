"""A part started by a supervisor does not outlive it: kill −9 of `pulsegate run` leaves nothing behind.

The supervisor gives each part a pipe as standard input and never writes to it. The pipe ends when the supervisor does, however it does,
and the part then asks itself to stop in order.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

VARIABLE = "PULSEGATE_SUPERVISED"
"""Set for parts that have a lifeline; anything else started by hand lives as long as it likes."""


def hold() -> None:
    """Watches the lifeline, if this process was given one."""
    if os.environ.pop(VARIABLE, ""):
        threading.Thread(target=_watch, name="lifeline", daemon=True).start()


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
