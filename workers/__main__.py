"""The workers' composition root: `python -m workers worker|scheduler`, which is what `pulsegate worker` starts."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from engine.log import configure
from engine.settings import Settings
from workers.runtime import runtime
from workers.scheduler import schedule
from workers.tenure import TenureWorker


def worker() -> None:
    """One RQ worker, until SIGTERM or SIGINT."""
    run = runtime(Settings.from_env(os.environ))
    logging.getLogger("rq.worker").setLevel("WARNING")
    TenureWorker([run.queue], connection=run.rq).work(logging_level="WARNING")


def scheduler() -> None:
    run = runtime(Settings.from_env(os.environ))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    schedule(run, stop)


if __name__ == "__main__":
    configure(os.environ.get("PULSEGATE_LOG_LEVEL", "info"))
    {"worker": worker, "scheduler": scheduler}[sys.argv[1]]()
