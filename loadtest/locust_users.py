"""Locust's users. One user is a crowd of people (`--people`), because a greenlet a player costs more than its requests.

Measured on the machine of docs/benchmarks.md: 300 µs of CPU a request with one player a user (spawning, 25 KB of memory each), against 80 µs
here; and FastHttpUser's client with its cookies, redirects and URL building costs twice the one it stands on, which is used here.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import gevent
import gevent.event
import gevent.pool
import orjson
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPConnectionClosed, HTTPParseError
from locust import User, task

from loadtest.locust_people import Checker, EventSender, Person, Player, Reader, Reply, Segments, headers_of
from loadtest.locust_shapes import CALM_ZAP_S, Moment
from loadtest.locust_tally import END, Tally

OUTAGE = " (outage)"
"""Ends the name of requests sent while the API is meant to be away: no threshold looks at them."""
CONNECTIONS = 256
"""Of each kind, a process. The connections of a pool are tried by select(), which knows 1,024 at most."""
HEARTBEAT_TIMEOUT_S = 2.0
TIMEOUT_S = 10.0
_JOIN_S = 1.0
"""A crowd's people come within this time, not all at once."""
_LEAVE_S = 1.0
_FAILURES = (OSError, HTTPConnectionClosed, HTTPParseError, gevent.Timeout)
_GOOD = (200, 202, 204)


class Wrong(Exception):
    """An answer that came and was not what it should be; its text is the same for all of its kind."""


def wrong(name: str, status: int, said: Any, degraded: bool) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if name == "edge" and status == 403:
        return "false block at the edge"
    if status not in _GOOD:
        return f"answered {status}"
    if degraded or (isinstance(said, dict) and said.get("degraded")):
        return "degraded"
    if name in ("heartbeat", "check"):
        if not isinstance(said, dict) or said.get("decision") not in ("allow", "block"):
            return "no decision"
        return "" if said["decision"] == "allow" else f"false block: {said.get('reason')}"
    if name == "events" and (not isinstance(said, dict) or said.get("rejected")):
        return "events rejected"
    return ""


class Stage:
    """What all crowds of a process share; a `Scene` for their people."""

    def __init__(self, environment: Any, tally: Tally, secret: str, seed: int, people: int) -> None:
        self.tally, self.people, self.seed = tally, people, seed
        self.moment = Moment("", 0, CALM_ZAP_S, False, False)
        self.crowds: list[Crowd] = []
        self._environment, self._secret = environment, secret
        self._numbers = itertools.count(1)
        self._run = f"load-{int(time.time() * 1000):x}"
        self._heartbeats = self._client(HEARTBEAT_TIMEOUT_S)
        self._others = self._client(TIMEOUT_S)

    def _client(self, timeout_s: float) -> HTTPClient:
        return HTTPClient.from_url(
            self._environment.host, concurrency=CONNECTIONS, network_timeout=timeout_s, connection_timeout=timeout_s
        )

    @property
    def worker(self) -> int:
        return max(0, int(self._environment.runner.worker_index))

    def number(self) -> int:
        return next(self._numbers)

    def name(self, number: int) -> str:
        return f"{self._run}-{self.worker}-{number}"

    def token(self, **claims: object) -> dict[str, str]:
        return headers_of(self._secret, claims)

    def sleep(self, seconds: float) -> None:
        gevent.sleep(seconds)

    def viewer(self, draw: random.Random) -> Player | None:
        crowd = draw.choice(self.crowds) if self.crowds else None
        person = draw.choice(crowd.people) if crowd and crowd.people else None
        return person if isinstance(person, Player) else None

    def enter(self, moment: Moment) -> None:
        """Called about once a second, and at each change."""
        now = time.monotonic()
        self.tally.advance(now, moment.phase)
        before, self.moment = self.moment, moment
        if moment.zap_s != before.zap_s:
            for crowd in self.crowds:
                crowd.redraw(now)

    def ask(self, name: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply:
        """Sends a request, waits, judges the answer and tells locust of it. Never raises."""
        label = name + OUTAGE if self.moment.outage else name
        client = self._heartbeats if name == "heartbeat" else self._others
        began, status, text, said, fault = time.monotonic(), 0, b"", None, ""
        error: BaseException | None = None
        try:
            try:
                answer = client.request(method, path, body, headers)
            except HTTPConnectionClosed:
                # A kept connection that the server gave up at that moment. All that is asked here may be repeated.
                answer = client.request(method, path, body, headers)
            status, text = answer.status_code, answer.read()
            said = orjson.loads(text) if text else None
            fault = wrong(name, status, said, answer.get("x-pulsegate-degraded") is not None)
        except (*_FAILURES, orjson.JSONDecodeError) as failure:
            status, fault, error = 0, type(failure).__name__, failure
        if fault and error is None:
            error = Wrong(fault)
            counts = self.tally.counts(self.tally.phase)
            counts.false_blocks += fault.startswith("false block")
            counts.degraded += fault == "degraded"
        self._environment.events.request.fire(
            request_type=method, name=label, response_time=1000 * (time.monotonic() - began), response_length=len(text),
            exception=error, context={}, response=None, start_time=0.0, url="",
        )  # fmt: skip
        return Reply(status, said, fault)


class Crowd(User):
    """`--people` people of one kind, each acting when it is due, whoever else still waits for an answer."""

    abstract = True
    stage: ClassVar[Stage]
    """Set when locust has started, before the first user is."""
    kind: ClassVar[type[Person]]

    def on_start(self) -> None:
        stage = self.stage
        self._draw = random.Random(f"{stage.seed}/{stage.worker}/{stage.number()}")
        self._heap: list[tuple[float, int, Person]] = []
        self._order = itertools.count()
        self._woken = gevent.event.Event()
        self._acting = gevent.pool.Group()
        now = time.monotonic()
        self.people: list[Person] = []
        for _ in range(stage.people):
            self._come(now + self._draw.random() * _JOIN_S)
        stage.crowds.append(self)

    def _come(self, at: float) -> None:
        person = self.kind(self.stage, self._draw, at)
        self.people.append(person)
        if isinstance(person, Player):
            self._count(1)
        self._queue(person)

    def _count(self, change: int) -> None:
        live = self.stage.tally.live
        key = str(self.stage.worker)
        live[key] = live.get(key, 0) + change

    def _queue(self, person: Person) -> None:
        heapq.heappush(self._heap, (person.due, next(self._order), person))

    @task
    def live(self) -> None:
        while True:
            # Nobody is in the heap while all wait for their answers.
            due, _, person = self._heap[0] if self._heap else (math.inf, 0, None)
            wait = due - time.monotonic()
            if person is None or wait > 0:
                self._woken.wait(None if person is None else wait)
                self._woken.clear()
                continue
            heapq.heappop(self._heap)
            # A person who has changed its mind is in the heap a second time.
            if person.due == due and not person.busy and not person.left:
                person.busy = True
                self._acting.spawn(self._act, person)

    def _act(self, person: Person) -> None:
        try:
            person.act()
        except Exception as error:
            # A mistake of ours: Locust lists it, and the run fails.
            self.environment.events.user_error.fire(user_instance=self, exception=error, tb=error.__traceback__)
            person.due = time.monotonic() + person.every_s
        person.busy = False
        if person.left:
            self._forget(person)
            self._come(time.monotonic() + self._draw.random() * _JOIN_S)
        else:
            self._queue(person)
        self._woken.set()

    def _forget(self, person: Person) -> None:
        self.people.remove(person)
        if isinstance(person, Player):
            self._count(-1)

    def redraw(self, now: float) -> None:
        for person in self.people:
            if isinstance(person, Player) and not person.busy and not person.left:
                person.redraw(now)
                self._queue(person)
        self._woken.set()

    def on_stop(self) -> None:
        """All leave: half with a word, half as if the power had gone. At the run's end, which is no part of the evening, none
        says so, and the sessions time out."""
        stage = self.stage
        if self not in stage.crowds:
            return
        stage.crowds.remove(self)
        self._acting.join(timeout=_LEAVE_S)
        self._acting.kill()
        leaving, ended = gevent.pool.Group(), stage.tally.phase == END
        for person in list(self.people):
            self._forget(person)
            if not person.left:
                leaving.spawn(person.leave, not ended and self._draw.random() < 0.5)
        leaving.join(timeout=TIMEOUT_S)


class Players(Crowd):
    kind = Player
    weight = 16


class Checkers(Crowd):
    kind = Checker


class EdgeRequests(Crowd):
    kind = Segments


class EventSenders(Crowd):
    kind = EventSender


class Dashboards(Crowd):
    kind = Reader


CROWDS: Sequence[type[Crowd]] = (Players, Checkers, EdgeRequests, EventSenders, Dashboards)


def users_for(players: int, people: int) -> int:
    """Locust users in all, so that there are that many players among them."""
    share = Players.weight / sum(crowd.weight for crowd in CROWDS)
    return round(players / people / share)
