"""A tenure: an RQ job that owns a group of partitions for some seconds, works on it, and hands over.

A job per heartbeat is out of the question (RQ runs a few hundred a second), so a job is a stretch of work. Ownership
is a short lease in the log Redis: a worker that dies loses it within `OWNER_MS`, and the scheduler, which watches it,
queues the next tenure. A tenure that ends in order queues its successor itself, so work goes on without a scheduler.
Where fewer workers run than there are tenures, they take turns: one that sees another waiting hands over early.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis.exceptions import RedisError
from rq import Queue, Retry, SimpleWorker
from rq.registry import ScheduledJobRegistry

from engine.errors import ConfigError
from engine.stopping import Stop
from workers.runtime import Runtime

log = logging.getLogger(__name__)

FUNCTION = "workers.jobs.tenure"
OWNER_MS = 5_000
GROUPS_MS = 2 * OWNER_MS
"""The count of groups outlives every ownership that was taken under it."""
TURN_S = 0.4
"""A tenure works at least this long before it lets another have its worker."""
_RENEW_S = 1.0

stopping = Stop()
"""Set when this worker was asked to stop: a tenure then hands over at once."""


class TenureWorker(SimpleWorker):
    """An RQ worker in one process whose SIGTERM ends the tenure under way instead of waiting for it."""

    def request_stop(self, signum: int, frame: object) -> None:
        stopping.set()
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]


class LostOwnership(Exception):
    """Another worker owns the partitions by now; what was not committed is its to do."""


class OtherGroups(ConfigError):
    """Workers that count groups differently are at work: the same partitions would be handled by two."""


class Ownership:
    """The lease on one group of one job. `token` is what every write on behalf of it checks (`key` must hold it).

    Into how many groups the partitions are divided is leased along with it: as long as anybody owns anything, nobody
    who counts differently can.
    """

    def __init__(self, run: Runtime, job: str, group: int) -> None:
        self.key = run.keys.owner(job, group)
        self.token = uuid.uuid4().hex
        self._keys, self._groups = [self.key, run.keys.groups], run.settings.groups
        self._renewed = 0.0
        self._take = run.log.register_script(_TAKE)
        self._renew = run.log.register_script(_RENEW)
        self._release = run.log.register_script(_RELEASE)

    def acquire(self) -> bool:
        """Whether it was free. Raises OtherGroups."""
        return self._taken("NX")

    def seize(self) -> None:
        """Takes it from whoever has it: that one's next write is refused. Raises OtherGroups."""
        self._taken("")

    def _taken(self, mode: str) -> bool:
        self._renewed = time.monotonic()
        code, groups = self._take(keys=self._keys, args=[self.token, OWNER_MS, self._groups, GROUPS_MS, mode])
        if code == -1:
            raise OtherGroups(
                f"PULSEGATE_GROUPS is {self._groups} here and {int(groups)} where others are at work: stop them first",
                field="PULSEGATE_GROUPS",
            )
        return bool(code)

    def renew(self) -> None:
        """Keeps it, if it is time. Raises LostOwnership."""
        if time.monotonic() - self._renewed < _RENEW_S:
            return
        if not self._renew(keys=self._keys, args=[self.token, OWNER_MS, GROUPS_MS]):
            raise LostOwnership(self.key)
        self._renewed = time.monotonic()

    def release(self) -> None:
        self._release(keys=[self.key], args=[self.token])


_TAKE = """
local groups = redis.call('GET', KEYS[2])
if groups and groups ~= ARGV[3] then return {-1, groups} end
local taken
if ARGV[5] == 'NX' then
  taken = redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX')
else
  taken = redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
if taken then redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4]) end
return {taken and 1 or 0, ARGV[3]}
"""
_RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class Keeper:
    """Keeps ownerships from a thread, for as long as something takes that cannot renew them itself."""

    def __init__(self, *owned: Ownership) -> None:
        self._owned = list(owned)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def keep(self, ownership: Ownership) -> None:
        """One more."""
        self._owned.append(ownership)

    def _keep(self) -> None:
        try:
            while not self._over.wait(_RENEW_S):
                for ownership in list(self._owned):
                    ownership.renew()
        except (LostOwnership, RedisError, OSError) as error:
            # The commit finds out for itself.
            log.warning("not_kept", extra={"why": str(error)})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()


class Work(ABC):
    """What a tenure does. Built when it begins, closed when it ends."""

    @abstractmethod
    def step(self, wait_s: float) -> int:
        """One round; how much it got done. With nothing to do it waits for work, at most `wait_s`.

        Raises LostOwnership; any other error fails the RQ job, and RQ retries it.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Lets go of what the tenure held."""


def serve(ownership: Ownership, work: Work, wanted: Callable[[], int], *, seconds: float) -> int:
    """Works while the group is ours, until `seconds` are over, the worker stops, or other jobs are `wanted` of it.

    Returns how much was done. The caller has acquired the ownership; it is released here.
    """
    done, began = 0, time.monotonic()
    try:
        while True:
            done += work.step(0.2)
            ownership.renew()
            held = time.monotonic() - began
            if stopping.is_set() or held >= seconds or (held >= TURN_S and wanted()):
                return done
    except LostOwnership:
        return done
    finally:
        try:
            work.close()
        finally:
            ownership.release()


def enqueue(queue: Queue, job: str, group: int, *, timeout_s: float, retry: Retry) -> None:
    """Queues the next tenure, unless one is waiting already, in the queue or for its retry."""
    if not waiting(queue, job, group):
        job_id = f"{_prefix(job, group)}{uuid.uuid4().hex[:8]}"
        options: dict[str, Any] = {"job_timeout": int(timeout_s), "result_ttl": 60, "failure_ttl": 86_400}
        queue.enqueue(FUNCTION, job, group, job_id=job_id, description=f"{job} {group}", retry=retry, **options)


def waiting(queue: Queue, job: str, group: int) -> bool:
    """Whether a tenure for the group is queued and not yet taken, or scheduled for a retry."""
    prefix = _prefix(job, group)
    scheduled = ScheduledJobRegistry(queue=queue).get_job_ids(cleanup=False)
    return any(found.startswith(prefix) for found in (*queue.get_job_ids(), *scheduled))


def _prefix(job: str, group: int) -> str:
    return f"{job}_{group}_"
