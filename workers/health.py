"""`python -m workers health worker|scheduler`: is that part doing its work? Exit status 0, or 1 and why.

A group of partitions that nobody owns tells who failed: if no tenure for it waits in the queue, the schedulers have queued
none. If tenures wait and no group at all has an owner, the workers take none. A hand-over leaves a group without owner for
moments, so only what lasts longer than an owner's lease counts.
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
from workers.jobs import groups, jobs
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
    owned = queued = 0
    for job in jobs(run.settings):
        for group in groups(run.settings, job):
            if run.log.exists(run.keys.owner(job, group)):
                owned += 1
            elif waiting(run.queue_of(job), job, group):
                queued += 1
            elif role == "scheduler":
                return f"group {group} of {job} has no owner and no tenure is queued"
    if role == "worker" and queued and not owned:
        return f"{queued} tenures wait and nobody takes them"
    return ""


def _works_here(run: Runtime) -> bool:
    """Whether a worker that RQ has registered from this host is a living process."""
    here = [worker.pid for worker in Worker.all(connection=run.log) if worker.hostname == socket.gethostname()]
    return any(pid and _lives(pid) for pid in here)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
