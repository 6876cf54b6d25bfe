"""`pulsegate drain`: works one job until nothing is left, here and now, and says how fast that was.

It owns the groups as a tenure would, so it may run beside workers: before a session Redis is switched off (`drain mirror`),
to see what a consumer or sink can do on this machine, or what its events do to it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from engine.errors import PulsegateError
from workers.consume import Consume
from workers.export import Export, Postponed
from workers.jobs import groups, jobs, work
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership, Work, stopping

_EMPTY_ROUNDS = 2
"""A consumer that had to catch up from the lake may find nothing new in that round, and something in the next."""

_WAIT_S = 0.5
"""Not longer, so that ownership is renewed."""


@dataclass(frozen=True, slots=True)
class Drained:
    """`events`: what the job's rounds count; views for the sweep. `cpu_seconds` are this process's own, without the servers'; both are of the rounds
    only, not of starting up. `complete`: nothing was left; False if it was asked to stop before."""

    job: str
    groups: tuple[int, ...]
    events: int
    seconds: float
    cpu_seconds: float
    complete: bool

    def to_json(self) -> dict[str, Any]:
        rates = {
            "events_per_s": round(self.events / max(self.seconds, 1e-9)),
            "events_per_cpu_s": round(self.events / max(self.cpu_seconds, 1e-9)),
        }
        return asdict(self) | rates

    def text(self) -> str:
        said = self.to_json()
        end = "" if self.complete else "; stopped before the end"
        return (
            f"{self.job}: {self.events:,} events in {self.seconds:.2f} s ({said['events_per_s']:,}/s), "
            f"{self.cpu_seconds:.2f} s of CPU ({said['events_per_cpu_s']:,}/s){end}"
        )


def drain(run: Runtime, job: str, group: int | None = None, *, seize: bool = False, seconds: float = 0.0) -> Drained:
    """Works the job's groups, one after the other; None: all of them. Each for `seconds` at least, with what comes meanwhile.

    Raises PulsegateError if there is no such job or group, if a group is another's (unless `seize`d), or a sink is being
    left alone; and whatever the job fails with.
    """
    if job not in (known := jobs(run.settings)):
        raise PulsegateError(f"no job {job!r}; there are {', '.join(sorted(known))}")
    wanted = groups(run.settings, job)
    if group is not None and group not in wanted:
        raise PulsegateError(f"{job} has no group {group}; the last is {wanted[-1]}")
    chosen = tuple(wanted) if group is None else (group,)
    events, spent, cpu = 0, 0.0, 0.0
    complete = True
    for each in chosen:
        ownership = _own(run, job, each, seize)
        try:
            found = work(run, job, each, ownership)
            if isinstance(found, Export | Consume):
                found.gathers = False
            try:
                wall, used = time.monotonic(), time.process_time()
                done, complete = _finish(found, ownership, seconds)
                events += done
                spent += time.monotonic() - wall
                cpu += time.process_time() - used
            finally:
                found.close()
        except LostOwnership:
            raise PulsegateError(f"{job}: another worker took group {each} over", code="conflict") from None
        except Postponed as error:
            raise PulsegateError(f"{job}: {error}", code="postponed") from None
        finally:
            ownership.release()
        if not complete:
            break
    return Drained(job, chosen, events, spent, cpu, complete)


def _own(run: Runtime, job: str, group: int, seize: bool) -> Ownership:
    ownership = Ownership(run, job, group)
    if seize:
        ownership.seize()
    elif not ownership.acquire():
        raise PulsegateError(
            f"{job}: another worker owns group {group}; --seize takes it over, and its next write is refused",
            code="conflict",
        )
    return ownership


def _finish(found: Work, ownership: Ownership, seconds: float) -> tuple[int, bool]:
    """How much was done, and whether that was all."""
    done, empty, until = 0, 0, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 or empty < _EMPTY_ROUNDS:
        if stopping.is_set():
            return done, False
        step = found.step(max(0.0, min(left, _WAIT_S)))
        ownership.renew()
        done += step
        empty = 0 if step else empty + 1
    return done, True


def stop_on_signals(numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
    """SIGTERM and Ctrl-C end the round under way in order, and hand over."""
    for number in numbers:
        signal.signal(number, lambda *_: stopping.set())
