"""A tenure: an RQ job that owns a group of partitions for some seconds, works on it, and hands over.

A job per heartbeat is out of the question (RQ runs a few hundred a second), so a job is a stretch of work. Ownership
is a short lease in RQ's Redis: a worker that dies loses it within `OWNER_MS`, and the scheduler, which watches it,
queues the next tenure. A tenure that ends in order queues its successor itself, so work goes on without a scheduler.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from redis import Redis
from rq import Queue, SimpleWorker

from engine.keys import Keys
from engine.stopping import Stop

QUEUE = "tenures"
OWNER_MS = 5_000

stopping = Stop()
"""Set when this worker was asked to stop: a tenure then hands over at once."""


class TenureWorker(SimpleWorker):
    """An RQ worker in one process whose SIGTERM ends the tenure under way instead of waiting for it."""

    def request_stop(self, signum: int, frame: object) -> None:
        stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


class Ownership:
    """The lease on one group of one job."""

    def __init__(self, client: Redis, keys: Keys, job: str, group: int) -> None:
        self._client = client
        self._key = keys.owner(job, group)
        self._name = uuid.uuid4().hex
        self._renew = client.register_script(_RENEW)
        self._release = client.register_script(_RELEASE)

    def acquire(self) -> bool:
        return bool(self._client.set(self._key, self._name, nx=True, px=OWNER_MS))

    def renew(self) -> bool:
        """False if another owns the group by now."""
        return bool(self._renew(keys=[self._key], args=[self._name, OWNER_MS]))

    def release(self) -> None:
        self._release(keys=[self._key], args=[self._name])


_RENEW = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


def serve(
    ownership: Ownership, work: Callable[[], None], *, seconds: float, every_s: float, successor: Callable[[], None]
) -> int:
    """Works every `every_s` while the group is ours, until `seconds` are over or the worker stops. Rounds worked."""
    if not ownership.acquire():
        return 0
    rounds, until = 0, time.monotonic() + seconds
    try:
        while True:
            started = time.monotonic()
            work()
            rounds += 1
            pause = max(0.0, every_s - (time.monotonic() - started))
            if stopping.wait(pause) or time.monotonic() >= until:
                break
            if not ownership.renew():
                return rounds
    finally:
        ownership.release()
    successor()
    return rounds


def enqueue(queue: Queue, function: str, group: int, *, timeout_s: float) -> None:
    """Queues the next tenure, unless one is waiting already."""
    if not waiting(queue, function, group):
        job_id = _prefix(function, group) + uuid.uuid4().hex[:8]
        queue.enqueue(function, group, job_id=job_id, job_timeout=int(timeout_s), result_ttl=60)


def waiting(queue: Queue, function: str, group: int) -> bool:
    """Whether a tenure for the group is queued and not yet taken."""
    return any(job.startswith(_prefix(function, group)) for job in queue.get_job_ids())


def _prefix(function: str, group: int) -> str:
    return f"{function.rsplit('.', 1)[-1]}-{group}-"
