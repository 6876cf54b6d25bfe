"""The child process that answers questions, with some more to be asked in tests: `python -m tests.quality_child OPTIONS`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from engine.quality import server
from engine.quality.ask_jobs import JOBS


def _long(database: Any, args: dict[str, Any]) -> Any:
    return database.rows("SELECT count(*) FROM range(100_000_000_000) a(i) WHERE sin(i) > 2")


def _deaf(database: Any, args: dict[str, Any]) -> Any:
    time.sleep(60)  # heeds no interruption


def _large(database: Any, args: dict[str, Any]) -> Any:
    return database.rows("SELECT count(*) FROM (SELECT DISTINCT i, repeat('x', 300) FROM range(10_000_000) a(i))")


def _die(database: Any, args: dict[str, Any]) -> Any:
    os.kill(os.getpid(), 9)


def _loud(database: Any, args: dict[str, Any]) -> Any:
    print("this is no answer", flush=True)
    return args


def _broken(database: Any, args: dict[str, Any]) -> Any:
    raise ValueError("no name of a file or a secret in here")


def _away(database: Any, args: dict[str, Any]) -> Any:
    """A file is taken away before it is read, for the first time, or each time."""
    path = Path(database.files("facts")[0])
    hidden = path.with_suffix(".away")
    if path.exists():
        path.rename(hidden)
    elif not args["always"]:
        hidden.rename(path)
    return database.rows("SELECT count(*) FROM facts")[0][0]


def _count(database: Any, args: dict[str, Any]) -> Any:
    return {
        "pid": os.getpid(),
        "nice": os.nice(0),
        "env": sorted(os.environ),
        "rows": database.rows("SELECT count(*) FROM facts")[0][0],
    }


JOBS |= {
    "long": _long,
    "deaf": _deaf,
    "large": _large,
    "die": _die,
    "loud": _loud,
    "broken": _broken,
    "away": _away,
    "count": _count,
}

if __name__ == "__main__":
    server.main()
