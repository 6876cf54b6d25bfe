"""The truth: what physically happened and what was sent, one JSON object a line, each with its `type` and `at` (ms of server time).

| type | fields |
|---|---|
| `run` | the first line: `seed`, `start` (of what is to be judged), `parts` ([[from, to], …]: the prelude if there is one, and the run), `options`, `plans`, `tick_ms`, `version` |
| `household` | `account`, `plan`, `limit`, `mode`, `unit`, `honest`, `devices` [{`device`, `machine`, `device_type`, `backend_only`, `skew_ms`}], `profiles`, `tempers` |
| `request` | what reached the server and was answered: `n` (the order in which the server got it, within an account), `call` (heartbeat, edge, signal, stop, check, takeover), `account`, `device`, `machine`, `session`, `content`, `seq`, `state`, `position`, `evidence`, `sent_at`, `late` (delivered after later ones may have been), `repeated` (delivered once more), `attempt` (0, or 1 and 2 for what is sent again), `lost_answer`; the answer: `status`, `decision`, `reason`, `rule`, `degraded`, `duplicate`, `retry_at`, `by`, `last_seq` (less than `seq`: answered on the slot of its device's newer session) |
| `lost` | the same of what never reached the server, without an answer |
| `play` | a stretch of a view: `account`, `profile`, `device`, `machine`, `session`, `content`, `kind`, `started_at`, `ended_at`, `from_position`, `to_position` (s), `state` (starting, playing, paused, buffering, seeking, ad), `rate` |
| `view` | one content watched in one session: the same ids, `started_at`, `ended_at`, `end` (stop, power_off, sleep, zap, finished, error, blocked, crash, still_running), `played_ms`, `last_position`, `duration`, `last_delivered_at`, `last_delivered_position`, `delivered`, `admitted`, `completed` |
| `surge` | `content`, `kind`, `from`, `to`, `factor`, `viewers_before`, `decoy` (a rise that must not be listed), `why` |
| `sample` | every 30 s: `viewers`, content → who physically plays; `accounts`, content → of how many accounts; `admitted`, content → views that the server has let in and that are there, pauses of up to five minutes included |
| `observed` | what the engine said at that moment (observe.py) |
| `end` | `counts`: requests by call and by answer |

A view is one *physical* view. It goes on through a restart of the app that keeps its session, and through a sleep of less than half an hour.
Nothing is played while the app restarts or the laptop sleeps: there is no `play` line for that time. `device` is the id the
player sends, `machine` what it really is: two machines of a cheat may share a device id. Devices that only fetch name no session;
their views have one made up here (`edge:…`), and their requests have none.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import orjson

VERSION = 1


class Truth:
    """Writes to a file; without one only counts. Use it as a context manager."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.counts: Counter[str] = Counter()
        self.lines = 0

    def __enter__(self) -> Self:
        if self._path is not None:
            self._file = self._path.open("wb", buffering=1 << 20)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, line: dict[str, Any]) -> None:
        self.lines += 1
        if self._file is not None:
            self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
