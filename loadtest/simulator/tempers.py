"""What people do about a block."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

from loadtest.simulator.backend import Box
from loadtest.simulator.wire import Reply, Request

if TYPE_CHECKING:
    from loadtest.simulator.behaviours import Viewer

HONEST = {"insists": 0.45, "waits": 0.25, "leaves": 0.15, "takes over": 0.15}
CHEAT = {"insists": 0.35, "defies": 0.25, "reloads": 0.25, "takes over": 0.15}
"""temper → share of the people."""
ASKS = 8
"""Who insists asks so often, an interval apart."""
PATIENCE_MS = 120_000
"""Who waits does so for a moment that is no further away."""
RELOADS = 3
RELOAD_MS = (2_000, 8_000)
DEFIES_MS = (20_000, 180_000)
REMOVED = frozenset(["evicted", "takeover"])
"""Told for half an hour: asking again is useless."""


def pick(rng: random.Random, *, honest: bool) -> str:
    shares = HONEST if honest else CHEAT
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def react(viewer: Viewer, reply: Reply) -> None:
    """The player has stopped and shows why. `viewer.tries` counts the blocks in a row."""
    temper, player, home = viewer.person.temper, viewer.player, viewer.home
    viewer.tries += 1
    if isinstance(player, Box):
        _box(viewer, reply)
        return
    reason = reply.said.get("reason")
    if temper == "defies":
        player.defy()
        home.after(home.rng.randrange(*DEFIES_MS), viewer.had_enough, player.view)
    elif temper == "reloads" and viewer.tries <= RELOADS:
        home.after(home.rng.randrange(*RELOAD_MS), viewer.if_waiting, player.anew)
    elif temper == "takes over" and viewer.tries == 1:
        conflicts = [each["session"] for each in reply.said.get("conflicts") or () if each.get("session")]
        victim = home.rng.choice(conflicts) if conflicts and home.rng.random() < 0.6 else "oldest"
        home.after(
            home.rng.randrange(2_000, 6_000), viewer.if_waiting, player.takeover, victim, partial(_taken, viewer)
        )
    elif temper == "waits" and reason not in REMOVED and viewer.tries <= 3:
        wait = (reply.retry_at or home.world.now + PATIENCE_MS + 1) - home.world.now
        if wait <= PATIENCE_MS:
            home.after(max(wait, 250), viewer.if_waiting, _look, viewer)
        else:
            viewer.leave()
    elif temper == "insists" and reason not in REMOVED and viewer.tries <= ASKS:
        home.after(reply.said.get("next_heartbeat_ms") or 10_000, viewer.if_waiting, player.ask_again)
    else:
        home.after(home.rng.randrange(1_000, 5_000), viewer.if_waiting, viewer.leave)


def _box(viewer: Viewer, reply: Reply) -> None:
    home = viewer.home
    if viewer.tries <= 3 and viewer.person.temper != "leaves":
        home.after(home.rng.randrange(8_000, 15_000), viewer.if_waiting, viewer.player.ask_again)
    else:
        home.after(home.rng.randrange(1_000, 5_000), viewer.if_waiting, viewer.leave)


def _look(viewer: Viewer) -> None:
    """Asks before it shows the play button again."""
    player = viewer.player
    if not isinstance(player, Box) and player.wanted is not None:
        player.check(player.wanted[0], partial(_looked, viewer))
        viewer.home.after(2_000, viewer.if_waiting, _unheard, viewer, viewer.tries)


def _looked(viewer: Viewer, request: Request, reply: Reply) -> None:
    if not viewer.waiting:
        return
    if reply.decision == "block":
        react(viewer, reply)
    else:
        viewer.player.ask_again()


def _unheard(viewer: Viewer, tries: int) -> None:
    """The check was lost: then without."""
    if viewer.tries == tries:
        viewer.player.ask_again()


def _taken(viewer: Viewer, request: Request, reply: Reply) -> None:
    player = viewer.player
    if isinstance(player, Box) or player.over or player.view is None:
        return
    if reply.decision == "block":
        player.refused(reply)
    else:  # let in, or (404) whoever was to go has gone
        player.beat()
