"""A stop that a signal handler raises at the worst moment still stops."""

from __future__ import annotations

import subprocess
import sys

from tests.servers import ROOT

BOMBARDED = """
import signal
from engine.stopping import Stop

stops = [Stop()]
signal.signal(signal.SIGALRM, lambda *_: stops[-1].set())
for round in range(400):
    stops.append(Stop())
    signal.setitimer(signal.ITIMER_REAL, 0.0002 + round % 20 * 0.00001, 0.0002)
    while not stops[-1].wait(0.00001):
        pass
    signal.setitimer(signal.ITIMER_REAL, 0)
print("done")
"""
"""A storm of signals: with `threading.Event` it ends within a few rounds in its own lock."""


class TestStop:
    def test_signals_in_the_middle_of_waiting(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", BOMBARDED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout) == (0, "done\n")
