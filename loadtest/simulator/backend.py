"""Devices whose player never speaks: the backend sees what they fetch, at the edge or in its own logs (docs/edge.md).

A box fetches a manifest and then a segment every six seconds; one whose backend signals asks for a licence first. When it is
switched off nobody says so.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import orjson

from loadtest.simulator.catalogue import Content
from loadtest.simulator.home import Device, Home
from loadtest.simulator.player import Watcher
from loadtest.simulator.view import View
from loadtest.simulator.wire import Reply, Request

SEGMENT_MS = 6_000
STARTUP_MS = (500, 2_000)


class Box:
    """`signals`: its backend tells by `POST /v1/signals`; else the edge asks."""

    def __init__(self, home: Home, profile: str, device: Device, watcher: Watcher, *, signals: bool) -> None:
        self.home, self.profile, self.device, self._watcher, self._signals = home, profile, device, watcher, signals
        self.view: View | None = None
        self.wanted: tuple[Content, float] | None = None
        self.over = False
        self._segment = 0
        home.playing.append(self)

    @property
    def busy(self) -> bool:
        return not self.over

    def begin(self, content: Content, position: float) -> None:
        self.wanted = content, position
        self.view = self._view(content, position)
        for evidence in ("licence", "manifest", "segment") if self._signals else ("manifest", "segment"):
            self._fetch(self.view, evidence)
        self.home.after(SEGMENT_MS, self._regular, self.view)

    def play(self) -> None:
        view = self.view
        if view is None or self.over:
            return
        view.turn("playing")
        if view.content.runtime:
            self.home.after((view.content.runtime - view.where) * 1000, self._run_out, view, view.since)
        self._watcher.started()

    def pause(self) -> None:
        """Nothing is fetched meanwhile."""
        if self.view is not None:
            self.view.turn("paused")

    def resume(self) -> None:
        if self.view is not None and not self.over:
            self._fetch(self.view, "segment")
            self.play()

    def zap(self, content: Content, position: float, end: str = "zap") -> None:
        if self.view is not None:
            self.view.close(end)
        self.begin(content, position)

    def ask_again(self) -> None:
        if not self.over and self.view is None and self.wanted is not None:
            self.begin(*self.wanted)

    def vanish(self, end: str) -> None:
        if self.view is not None:
            self.wanted = self.view.content, self.view.where
            self.view.close(end)
        self.view, self.over = None, True

    # what it fetches

    def _regular(self, view: View) -> None:
        if self.view is not view or self.over:
            return
        if view.state != "paused":
            self._fetch(view, "segment")
        self.home.after(SEGMENT_MS, self._regular, view)

    def _fetch(self, view: View, evidence: str) -> None:
        home, content = self.home, view.content
        who = {
            "account": home.account, "device": self.device.id, "machine": self.device.machine, "session": "",
            "content": content.id,
        }  # fmt: skip
        then, delivered = partial(self._answered, view), partial(self._delivered, view)
        if self._signals:
            said: dict[str, Any] = {
                "account": home.account, "device": self.device.id, "device_type": self.device.type, "content": content.id,
                "kind": content.kind, "provider": content.provider, "profile": self.profile, "evidence": evidence,
                "plan": home.plan_name, "at": home.world.now,
            }  # fmt: skip
            request = Request(
                "signal", "POST", "/v1/signals", home.world.signer.service, who, orjson.dumps(said), then=then,
                delivered=delivered, evidence=evidence,
            )  # fmt: skip
        else:
            name = "index.m3u8" if evidence == "manifest" else f"{self._segment:05d}.ts"
            self._segment += 1
            headers = f"X-Original-URI: /{content.kind}/{content.id}/{name}\r\nX-Original-Method: GET\r\n".encode()
            request = Request(
                "edge", "GET", "/v1/edge/authorize", home.token(self.device), who, headers=headers, then=then,
                delivered=delivered, evidence=evidence,
            )  # fmt: skip
        home.world.deliver(home, request)

    def _delivered(self, view: View, request: Request) -> None:
        view.admit()
        view.heard(None)

    def _answered(self, view: View, request: Request, reply: Reply) -> None:
        if self.view is not view or self.over:
            return
        if reply.decision == "block":
            self.wanted = view.content, view.where
            view.close("blocked")
            self.view = None
            self._watcher.blocked(reply)
        elif reply.decision == "allow" and view.state == "starting" and request.evidence == "segment":
            self.home.after(self.home.rng.randrange(*STARTUP_MS), self._begun, view)

    def _begun(self, view: View) -> None:
        if self.view is view and view.state == "starting":
            self.play()

    def _run_out(self, view: View, since: int) -> None:
        if self.view is view and view.since == since and view.state == "playing":
            self._watcher.finished()

    def _view(self, content: Content, position: float) -> View:
        who = {
            "account": self.home.account, "profile": self.profile, "device": self.device.id, "machine": self.device.machine,
            "session": f"edge:{self.home.uuid()}",
        }  # fmt: skip
        return View(self.home.world, who, content, position, tells_position=False)
