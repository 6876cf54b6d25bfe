"""`python -m engine.quality.server OPTIONS`: the process in which DuckDB runs. It answers one question at a time, over its standard input and
output, and ends with them; whoever asks is `engine/quality/ask.py`.

The frames are in `ask_frames.py`. `OPTIONS` is JSON: `threads`, `memory_bytes`, `root` (the lake's folder, the only one that is read),
`partitions`. The lake's files are looked up here, too, so that whoever asks needs no library that can read them.

The database is in memory and knows nothing but those files: no network, no extensions, no other paths, and its settings are locked.
"""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import orjson
import pyarrow as pa

from engine.errors import PulsegateError, Unavailable
from engine.lake import Lake
from engine.lake.forms import absent
from engine.lake.layout import SCHEMA as EVENTS
from engine.quality import ask_frames
from engine.quality.ask_hours import Hours
from engine.quality.ask_jobs import JOBS
from engine.quality.columns import SCHEMA as FACTS
from engine.quality.files import QUALITY, TOPIC

NICE = 10
RELATIONS = {"facts": FACTS, "events": EVENTS, "heartbeats": EVENTS}
_TYPES = {"string": "VARCHAR", "int32": "INTEGER", "int64": "BIGINT", "double": "DOUBLE", "bool": "BOOLEAN", "binary": "BLOB",
          "timestamp[ms]": "TIMESTAMP", "map<string, string>": "MAP(VARCHAR, VARCHAR)"}  # fmt: skip


class Cancelled(Exception):
    """Whoever asked does not want to know any more."""


class Lakes:
    """Of facts and of events, by the relations' names."""

    def __init__(self, root: str, partitions: int) -> None:
        self._events = Lake(Path(root), partitions=partitions)
        self._facts = Lake(Path(root) / QUALITY, partitions=partitions)

    def look(self, reads: Sequence[str], start: int, end: int) -> dict[str, list[str]]:
        """The files that may hold something of that time."""
        return {name: [str(path) for path in self._files(name, start, end)] for name in reads}

    def _files(self, name: str, start: int, end: int) -> Sequence[Path]:
        return self._facts.files(TOPIC, start, end) if name == "facts" else self._events.files(name, start, end)


class Database:
    """DuckDB, asked by one thread and interrupted by another."""

    def __init__(self, threads: int, memory_bytes: int, root: str) -> None:
        self._connection = duckdb.connect(
            ":memory:",
            config={
                "threads": threads, "memory_limit": f"{memory_bytes}B", "temp_directory": "", "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false", "allow_community_extensions": "false",
                "python_enable_replacements": "false",
            },
        )  # fmt: skip
        allowed = root.rstrip("/") + "/"
        for setting in (
            # As a pattern, too: that is how it is asked for.
            f"allowed_directories = [{_quoted(allowed)}, {_quoted(_plain(allowed))}]", "enable_external_access = false",
            "parquet_metadata_cache = true", "preserve_insertion_order = false", "lock_configuration = true",
        ):  # fmt: skip
            self._connection.execute(f"SET {setting}")
        self.hours = Hours()
        self._files: Mapping[str, Sequence[str]] = {}
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._made: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()
        self._now = 0
        self._cancelled: set[int] = set()
        self._mixed = False

    def begin(self, ident: int, files: Mapping[str, Sequence[str]]) -> None:
        """The question that is answered from now on, and its relations."""
        with self._lock:
            self._now = ident
        self._files = files
        self._wanted = {name: tuple(files.get(name, ())) for name in RELATIONS}

    def files(self, name: str) -> Sequence[str]:
        """What the relation was given."""
        return self._files.get(name, ())

    def use(self, name: str, files: Sequence[str]) -> None:
        """From now on the relation is what these files hold."""
        self._wanted[name] = tuple(files)

    def end(self) -> None:
        with self._lock:
            self._cancelled = {ident for ident in self._cancelled if ident > self._now}
            self._now = 0

    def cancel(self, ident: int) -> None:
        """From another thread: the question, if it is being answered, or as soon as it is."""
        with self._lock:
            self._cancelled.add(ident)
            if self._now == ident:
                self._connection.interrupt()

    def rows(self, sql: str, params: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Raises Cancelled, duckdb.Error."""
        with self._lock:
            if self._now in self._cancelled:
                raise Cancelled
        try:
            return self._ask(sql, params, self._mixed)
        except (duckdb.BinderException, duckdb.InvalidInputException):
            if self._mixed:
                raise
            # Some files may be older than a column: from then on all are read by the columns' names.
            self._made.clear()
            found = self._ask(sql, params, True)
            self._mixed = True
            return found

    def _ask(self, sql: str, params: dict[str, Any] | None, mixed: bool) -> list[tuple[Any, ...]]:
        for name, files in self._wanted.items():
            # Making a view opens a file: only where it is needed, and not twice.
            if name in sql and self._made.get(name) != files:
                self._made.pop(name, None)
                relation = _relation(files, RELATIONS[name], mixed)
                self._connection.execute(f"CREATE OR REPLACE TEMP VIEW {name} AS {relation}")
                self._made[name] = files
        return self._connection.execute(sql, params or {}).fetchall()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _plain(path: str) -> str:
    """A path that is no pattern."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def _relation(files: Sequence[str], schema: pa.Schema, mixed: bool) -> str:
    """SQL of all rows of these files. `mixed`: some were written before a column was added, and have in it what `engine/lake/forms.py`
    puts there. Reading so takes about an eighth longer, twice as long where each file's own columns were looked at first."""
    if files:
        named = ""
        if mixed:
            columns = ", ".join(f"{_quoted(field.name)}: {_column(field)}" for field in schema)
            named = f", schema = MAP {{{columns}}}"
        paths = ", ".join(map(_quoted, map(_plain, files)))
        return f"SELECT * FROM read_parquet([{paths}], hive_partitioning = false, filename = true{named})"
    columns = ", ".join(f'NULL::{_TYPES[str(field.type)]} AS "{field.name}"' for field in schema)
    return f"SELECT {columns}, '' AS filename WHERE false"


def _column(field: pa.Field) -> str:
    lacking = absent(field.type)
    default = "NULL" if lacking is None else _quoted(str(lacking))
    return f"{{name: {_quoted(field.name)}, type: '{_TYPES[str(field.type)]}', default_value: {default}}}"


def answer(lakes: Lakes, database: Database, question: Mapping[str, Any]) -> tuple[int, bytes]:
    """(status, JSON). Where a file was replaced between the looking up and the reading, once more from the start."""
    for _ in range(2):
        answered = _answer(lakes, database, question)
        if answered is not None:
            return answered
    return _error("query_files_gone", "files were replaced while they were read; ask again", kind=Unavailable.__name__)


def _answer(lakes: Lakes, database: Database, question: Mapping[str, Any]) -> tuple[int, bytes] | None:
    """None: a file has gone."""
    files: Mapping[str, Sequence[str]] = {}
    try:
        files = lakes.look(question["reads"], question["from"], question["to"])
        database.begin(question["id"], files)
        return 0, orjson.dumps(JOBS[question["do"]](database, question["args"]))
    except (Cancelled, duckdb.InterruptException):
        return _error("query_cancelled", "cancelled", kind="Cancelled")
    except PulsegateError as error:
        return _error(error.code, error.message, error.field, type(error).__name__)
    except duckdb.OutOfMemoryException:
        return _error("query_too_large", "this needs more memory than a question may use; ask for less")
    except Exception as error:  # whatever it is, the next question can be answered
        if any(not Path(path).exists() for paths in files.values() for path in paths):
            return None
        print(f"quality: {question['do']}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return _error("internal", "an error of ours; it has been logged")
    finally:
        database.end()


def _error(code: str, message: str, field: str | None = None, kind: str = "") -> tuple[int, bytes]:
    """`kind`: which class of engine/errors.py the asker raises."""
    return 1, orjson.dumps({"code": code, "message": message, "field": field, "kind": kind})


def serve(lakes: Lakes, database: Database, source: BinaryIO, sink: BinaryIO) -> None:
    """Until `source` ends. Reads on while a question is answered, so that it can be cancelled."""
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def work() -> None:
        while True:
            question = waiting.get()
            status, body = answer(lakes, database, question)
            try:
                sink.write(ask_frames.answer(question["id"], status, body))
                sink.flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    threading.Thread(target=work, name="work", daemon=True).start()
    while (frame := ask_frames.read(source)) is not None:
        said = orjson.loads(frame)
        if "cancel" in said:
            database.cancel(said["cancel"])
        else:
            waiting.put(said)


def main() -> None:
    os.nice(NICE)
    options = orjson.loads(sys.argv[1])
    # Whatever else writes to standard output must not come between the answers.
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        database = Database(options["threads"], options["memory_bytes"], options["root"])
        serve(Lakes(options["root"], options["partitions"]), database, sys.stdin.buffer, sink)
        # A question under way is nobody's any more.
        os._exit(0)


if __name__ == "__main__":
    main()
