"""`python -m workers health worker|scheduler`: is that part doing its work? Exit status 0, or 1 and why.

A group of partitions that nobody owns tells who failed. If a tenure waits in the queue, the workers do not take it;
if none waits, the schedulers have queued none. A hand-over leaves a group without owner for moments, so only what
lasts longer than an owner's lease counts.
"""

from __future__ import annotations

import os
import socket
import sys
import time

from redis.exceptions import RedisError
from rq import Worker

from engine.errors import PulsegateError
from engine.settings import Settings
from workers import sweep
from workers.runtime import Runtime, runtime
from workers.tenure import OWNER_MS, waiting

ROLES = ("worker", "scheduler")
PATIENCE_S = OWNER_MS / 1000 + 2


def health(role: str, patience_s: float = PATIENCE_S) -> int:
    """The exit status: 0 as soon as nothing is wrong, 1 if something is all the time."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            wrong = problem(runtime(Settings.from_env(os.environ)), role)
        except (RedisError, PulsegateError) as error:
            wrong = str(error)
        if not wrong:
            return 0
        if time.monotonic() >= deadline:
            print(f"{role}: {wrong}", file=sys.stderr)
            return 1
        time.sleep(0.25)


def problem(run: Runtime, role: str) -> str:
    """What is wrong with the role now; '' if nothing is. Raises redis-py's errors."""
    if role == "worker" and not _works_here(run):
        return f"RQ knows no living worker on {socket.gethostname()}"
    for group in range(run.settings.sweep_groups):
        if run.rq.exists(run.keys.owner("sweep", group)):
            continue
        queued = waiting(run.queue, sweep.FUNCTION, group)
        if role == "worker" and queued:
            return f"a tenure for group {group} waits and nobody takes it"
        if role == "scheduler" and not queued:
            return f"group {group} has no owner and no tenure is queued"
    return ""


def _works_here(run: Runtime) -> bool:
    """Whether a worker that RQ has registered from this host is a living process."""
    here = [worker.pid for worker in Worker.all(connection=run.rq) if worker.hostname == socket.gethostname()]
    return any(pid and _lives(pid) for pid in here)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
