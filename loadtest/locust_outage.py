"""The outage of a shape: made by a command of the operator's, or by the operator; and over when the API is ready again.

    python -m loadtest.locust_outage --below PID     # what `make load` gives as the command

kills the API processes that were started below that process (a `pulsegate run`), and those that are started in their place,
until it is itself asked to stop.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable

_EVERY_S = 0.2
_WORDS = "engine.cli api"


def ready(base: str) -> bool:
    """Whether the API is ready to serve."""
    try:
        with urllib.request.urlopen(f"{base.rstrip('/')}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Outage:
    """`hold(True)` begins it, `hold(False)` ends it; it is over when `is_ready` says so. Call `hold` about once a second."""

    def __init__(self, command: str, is_ready: Callable[[], bool]) -> None:
        self._command, self._is_ready = shlex.split(command), is_ready
        self._process: subprocess.Popen[bytes] | None = None
        self.on = False

    def hold(self, wanted: bool) -> bool:
        """Whether the API is away, or may be."""
        if wanted and not self.on:
            self.on = True
            if self._command:
                self._process = subprocess.Popen(self._command)
        elif not wanted and self.on:
            self.end()
            self.on = not self._is_ready()
        return self.on

    def end(self) -> None:
        """Ends the command, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def apis_below(pid: int) -> list[int]:
    """The API processes that `pid` has started."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,command="], capture_output=True, text=True, check=True).stdout
    found = []
    for line in table.splitlines():
        child, parent, command = line.split(None, 2)
        if int(parent) == pid and _WORDS in command:
            found.append(int(child))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.locust_outage", description="Kills an API again and again."
    )
    parser.add_argument("--below", type=int, required=True, help="process id of the `pulsegate run`")
    pid = parser.parse_args(argv).below
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(number))
    if not apis_below(pid):
        print(f"--below: process {pid} has started no API", file=sys.stderr)
        return 1
    while not stopped:
        for child in apis_below(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(_EVERY_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
