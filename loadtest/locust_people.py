"""The people behind the requests: players, and who checks, serves segments, sends events and reads lists.

Each has a next moment at which it is due (`due`, monotonic s) and does what it does then (`act`). They are honest: an account
has two slots and never more than two players, so any block is a false one. Nothing here imports locust.
"""

from __future__ import annotations

import itertools
import json
import random
import time
import uuid
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
import orjson

from loadtest.locust_shapes import Moment
from loadtest.locust_tally import Tally

RETRY_S = (0.0, 2.0, 4.0)
"""An unanswered heartbeat is sent again so long after it was sent first; sooner where the interval is short."""
VIEWING_S = 1200.0
"""A player watches so long on average, then another viewer comes in its place."""
HIT = "live-final"
_CHANNELS = [f"live-{n:03d}" for n in range(200)]
_TITLES = [f"title-{n:04d}" for n in range(2000)]
_INTERVAL_S = 10.0
"""Until the first answer says how long."""


def _zipf(count: int) -> list[float]:
    return list(itertools.accumulate(1 / rank for rank in range(1, count + 1)))


_CHANNEL_WEIGHTS, _TITLE_WEIGHTS = _zipf(len(_CHANNELS)), _zipf(len(_TITLES))


@dataclass(frozen=True)
class Reply:
    """`status` 0: no answer. `wrong` says what was wrong with it; empty if nothing was."""

    status: int
    said: Any
    """The decoded JSON; None if there was none."""
    wrong: str


class Scene(Protocol):
    """What people see of the process they live in."""

    tally: Tally
    moment: Moment

    def ask(self, name: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Reply:
        """Sends a request and waits for its answer. Never raises."""

    def number(self) -> int:
        """1, 2, 3, …"""

    def name(self, number: int) -> str:
        """An id that no other process and no other run uses."""

    def token(self, **claims: object) -> dict[str, str]:
        """Headers with a token of these claims."""

    def sleep(self, seconds: float) -> None: ...

    def viewer(self, draw: random.Random) -> Player | None:
        """One of the players, if there is any."""


def headers_of(secret: str, claims: dict[str, object]) -> dict[str, str]:
    """`Authorization` with a token for a day."""
    now = int(time.time())
    token = jwt.encode({"iat": now, "exp": now + 86_400, **claims}, secret, algorithm="HS256")
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}


def content(draw: random.Random, hit: bool = False) -> tuple[str, str]:
    """(content, kind): mostly live; in a premiere mostly one channel."""
    if hit and draw.random() < 0.8:
        return HIT, "live"
    if draw.random() < 0.7:
        return draw.choices(_CHANNELS, cum_weights=_CHANNEL_WEIGHTS)[0], "live"
    return draw.choices(_TITLES, cum_weights=_TITLE_WEIGHTS)[0], "vod"


class Person:
    """Acts every `every_s`, by the clock: an answer that comes late does not put off what is due next."""

    every_s = 10.0

    def __init__(self, scene: Scene, draw: random.Random, at: float) -> None:
        self.scene, self.draw, self.due = scene, draw, at
        self.busy = self.left = False
        number = scene.number()
        self.id = scene.name(number)
        self.account = self.id
        self.headers = self.sign(number)

    def sign(self, number: int) -> dict[str, str]:
        return self.scene.token(sub=self.account, max_streams=2)

    def act(self) -> None:
        self.do()
        self.due = max(self.due + self.every_s, time.monotonic() - self.every_s)

    def do(self) -> None:
        raise NotImplementedError

    def leave(self, stop: bool) -> None:
        """Goes; with a word, or as if the power had gone."""
        self.left = True


class Player(Person):
    """One player on one device: heartbeats at the pace the answers ask for, and one at once when what is watched changes."""

    def __init__(self, scene: Scene, draw: random.Random, at: float) -> None:
        super().__init__(scene, draw, at)
        self.session = str(uuid.UUID(int=draw.getrandbits(128), version=4))
        self.content, self.kind = content(draw, scene.moment.hit)
        self.seq, self.since, self.interval_s = 0, at, _INTERVAL_S
        self.beat_at = at
        scene.tally.plan(at)
        self.leave_at = at + draw.expovariate(1 / VIEWING_S)
        self.zap_at = at + draw.expovariate(1 / scene.moment.zap_s)
        self._settle()

    def sign(self, number: int) -> dict[str, str]:
        # Half of all players share their account with one other: its two slots are then both taken.
        self.account = self.scene.name(number - 1 if number % 4 == 3 else number)
        return super().sign(number)

    def _settle(self) -> None:
        self.due = min(self.beat_at, self.zap_at, self.leave_at)

    def redraw(self, now: float) -> None:
        """The evening's mood has changed: zaps sooner or later than planned."""
        self.zap_at = now + self.draw.expovariate(1 / self.scene.moment.zap_s)
        self._settle()

    def act(self) -> None:
        if self.due == self.leave_at:
            self.leave(stop=self.draw.random() < 0.5)
            return
        if self.due == self.zap_at:
            self.scene.tally.unplan(self.beat_at)
            self.beat_at = self.since = self.zap_at
            self.scene.tally.plan(self.beat_at)
            self.content, self.kind = content(self.draw)
            self.zap_at += self.draw.expovariate(1 / self.scene.moment.zap_s)
        self._beat(self.beat_at)
        self._settle()

    def _body(self) -> bytes:
        body: dict[str, Any] = {
            "session": self.session, "device": self.id, "content": self.content, "kind": self.kind, "state": "playing",
            "seq": self.seq, "profile": "grown-ups", "device_type": "tv", "quality": {"bitrate": 4_200_000, "height": 1080},
        }  # fmt: skip
        if self.kind == "vod":
            body |= {"position": round(time.monotonic() - self.since, 3), "duration": 5400.0}
        return orjson.dumps(body)

    def _beat(self, due: float) -> None:
        """Sends the heartbeat that was due then, and promises the next."""
        tally = self.scene.tally
        body = self._body()
        self.seq += 1
        self._promise(due + self.interval_s)
        first = time.monotonic()
        for wait in RETRY_S:
            wait *= min(1.0, self.interval_s / _INTERVAL_S)
            if (pause := first + wait - time.monotonic()) > 0:
                self.scene.sleep(pause)
            if self.left:
                return
            sent = time.monotonic()
            reply = self.scene.ask("heartbeat", "POST", "/v1/heartbeats", self.headers, body)
            if reply.status == 200 and isinstance(reply.said, dict):
                tally.answered(due, sent, time.monotonic())
                self._pace(due, reply.said.get("next_heartbeat_ms"))
                break
            tally.counts(tally.phase_at(due)).attempts_failed += 1
        # What fell due meanwhile was due and is not made up for, but for the last.
        while not self.left and self.beat_at + self.interval_s <= time.monotonic():
            self._promise(self.beat_at + self.interval_s)

    def _promise(self, at: float) -> None:
        self.beat_at = at
        self.scene.tally.plan(at)

    def _pace(self, due: float, next_ms: object) -> None:
        if not isinstance(next_ms, int) or next_ms <= 0 or next_ms / 1000 == self.interval_s or self.left:
            return
        self.interval_s = next_ms / 1000
        self.scene.tally.unplan(self.beat_at)
        self._promise(due + self.interval_s)

    def leave(self, stop: bool) -> None:
        self.scene.tally.unplan(self.beat_at)
        super().leave(stop)
        if stop:
            self.scene.ask("stop", "POST", f"/v1/sessions/{self.session}/stop", self.headers)


class Checker(Person):
    """Asks before the play button is shown."""

    every_s = 5.0

    def do(self) -> None:
        what, kind = content(self.draw)
        self.scene.ask("check", "GET", f"/v1/check?device={self.id}&content={what}&kind={kind}", self.headers)


class Segments(Person):
    """A viewer without heartbeats: an edge server asks before each of its segments."""

    every_s = 4.0

    def __init__(self, scene: Scene, draw: random.Random, at: float) -> None:
        super().__init__(scene, draw, at)
        self._content, self._kind = content(draw)
        self._segment = 0

    def sign(self, number: int) -> dict[str, str]:
        return self.scene.token(sub=self.account, max_streams=2, device=self.id)

    def do(self) -> None:
        self._segment += 1
        uri = f"/{self._kind}/{self._content}/{self._segment:05d}.ts"
        self.scene.ask("edge", "GET", "/v1/edge/authorize", self.headers | {"X-Original-URI": uri})


class EventSender(Person):
    """An app that tells what happened, five events at a time."""

    every_s = 10.0

    def __init__(self, scene: Scene, draw: random.Random, at: float) -> None:
        super().__init__(scene, draw, at)
        self._seq = 0

    def do(self) -> None:
        events: list[dict[str, Any]] = []
        for type_, data in (
            ("bitrate_change", {"from": 2_000_000, "to": 4_200_000}),
            ("buffer_start", {"position": 61.5}),
            ("buffer_end", {"position": 61.5, "duration_ms": 400}),
            ("seek", {"from": 61.5, "to": 1200.0}),
            ("subtitles_on", {"language": "pt"}),
        ):
            self._seq += 1
            events.append({"type": type_, "seq": self._seq, "at": int(time.time() * 1000), "data": data})
        body = {"session": self.id, "device": self.id, "content": _TITLES[0], "kind": "vod", "events": events}
        self.scene.ask("events", "POST", "/v1/events", self.headers, json.dumps(body).encode())


class Reader(Person):
    """An app's start page, and now and then somebody who looks at quality."""

    every_s = 5.0

    def do(self) -> None:
        what, drawn = self.scene, self.draw.random()
        if drawn < 0.4:
            kind = "live" if self.draw.random() < 0.5 else "vod"
            what.ask("trending", "GET", f"/v1/trending?kind={kind}&limit=10", self.headers)
        elif drawn < 0.7:
            viewer = what.viewer(self.draw) or self
            what.ask("resume", "GET", "/v1/resume?limit=20", viewer.headers)
        elif drawn < 0.99:
            name = HIT if self.draw.random() < 0.3 else content(self.draw)[0]
            what.ask("audience", "GET", f"/v1/contents/{name}/audience", self.headers)
        else:
            service = what.token(typ="service", scope="read")
            what.ask("quality", "GET", "/v1/quality?metrics=sessions,rebuffer_ratio&by=kind", service)
