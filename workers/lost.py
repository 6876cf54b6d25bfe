"""Ends the views that the event log saw begin and that the session Redis has forgotten, with reason `lost`.

A session server that lost its last second, or was emptied, will never sweep them. Found in three steps, so that no view ends twice:
the projection shows it open and long silent; the session Redis does not know it; and the projection, having
handled everything that was in the outbox at that moment, shows it open still.
"""

from __future__ import annotations

from typing import Any

import orjson
from redis.exceptions import ResponseError

from engine import records, scripts
from engine.events import is_id, order
from engine.partitions import partition_of
from workers.consume import live_generation
from workers.runtime import Runtime
from workers.troubles import Troubles, own
from workers.views import Views

BATCH = 500
SILENCE = 2
"""Lifetimes of silence after which the session Redis is asked; the sweep needs one and a second."""
REQUEST_MS = 3_600_000


class Lost:
    """Between its rounds the log Redis keeps whom the session Redis did not know, and where the outbox stood then."""

    def __init__(self, run: Runtime) -> None:
        self._run = run
        self._troubles = Troubles(run.log, run.keys, "maintain")

    def end(self) -> int:
        """One round; how many views were ended."""
        run, ended = self._run, 0
        suspects: dict[str, str] = {}
        generation = live_generation(run, Views.name)
        views = Views(run.log, run.keys.projection(Views.name, generation), run.settings)
        seconds, _ = run.log.time()
        silent = views.open_before((int(seconds) * 1000) - SILENCE * run.settings.lifetime_ms, BATCH)
        reached: Any = run.log.hgetall(run.keys.cursor(Views.name, generation))
        before: Any = run.log.hgetall(run.keys.suspects)
        for view in silent:
            try:
                ended += self._look(view, before, reached, suspects)
            except (ValueError, IndexError, ResponseError) as error:
                if isinstance(error, ResponseError) and not own(error):
                    raise
                self._troubles.note("views that may be lost", f"{type(error).__name__}: {error}")
        self._remember(suspects)
        return ended

    def _look(self, view: dict[str, Any], before: Any, reached: Any, suspects: dict[str, str]) -> int:
        """How many views were ended: this one, or none. Notes it among the suspects if it is one."""
        name = f"{view['account']}\t{view['session']}\t{view['started_at']}"
        partition = partition_of(view["account"], self._run.settings.partitions)
        outbox = before.get(name.encode())
        if self._known(view):
            return 0
        if not is_id(outbox):
            suspects[name] = self._last_id(partition)
        elif order(reached.get(b"%d" % partition, b"0-0").decode()) < order(outbox.decode()):
            suspects[name] = outbox.decode()
        else:
            return self._end(view)
        return 0

    def _remember(self, suspects: dict[str, str]) -> None:
        with self._run.log.pipeline(transaction=True) as pipe:
            pipe.delete(self._run.keys.suspects)
            if suspects:
                pipe.hset(self._run.keys.suspects, mapping=suspects)  # type: ignore[arg-type]
                pipe.expire(self._run.keys.suspects, 600)
            pipe.execute()

    def _known(self, view: dict[str, Any]) -> bool:
        """Whether the session Redis has this very view: it goes on, or its end is in the outbox."""
        texts: Any = self._run.session.zrange(self._run.keys.account(view["account"]).leases, 0, -1)
        for known in map(records.read, texts):
            if known.session == view["session"] and known.status != records.BLOCKED:
                # A number may come back after its record was forgotten, but not with the same beginning.
                return (known.life["ordinal"], known.life["started"]) == (str(view["view"]), str(view["started_at"]))
        return False

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
            "", account, settings.tuning(), view["session"], view["view"], view["started_at"],
            view["revision"], REQUEST_MS, body,
        ]  # fmt: skip
        request = keys.request("lost", f"{view['started_at']}:{view['revision']}:{view['session']}")
        (appended,) = run.call(scripts.load("lost"), [keys.leases, keys.deadlines, keys.outbox, request], args)
        return int(appended)
