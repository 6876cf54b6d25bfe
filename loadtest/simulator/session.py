"""What a player tells the server under one session id, and how it takes the answers (docs/api.md).

A heartbeat every interval, and one at once whenever something changes; what is not answered is sent again after 2 s and after 4 s,
the same. Only the answer to the last word counts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson

from loadtest.simulator.catalogue import Content
from loadtest.simulator.home import Device, Home
from loadtest.simulator.view import View
from loadtest.simulator.wire import Reply, Request, session_path

INTERVAL_MS = 10_000
RETRY_MS = 2_000
ATTEMPTS = 3
TAKEOVER_MS = 3_000


class Session:
    """`player.py` says what becomes of the view; of the answers it is told by the three hooks at the end."""

    def __init__(self, home: Home, profile: str, device: Device) -> None:
        self.home, self.device, self.profile = home, device, profile
        self.session = home.uuid()
        self.view: View | None = None
        self.over = False
        self.wanted: tuple[Content, float] | None = None
        """What it would play if it were let."""
        self._seq, self._timer, self._heard = 0, 0, -1
        """`_timer` numbers what was sent last; an older timer is void. `_heard`: the last that was answered."""
        self._interval = INTERVAL_MS
        self._events: list[dict[str, Any]] = []

    @property
    def now(self) -> int:
        return self.home.world.now

    def hush(self) -> None:
        """Nothing that was planned is sent any more."""
        self._timer += 1

    def count_anew(self) -> None:
        """The player has forgotten what it said: `seq` is 0 again."""
        self._seq, self._interval = 0, INTERVAL_MS
        self._events.clear()

    # what it says

    def tell(self, kind: str, **data: Any) -> None:
        """An event, which rides with the next heartbeat."""
        self._events.append({"type": kind, "at": self.now + self.device.skew_ms, "data": data})

    def beat(self, state: str | None = None, position: float | None = None) -> None:
        view, device = self.view, self.device
        assert view is not None
        content = view.content
        if state is None:
            state = "playing" if view.state == "ad" else str(view.state)
        where = view.said if position is None else position
        body: dict[str, Any] = {
            "session": self.session, "device": device.id, "device_type": device.type, "profile": self.profile,
            "content": content.id, "kind": content.kind, "provider": content.provider, "state": state, "seq": self._seq,
            "sent_at": max(0, self.now + device.skew_ms),
        }  # fmt: skip
        if where is not None:
            body["position"] = where
        if content.runtime:
            body["duration"] = content.runtime
        if self._events:
            body["events"], self._events = self._events[:100], []
        self._timer += 1
        request = Request(
            "heartbeat", "POST", "/v1/heartbeats", self.home.token(device), self._who(content), orjson.dumps(body),
            then=partial(self._answered, self._timer), delivered=partial(self._delivered, view),
            seq=self._seq, state=state, position=where,
        )  # fmt: skip
        self._seq += 1
        self._send(request, again=True)
        if not (state == "paused" and device.quiet_pauses):
            self.home.after(self._interval, self._regular, self._timer)

    def takeover(self, victim: str, then: Callable[[Request, Reply], None]) -> None:
        """Asks for another's place; `then` is told the answer."""
        assert self.wanted is not None
        content, position = self.wanted
        self.view = self._view(content, position)
        view = self.view
        body = {
            "stop": victim, "request_id": f"takeover-{self.session}-{self.now}", "device": self.device.id,
            "device_type": self.device.type, "content": content.id, "kind": content.kind, "profile": self.profile,
        }  # fmt: skip
        self._ask("takeover", "POST", session_path(self.session, "takeover"), then, orjson.dumps(body))
        self._later(TAKEOVER_MS, view, self._if_unheard, self._timer)

    def _if_unheard(self, timer: int) -> None:
        """Nobody has said whether the takeover worked."""
        if timer == self._timer:
            self.beat()

    def check(self, content: Content, then: Callable[[Request, Reply], None]) -> None:
        query = f"session={self.session}&device={self.device.id}&content={content.id}&kind={content.kind}"
        self._ask("check", "GET", f"/v1/check?{query}", then, content=content)

    def _ask(
        self, call: str, method: str, path: str, then: Callable[[Request, Reply], None], body: bytes = b"",
        content: Content | None = None,
    ) -> None:  # fmt: skip
        """What is asked once; without an answer nothing follows."""
        view = self.view
        self._timer += 1
        who = self._who(content or (view.content if view else None))
        request = Request(call, method, path, self.home.token(self.device), who, body, then=then)
        if call == "takeover" and view is not None:
            request.delivered = partial(self._delivered, view)
        self.home.world.deliver(self.home, request)

    def _send(self, request: Request, *, again: bool) -> None:
        self.home.world.deliver(self.home, request)
        if again:
            self.home.after(RETRY_MS, self._again, request, 1, self._timer)

    def _again(self, request: Request, attempt: int, timer: int) -> None:
        if timer != self._timer or self._heard == timer:
            return
        if attempt < ATTEMPTS:
            self.home.world.deliver(self.home, request.again(attempt=attempt, late=False, lost_answer=False))
            self.home.after(RETRY_MS, self._again, request, attempt + 1, timer)
        elif self.view is not None and self.view.state == "starting" and not self.over:
            self._unanswered(self.view)

    def _regular(self, timer: int) -> None:
        if timer == self._timer and not self.over and self.view is not None:
            self.beat()

    def say_stop(self) -> None:
        device, home = self.device, self.home
        body: dict[str, Any] = {"seq": max(0, self._seq - 1)}
        request = Request(
            "stop", "POST", session_path(self.session, "stop"), home.token(device), self._who(), state=None,
            then=partial(self._answered, self._timer + 1),
        )  # fmt: skip
        if device.beacon:
            request.body = orjson.dumps(body | {"token": request.token})
            request.token, request.headers = "", b"Content-Type: text/plain\r\n"
        else:
            request.body = orjson.dumps(body | {"request_id": f"stop-{self.session}-{self.now}"})
        self._timer += 1
        self._send(request, again=not device.beacon)

    # what it hears

    def _delivered(self, view: View, request: Request) -> None:
        if request.state not in ("ended", "error"):
            view.admit()
        view.heard(request.position)

    def _answered(self, timer: int, request: Request, reply: Reply) -> None:
        """Answers to anything but the last word are history."""
        if timer != self._timer or reply.status not in (200, 204):
            return
        first, self._heard = self._heard != timer, timer
        if request.call != "heartbeat" or self.over or not first:
            return
        self._interval = reply.said.get("next_heartbeat_ms") or INTERVAL_MS
        view = self.view
        if view is None:
            return
        if reply.decision == "block":
            self._refused(view, reply)
        elif (
            reply.said.get("duplicate") and request.attempt == 0 and (reply.said.get("last_seq") or 0) >= self._seq - 1
        ):
            # The server has heard more of this session than it remembers itself (it was started anew): it counts on from there.
            self._seq = reply.said["last_seq"] + 1
            self.beat()
        else:
            self._let_in(view)

    # pieces

    def _later(self, delay_ms: int, view: View, what: Callable[..., None], *args: Any) -> None:
        """Happens unless something else has happened to this view meanwhile."""
        self.home.after(delay_ms, self._if_still, view, view.since, what, args)

    def _if_still(self, view: View, since: int, what: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.view is view and view.since == since and not self.over:
            what(*args)

    def _view(self, content: Content, position: float) -> View:
        if content.live and not position:
            position = self.now % 86_400_000 / 1000
        tells = not content.live or self.device.tells_live
        return View(self.home.world, self._who() | {"profile": self.profile}, content, position, tells_position=tells)

    def _who(self, content: Content | None = None) -> dict[str, Any]:
        return {
            "account": self.home.account, "device": self.device.id, "machine": self.device.machine,
            "session": self.session, "content": content.id if content else None,
        }  # fmt: skip

    # hooks

    def _let_in(self, view: View) -> None:
        raise NotImplementedError

    def _refused(self, view: View, reply: Reply) -> None:
        raise NotImplementedError

    def _unanswered(self, view: View) -> None:
        """Starting, and nobody has answered three times."""
        raise NotImplementedError
