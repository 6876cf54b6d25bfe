"""One player instance on a device: what happens in it. It starts when it is let in, or when nobody answers.

What it tells the server is in session.py, what its viewer does in behaviours.py.
"""

from __future__ import annotations

from typing import Protocol

from loadtest.simulator.catalogue import Content
from loadtest.simulator.home import Device, Home
from loadtest.simulator.session import Session
from loadtest.simulator.view import View
from loadtest.simulator.wire import Reply

STARTUP_MS = (300, 2_500)
FORGOTTEN_MS = 1_800_000
"""A view that was silent longer is another one."""


class Watcher(Protocol):
    """Who sits before a player, and is told what becomes of it."""

    def started(self) -> None:
        """It plays: for the first time, or again."""

    def blocked(self, reply: Reply) -> None: ...

    def finished(self) -> None:
        """The title has come to its end."""


class Player(Session):
    def __init__(self, home: Home, profile: str, device: Device, watcher: Watcher) -> None:
        super().__init__(home, profile, device)
        self._watcher = watcher
        self.asleep = self.defying = self.restarting = False
        home.playing.append(self)

    @property
    def busy(self) -> bool:
        return not self.over and not self.asleep

    # what happens to it

    def begin(self, content: Content, position: float) -> None:
        """Somebody presses play."""
        self.wanted = content, position
        self.view = self._view(content, position)
        self.beat()

    def play(self) -> None:
        """It plays, as of now."""
        view = self.view
        if view is None:
            return
        view.turn("playing")
        self.beat()
        if view.content.runtime:
            self.home.after((view.content.runtime - view.where) * 1000, self._run_out, view, view.since)
        self._watcher.started()

    def halt(self, state: str) -> None:
        """Paused, or buffering."""
        assert self.view is not None
        self.view.turn(state)
        self.beat()

    def seek(self, target: float, took_ms: int) -> None:
        view = self.view
        assert view is not None
        self.tell("seek", **{"from": view.where, "to": target})
        view.turn("seeking")
        self.beat(position=target if self.device.tells_target and view.tells_position else None)
        self._later(took_ms, view, self._landed, target)

    def _landed(self, target: float) -> None:
        assert self.view is not None
        self.view.jump(target)
        self.play()

    def ad(self, took_ms: int, name: str) -> None:
        """A break in the title; the playhead stands still, and no heartbeat comes before its time."""
        view = self.view
        assert view is not None
        view.turn("ad")
        seconds = took_ms / 1000
        self.tell("ad_break_start", **{"break": name, "ads": 1, "position": view.where})
        self.tell(
            "ad_start", **{"break": name, "ad": f"{name}-1", "index": 0, "duration": seconds, "position": view.where}
        )
        self._later(took_ms, view, self._ad_over, name, took_ms)

    def _ad_over(self, name: str, took_ms: int) -> None:
        self.tell("ad_end", **{"break": name, "ad": f"{name}-1", "index": 0, "skipped": False, "watched_ms": took_ms})
        self.tell("ad_break_end", **{"break": name})
        self.play()

    def stall(self, took_ms: int) -> None:
        view = self.view
        assert view is not None
        self.tell("buffer_start", position=view.where)
        self.halt("buffering")
        self._later(took_ms, view, self._flowing, took_ms)

    def _flowing(self, took_ms: int) -> None:
        assert self.view is not None
        self.tell("buffer_end", position=self.view.where, duration_ms=took_ms)
        self.play()

    def zap(self, content: Content, position: float, end: str = "zap") -> None:
        """Other content, in the same session."""
        if self.view is not None:
            self.view.close(end)
        self.begin(content, position)

    def sleep(self) -> None:
        """The lid is closed."""
        assert self.view is not None
        self.view.turn(None)
        self.hush()
        self.asleep, self._slept_at = True, self.now

    def wake(self) -> None:
        """It goes on where it was, under the same session."""
        view = self.view
        assert view is not None
        self.asleep = False
        if self.now - self._slept_at >= FORGOTTEN_MS:
            view.close("sleep")
            view = self.view = self._view(view.content, view.where)
        view.turn("starting")
        self.beat()

    def restart(self, took_ms: int, *, keep: bool) -> None:
        """The app crashes and comes back: under its session, counting from 0 again, or under a new one."""
        view = self.view
        assert view is not None
        view.turn(None)
        self.hush()
        self.restarting = True
        self.home.after(took_ms, self._back, view, keep)

    def _back(self, view: View, keep: bool) -> None:
        if self.over or self.view is not view:
            return
        self.restarting = False
        self.count_anew()
        if keep:
            view.turn("starting")
            self.beat()
            return
        content, position = view.content, view.where
        view.close("crash")
        self.session = self.home.uuid()
        self.begin(content, position)

    def anew(self) -> None:
        """Reloaded while it was refused: the same under a new session."""
        assert self.wanted is not None
        self.session = self.home.uuid()
        self.count_anew()
        self.begin(*self.wanted)

    def ask_again(self) -> None:
        """Refused before; perhaps not any more."""
        if not self.over and self.view is None and self.wanted is not None:
            self.begin(*self.wanted)

    def defy(self) -> None:
        """Plays although it was refused."""
        assert self.wanted is not None
        self.defying = True
        self.view = self._view(*self.wanted)
        self.view.tell()
        self.play()

    # how it ends

    def last_word(self, state: str, end: str) -> None:
        """A heartbeat that says it is over: `ended` or `error`."""
        if self.view is not None:
            self.beat(state=state)
            self._leave(end)

    def stop(self) -> None:
        """Says so: by the app, which sends it again if nobody answers, or by a beacon, which does not."""
        self.say_stop()
        self._leave("stop")

    def vanish(self, end: str) -> None:
        """Without a word."""
        self.hush()
        if end == "still_running":
            end = "sleep" if self.asleep else "crash" if self.restarting else end
        self._leave(end)

    def _leave(self, end: str) -> None:
        if self.view is not None:
            self.wanted = self.view.content, self.view.where
            self.view.close(end)
            self.view = None
        self.over, self.asleep = True, False

    # what it hears

    def _let_in(self, view: View) -> None:
        defied, self.defying = self.defying, False
        if view.state == "starting":
            low, high = STARTUP_MS
            self._later(self.home.rng.randrange(low, high), view, self.play)
        elif defied:
            self._watcher.started()

    def _unanswered(self, view: View) -> None:
        """Whoever pays is not to sit before a black screen."""
        view.tell()
        self.play()

    def refused(self, reply: Reply) -> None:
        """What was asked beside heartbeats was answered by a block."""
        if self.view is not None:
            self._refused(self.view, reply)

    def _refused(self, view: View, reply: Reply) -> None:
        if self.defying:
            return
        self.hush()
        self.wanted = view.content, view.where
        view.close("blocked")
        self.view = None
        self._watcher.blocked(reply)

    def _run_out(self, view: View, since: int) -> None:
        if self.view is view and view.since == since and view.state == "playing":
            self._watcher.finished()
