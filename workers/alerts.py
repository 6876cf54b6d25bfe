"""The alerts tenure: judges every rule every few seconds, and tells what fires and what is over, once each, in order.

A figure is asked of DuckDB in this process, over the facts of the rule's window. States and what is told are written together while the
group is still ours; the webhook gets what was told from the log, at least once, each with its id, and what it does not take is offered again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import orjson
from redis.exceptions import WatchError

from engine import signing
from engine.alerts import RuleFile, State, judge, store
from engine.alerts.figures import Figure, Group, check, figures, relation
from engine.alerts.rules import Rule
from engine.events import is_id
from engine.quality.files import TOPIC, lake_of
from workers.posting import NoAnswer, Poster
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership, Work, stopping
from workers.troubles import Troubles

log = logging.getLogger(__name__)

QUESTION_S = 10.0
"""A question that takes longer is given up until the next round."""
PATIENCE_S = 300.0
"""The webhook is offered at this interval at least what it has not taken."""
_TOGETHER = 100


class Alerts(Work):
    """One for all partitions. `now` is ms since the epoch."""

    def __init__(
        self, run: Runtime, ownership: Ownership, now: Callable[[], int] = lambda: int(time.time() * 1000)
    ) -> None:
        self._run, self._owner, self._now = run, ownership, now
        path = Path(run.settings.alerts_file)
        self._rules = RuleFile(path, check, lambda why: log.error("alerts_broken", extra={"why": why}))
        self._figures = Figures(run)
        self._webhook = Webhook(run)
        self._due = 0.0

    def step(self, wait_s: float) -> int:
        if (left := self._due - time.monotonic()) > 0:
            stopping.wait(min(left, wait_s))
            return 0
        self._due = time.monotonic() + self._run.settings.alerts_every_s
        self._rules.refresh()
        told = self._judge_all()
        self._webhook.deliver()
        return told

    def close(self) -> None:
        self._webhook.close()

    def _judge_all(self) -> int:
        keys, now = self._run.keys, self._now()
        stored: Any = self._run.log.hgetall(keys.alerts)
        states = store.read(stored)
        changed: dict[store.Place, State] = {}
        told: list[bytes] = []
        for rule in self._rules.current:
            found = self._figures.of(rule, now)
            if found is None:
                continue
            known = {group for name, group in states if name == rule.name and len(group) == len(rule.by)}
            for group in known | found.keys():
                place = (rule.name, group)
                state, said = judge(rule, states.get(place, State()), now, *found.get(group, (None, 0)))
                changed[place] = state
                if said is not None:
                    told.append(store.said(rule, group, said))
        self._save(states, changed, told)
        return len(told)

    def _save(self, states: dict[store.Place, State], changed: dict[store.Place, State], told: list[bytes]) -> None:
        """All or nothing, if the owner is still the owner. States that rules no longer have, or that say nothing, go."""
        keys = self._run.keys
        names = {rule.name for rule in self._rules.current}
        gone = [place for place in states if place[0] not in names]
        gone += [
            place
            for place, state in changed.items()
            if state.status == "quiet" and not state.sessions and not state.learned
        ]
        with self._run.log.pipeline() as pipe:
            pipe.watch(self._owner.key)
            if pipe.get(self._owner.key) != self._owner.token.encode():
                raise LostOwnership(self._owner.key)
            pipe.multi()
            for place, state in changed.items():
                pipe.hset(keys.alerts, store.field(place), msgspec.json.encode(state))
            if gone:
                pipe.hdel(keys.alerts, *map(store.field, gone))
            for said in told:
                pipe.xadd(keys.alerts_told, {"a": said}, maxlen=store.TOLD_MAX)
            try:
                pipe.execute()
            except WatchError:
                raise LostOwnership(self._owner.key) from None


class Figures:
    """Asks DuckDB; what cannot be answered is logged, and judged in the next round."""

    def __init__(self, run: Runtime) -> None:
        self._lake, self._settings = lake_of(run.settings), run.settings
        self._database: Any = None
        self._asked = 0

    def of(self, rule: Rule, now: int) -> dict[Group, Figure] | None:
        if self._lake is None:
            return None
        # DuckDB is for this job only, and every worker imports this module.
        import duckdb

        from engine.quality.server import Cancelled, Database

        if self._database is None:
            settings = self._settings
            root = str(Path(settings.lake_dir).resolve())
            self._database = Database(settings.quality_threads, settings.quality_memory_bytes, root)
        self._asked += 1
        files = [path.resolve() for path in self._lake.files(TOPIC, now - rule.window_s * 1000, now)]
        timer = threading.Timer(QUESTION_S, self._database.cancel, (self._asked,))
        timer.start()
        try:
            self._database.begin(self._asked, relation(files))
            return figures(self._database, rule, now)
        except (duckdb.Error, Cancelled) as error:
            log.warning("alert", extra={"alert": rule.name, "why": f"{type(error).__name__}: {error}"[:200]})
            return None
        finally:
            timer.cancel()
            self._database.end()


class Webhook:
    """Offers what was told, in order, to `alerts_webhook_url`, signed as all webhooks are."""

    def __init__(self, run: Runtime) -> None:
        self._run, self._settings = run, run.settings
        self._poster = Poster(run.settings.webhook_timeout_s)
        self._troubles = Troubles(run.log, run.keys, "alerts")
        self._failures, self._not_before = 0, 0.0

    def deliver(self) -> int:
        """How many were taken."""
        url, keys, redis = self._settings.alerts_webhook_url, self._run.keys, self._run.log
        if not url or time.monotonic() < self._not_before:
            return 0
        taken = 0
        while not stopping.is_set():
            sent: Any = redis.get(keys.alerts_sent)
            # What is no id has sent nothing: alerts may come twice, and none is left out.
            after = f"({sent.decode()}" if is_id(sent) else "-"
            waiting: Any = redis.xrange(keys.alerts_told, min=after, count=_TOGETHER)
            if not waiting:
                break
            items = self._read(waiting)
            if items and not self._post(url, orjson.dumps({"items": items})):
                self._failures += 1
                self._not_before = time.monotonic() + min(PATIENCE_S, self._settings.alerts_every_s * 2**self._failures)
                break
            self._failures = 0
            redis.set(keys.alerts_sent, waiting[-1][0])
            taken += len(items)
        return taken

    def _read(self, waiting: Any) -> list[dict[str, Any]]:
        items = []
        for id_, fields in waiting:
            try:
                items.append({"id": id_.decode()} | orjson.loads(fields[b"a"]))
            except (ValueError, KeyError, TypeError) as error:
                self._troubles.note("alerts that were told", f"{id_.decode()}: {type(error).__name__}")
        return items

    def _post(self, url: str, body: bytes) -> bool:
        timestamp = int(time.time())
        secret = self._settings.alerts_webhook_secret or self._settings.webhook_secret
        headers = {
            "Content-Type": "application/json", "User-Agent": "pulsegate", signing.TIMESTAMP: str(timestamp),
            signing.SIGNATURE: signing.sign(secret, timestamp, body),
        }  # fmt: skip
        try:
            status = self._poster.post(url, body, headers).status
        except NoAnswer as error:
            log.warning("alerts_webhook", extra={"why": str(error)})
            return False
        if not 200 <= status < 300:
            log.warning("alerts_webhook", extra={"why": str(status)})
        return 200 <= status < 300

    def close(self) -> None:
        self._poster.close()
