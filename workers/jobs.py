"""All background work, by name: what the scheduler keeps alive and an RQ job runs a tenure of.

| job               | groups | does                                                     |
|-------------------|--------|----------------------------------------------------------|
| sweep             | all    | ends overdue views                                       |
| mirror            | all    | outbox → event log                                       |
| consume-<name>    | all    | a projection: each class in `pulsegate.consumers`        |
| export-<name>     | all    | a configured sink: each class in `pulsegate.sinks`       |
| maintain          | one    | trims the log, tidies projections and lake, ends lost views |
| alerts            | one    | judges the alerts on stream quality, if there are any    |
| trending          | one    | counts who watches what, all partitions together         |
"""

from __future__ import annotations

import os

from rq import Retry

from engine.settings import Settings
from workers import consumer, sinks
from workers.consume import Consume
from workers.export import Export
from workers.maintain import Maintain
from workers.mirror import Mirror
from workers.runtime import Runtime, runtime
from workers.sweep import Sweep
from workers.tenure import Ownership, Work, enqueue, serve
from workers.trending import Trending

BACKOFF_S = (1, 2, 5, 10, 30, 60, 120, 300, 600)
"""A tenure that fails is retried by RQ after so many seconds; then it stays in RQ's failure registry and the scheduler
queues another."""


def jobs(settings: Settings) -> list[str]:
    """The names of every job these settings ask for."""
    consume = [f"consume-{name}" for name in consumer.names()]
    export = [f"export-{name}" for name in sinks.configured(settings)]
    alerts = ["alerts"] if settings.alerts_file and settings.lake_dir else []
    by_clock = [] if settings.virtual_clock else ["sweep", "trending"]  # else workers/virtual.py does them
    return [*by_clock, "mirror", "maintain", *alerts, *consume, *export]


def work(run: Runtime, job: str, group: int, ownership: Ownership) -> Work:
    """The job's work on the group. Loads only what this job needs: a broken plug-in stops only itself."""
    kind, _, name = job.partition("-")
    match kind:
        case "sweep":
            return Sweep(run, group)
        case "mirror":
            return Mirror(run, group, ownership)
        case "maintain":
            return Maintain(run, ownership)
        case "trending":
            return Trending(run, ownership)
        case "alerts":
            from workers.alerts import Alerts  # brings the lake and its Parquet library with it

            return Alerts(run, ownership)
        case "consume":
            return Consume(run, group, ownership, consumer.load(name))
        case "export":
            return Export(run, group, ownership, sinks.load(name))
    raise ValueError(f"no job {job!r}")


def groups(settings: Settings, job: str) -> range:
    return range(1 if job in ("maintain", "trending", "alerts") else settings.groups)


def queue_tenure(run: Runtime, job: str, group: int) -> None:
    """Queues the job's next tenure, unless one is waiting."""
    retry = Retry(max=len(BACKOFF_S), interval=list(BACKOFF_S))
    enqueue(run.queue_of(job), job, group, timeout_s=run.settings.tenure_s + 600, retry=retry)


def tenure(job: str, group: int) -> int:
    """The RQ job. Returns how much its tenure got done; 0 if the group is another's."""
    run = runtime(Settings.from_env(os.environ))
    ownership = Ownership(run, job, group)
    if not ownership.acquire():
        return 0
    try:
        found = work(run, job, group, ownership)
    except BaseException:
        ownership.release()
        raise
    queue = run.queue_of(job)
    done = serve(ownership, found, lambda: int(queue.count), seconds=run.settings.tenure_s)
    queue_tenure(run, job, group)
    return done
