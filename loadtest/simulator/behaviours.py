"""What somebody does who sits before a player: zaps, pauses, seeks, watches the next episode, and how they leave."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadtest.simulator import tempers
from loadtest.simulator.backend import Box
from loadtest.simulator.catalogue import Content
from loadtest.simulator.home import Device
from loadtest.simulator.player import Player
from loadtest.simulator.view import View
from loadtest.simulator.wire import Reply

if TYPE_CHECKING:
    from loadtest.simulator.people import Person

LIVE = {"zap": 4.0, "pause": 15.0, "stall": 8.0, "restart": 40.0, "error": 80.0}
VOD = {"zap": 15.0, "pause": 7.0, "seek": 8.0, "ad": 10.0, "stall": 8.0, "restart": 40.0, "error": 80.0}
"""Minutes of playing between two of them, on average."""
ZAPPER = 5.0
"""A zapper zaps so many times as often."""
LEAVING = {
    "tv": {"stop": 0.5, "power_off": 0.5},
    "phone": {"stop": 0.65, "crash": 0.35},
    "tablet": {"stop": 0.65, "power_off": 0.35},
    "laptop": {"stop": 0.55, "sleep": 0.35, "power_off": 0.1},
    "box": {"power_off": 1.0},
}
"""device type → how somebody leaves it, and in which share of the cases."""
PAUSES_S = ((0.70, (3, 60)), (0.22, (60, 290)), (0.08, (310, 2_100)))
STALLS_S = ((0.8, (1, 5)), (0.2, (5, 20)))
RESTARTS_S = (3, 40)
SLEEPS_S = ((0.30, (5, 25)), (0.45, (30, 1_200)), (0.25, (1_900, 3_000)))
"""(share, (from, to)). No sleep ends near the half hour after which a view is another one."""
KEEPS_SESSION = 0.5
BINGE = 0.75
GONE_WHILE_PAUSED = 0.15
COMES_BACK = 0.7
"""After an error."""


class Viewer:
    """One sitting of a person at one device. Tells its person when it is over."""

    def __init__(self, person: Person, device: Device, until: int) -> None:
        self.person, self.home, self.device, self.until = person, person.home, device, until
        self.tries = 0
        self.player: Player | Box
        if device.backend_only:
            self.player = Box(self.home, person.profile, device, self, signals=device.signals)
        else:
            self.player = Player(self.home, person.profile, device, self)

    @property
    def rng(self) -> Any:
        return self.home.rng

    @property
    def waiting(self) -> bool:
        """Blocked, and not gone."""
        return not self.player.over and self.player.view is None

    def begin(self, content: Content, position: float) -> None:
        self.player.begin(content, position)

    # player.Watcher

    def started(self) -> None:
        """Draws what comes next; whatever else happens first makes it void."""
        view, player = self.player.view, self.player
        if view is None or (isinstance(player, Player) and player.defying):
            return
        self.tries = 0
        often = dict(LIVE if view.content.live else VOD)
        if isinstance(player, Box):
            often = {"zap": often["zap"], "pause": 2 * often["pause"]}
        if self.person.zapper:
            often["zap"] /= ZAPPER
        rates = {what: 1 / minutes for what, minutes in often.items()}
        wait = self.rng.expovariate(sum(rates.values())) * 60_000
        what = self.rng.choices(list(rates), weights=list(rates.values()))[0]
        left = self.until - self.home.world.now
        if wait >= left:
            wait, what = max(left, 250), "leave"
        self.home.after(wait, self._act, view, view.since, what)

    def blocked(self, reply: Reply) -> None:
        tempers.react(self, reply)

    def finished(self) -> None:
        """The title is over: the next episode, or that was it."""
        player, view = self.player, self.player.view
        assert view is not None
        self.person.places.pop(view.content.id, None)
        following = self.person.catalogue.following(view.content)
        if following is not None and self.rng.random() < BINGE and self.home.world.now < self.until:
            if isinstance(player, Player) and self.rng.random() < 0.5:
                player.beat(state="ended")
            player.zap(following, 0.0, "finished")
        elif isinstance(player, Box):
            player.vanish("finished")
            self.person.left()
        else:
            player.last_word("ended", "finished")
            self.person.left()

    # what it does

    def _act(self, view: View, since: int, what: str) -> None:
        if self.player.view is view and view.since == since and not self.player.over:
            getattr(self, f"_{what}")(view)

    def _zap(self, view: View) -> None:
        self._remember()
        self.player.zap(*self.person.choice(self.device, instead=view.content))

    def _pause(self, view: View) -> None:
        length = spread(self.rng, PAUSES_S)
        player = self.player
        if isinstance(player, Box):
            player.pause()
        else:
            player.halt("paused")
        if self.rng.random() < GONE_WHILE_PAUSED:
            self.home.after(length, self._act, view, view.since, "leave")
        else:
            self.home.after(length, self._act, view, view.since, "resume")

    def _resume(self, view: View) -> None:
        player = self.player
        if isinstance(player, Box):
            player.resume()
        else:
            player.play()

    def _seek(self, view: View) -> None:
        assert isinstance(self.player, Player)
        way = self.rng.choice((-10, 10, 10, 30, -30, 60, -120, 300, 600))
        target = round(min(max(view.where + way, 0.0), view.content.runtime - 5), 3)
        self.player.seek(target, self.rng.randrange(300, 1_500))

    def _ad(self, view: View) -> None:
        assert isinstance(self.player, Player)
        self.player.ad(self.rng.choice((6_000, 15_000, 20_000, 30_000)), f"break-{self.home.asked}")

    def _stall(self, view: View) -> None:
        assert isinstance(self.player, Player)
        self.player.stall(spread(self.rng, STALLS_S))

    def _restart(self, view: View) -> None:
        assert isinstance(self.player, Player)
        keep = self.rng.random() < KEEPS_SESSION
        self.player.restart(self.rng.randrange(*RESTARTS_S) * 1_000, keep=keep)

    def _error(self, view: View) -> None:
        """Fatal. Some try again, with a new player."""
        assert isinstance(self.player, Player)
        self._remember()
        self.player.tell("error", code="E1", fatal=True, position=view.where)
        self.player.last_word("error", "error")
        back = self.rng.random() < COMES_BACK
        self.person.left(back=(self.device, view.content, view.where) if back else None)

    def _leave(self, view: View) -> None:
        ways = LEAVING[self.device.type]
        way = self.rng.choices(list(ways), weights=list(ways.values()))[0]
        self._remember()
        if way == "sleep" and isinstance(self.player, Player):
            self.player.sleep()
            self.home.after(spread(self.rng, SLEEPS_S), self._wake, self.player)
            self.person.left()
            return
        if way == "stop" and isinstance(self.player, Player):
            self.player.stop()
        else:
            self.player.vanish(way)
        self.person.left(moved=(view.content, view.where) if not view.content.live else None)

    def _wake(self, player: Player) -> None:
        """Somebody opens the lid: goes on, if nobody has taken the place meanwhile."""
        if player.over or not player.asleep:
            return
        if self.person.viewer is not None or self.person.must_not:
            player.vanish("sleep")
            return
        self.until = self.person.sit_down_again(self)
        player.wake()

    def leave(self) -> None:
        """Gives up."""
        self._remember()
        if isinstance(self.player, Player) and self.rng.random() < 0.5:
            self.player.stop()
        else:
            self.player.vanish("blocked")
        self.person.left()

    def had_enough(self, view: View | None) -> None:
        """Of playing on in spite of a block."""
        if view is not None and self.player.view is view and isinstance(self.player, Player) and self.player.defying:
            self.leave()

    def if_waiting(self, what: Callable[..., None], *args: Any) -> None:
        if self.waiting:
            what(*args)

    def _remember(self) -> None:
        view = self.player.view
        if view is not None and view.content.runtime:
            self.person.places[view.content.id] = view.where


def spread(rng: Any, shares: tuple[tuple[float, tuple[int, int]], ...]) -> int:
    """ms, from (share, (from, to) in s)."""
    draw = rng.random()
    low, high = shares[-1][1]
    for share, bounds in shares:
        if draw < share:
            low, high = bounds
            break
        draw -= share
    return int(rng.uniform(low, high) * 1_000)
