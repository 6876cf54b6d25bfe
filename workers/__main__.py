"""The workers' composition root: `python -m workers worker|asker|exporter SINK|scheduler|clock`, which is what `pulsegate worker`
starts, and `python -m workers health worker|scheduler`, which says whether they do their work.
"""

from __future__ import annotations

import logging
import os
import sys

from rq import Queue

from engine import lifeline
from engine.errors import PulsegateError
from engine.log import configure
from engine.private import keep_private
from engine.settings import Settings
from engine.stopping import Stop
from workers import commands
from workers.deadcli import dead
from workers.health import ROLES, health
from workers.runtime import Runtime, runtime
from workers.scheduler import schedule
from workers.tenure import TenureWorker
from workers.virtual import follow

_NICE = 10


def _settings() -> Settings:
    settings = Settings.from_env(os.environ)
    keep_private(settings)
    return settings


def worker() -> None:
    """One RQ worker for tenures, until SIGTERM or SIGINT."""
    run = runtime(_settings())
    _work(run, run.queue)


def exporter(sink: str) -> None:
    """The same for one sink's exports only."""
    run = runtime(_settings())
    _work(run, run.queue_of(f"export-{sink}"))


def asker() -> None:
    """The same for what the API asks for, behind all others where processors are scarce."""
    os.nice(_NICE)
    run = runtime(_settings())
    _work(run, run.asks)


def _work(run: Runtime, queue: Queue) -> None:
    logging.getLogger("rq.worker").setLevel("WARNING")
    TenureWorker([queue], connection=run.log).work(logging_level="WARNING")


def scheduler() -> None:
    run = runtime(_settings())
    schedule(run, Stop.on_signals())


def clock() -> None:
    """What a simulation has in place of two tenures, until SIGTERM or SIGINT."""
    follow(runtime(_settings()), Stop.on_signals())


def main(arguments: list[str]) -> int:
    """The exit status: 0 done, 1 not healthy, 2 wrong use."""
    match arguments:
        case ["worker"]:
            worker()
        case ["exporter", sink]:
            exporter(sink)
        case ["asker"]:
            asker()
        case ["scheduler"]:
            scheduler()
        case ["clock"]:
            clock()
        case ["health", role] if role in ROLES:
            return health(role)
        case ["replay" | "status" | "drain" | "verify" | "new-consumer", *_]:
            return commands.main(arguments)
        case ["dead", *rest]:
            return dead(rest)
        case _:
            print("usage: python -m workers [health] worker|asker|exporter SINK|scheduler|clock", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    lifeline.hold()
    configure(os.environ.get("PULSEGATE_LOG_LEVEL", "info"))
    try:
        sys.exit(main(sys.argv[1:]))
    except PulsegateError as error:
        print(f"workers: {error.message}", file=sys.stderr)
        sys.exit(1)
