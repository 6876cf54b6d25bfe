"""Ends the views that the event log saw begin and that the session Redis has forgotten, with reason `lost`.

A session server that lost its last second, or was emptied, will never sweep them. Found in three steps, so that no view ends twice:
the projection shows it open and long silent; the session Redis does not know it; and the projection, having
handled everything that was in the outbox at that moment, shows it open still.
"""

from __future__ import annotations

from typing import Any

import orjson

from engine import scripts
from engine.events import order
from engine.partitions import partition_of
from workers.consume import live_generation
from workers.runtime import Runtime
from workers.views import Views

BATCH = 500
SILENCE = 2
"""Lifetimes of silence after which the session Redis is asked; the sweep needs one and a second."""
REQUEST_MS = 3_600_000
_RUNS = ("r", "e", "t")


class Lost:
    """Remembers between its rounds whom the session Redis did not know, and where the outbox stood then."""

    def __init__(self, run: Runtime) -> None:
        self._run = run
        self._suspects: dict[tuple[str, str, int], str] = {}
        """Account, session and start of a view → its outbox's last id."""

    def end(self) -> int:
        """One round; how many views were ended."""
        run, ended = self._run, 0
        generation = live_generation(run, Views.name)
        views = Views(run.log, run.keys.projection(Views.name, generation), run.settings)
        seconds, _ = run.log.time()
        silent = views.open_before((int(seconds) * 1000) - SILENCE * run.settings.lifetime_ms, BATCH)
        reached: Any = run.log.hgetall(run.keys.cursor(Views.name, generation))
        before, self._suspects = self._suspects, {}
        for view in silent:
            name = view["account"], view["session"], view["started_at"]
            partition = partition_of(view["account"], run.settings.partitions)
            if self._known(view):
                continue
            outbox = before.get(name)
            if outbox is None:
                self._suspects[name] = self._last_id(partition)
            elif order(reached.get(b"%d" % partition, b"0-0").decode()) < order(outbox):
                self._suspects[name] = outbox
            else:
                ended += self._end(view)
        return ended

    def _known(self, view: dict[str, Any]) -> bool:
        """Whether the session Redis has this very view: it goes on, or its end is in the outbox."""
        text: Any = self._run.session.hget(self._run.keys.account(view["account"]).sessions, view["session"])
        if text is None:
            return False
        life = text.decode().split("\n")[1]
        # A number may come back after its record was forgotten, but not with the same beginning.
        _, ordinal, _, _, started, *_ = life[1:].split("\t")
        return life[0] in _RUNS and (ordinal, started) == (str(view["view"]), str(view["started_at"]))

    def _last_id(self, partition: int) -> str:
        """The outbox's last id; one that is gone altogether holds nothing that could still come."""
        key = self._run.keys.outbox(partition)
        if not self._run.session.exists(key):
            return "0-0"
        found: Any = self._run.session.xinfo_stream(key)["last-generated-id"]
        return found.decode() if isinstance(found, bytes) else str(found)

    def _end(self, view: dict[str, Any]) -> int:
        run, settings, account = self._run, self._run.settings, view["account"]
        who = {name: view[name] or "" for name in ("account", "profile", "device", "session", "content", "kind")} | {
            "v": 1
        }
        data = {name: view[name] for name in ("started_at", "last_seen_at", "watched_ms", "max_position", "completed")}
        data |= {"reason": "lost", "estimated_end_at": view["last_seen_at"] + settings.interval_ms // 2}
        body = orjson.dumps(who)[1:-1] + b',"data":' + orjson.dumps(data) + b"}"
        keys = run.keys.account(account)
        args = [
            "", account, settings.outbox_max, settings.tuning(), 0, 0, view["session"], view["view"], view["started_at"],
            view["revision"], REQUEST_MS, body,
        ]  # fmt: skip
        request = keys.request(f"lost:{view['session']}:{view['started_at']}:{view['revision']}")
        (appended,) = run.call(scripts.load("lost"), [keys.sessions, keys.deadlines, keys.outbox, request], args)
        return int(appended)
