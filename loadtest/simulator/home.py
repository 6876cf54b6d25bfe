"""What every household is made of: its devices, its way to the server, and its players. Nothing random comes from outside it."""

from __future__ import annotations

import random
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from loadtest.simulator.network import Link
from loadtest.simulator.plans import PLANS
from loadtest.simulator.view import View
from loadtest.simulator.wire import Request
from loadtest.simulator.world import World


@dataclass(frozen=True, slots=True)
class Device:
    """`machine` is what it really is: two machines of a cheat may share a device id. The rest are habits of its player."""

    id: str
    machine: str
    type: str
    skew_ms: int = 0
    quiet_pauses: bool = False
    """Sends nothing while paused."""
    tells_target: bool = False
    """A seeking heartbeat says where it is going, not where it was."""
    tells_live: bool = False
    """Says a position of live channels, too."""
    beacon: bool = False
    """Its stop is a `sendBeacon`: no headers, and nobody sends it again."""
    signals: bool = False
    """Of a box: its backend tells what it fetches by `POST /v1/signals`; else the edge asks."""

    @property
    def backend_only(self) -> bool:
        return self.type == "box"

    def line(self) -> dict[str, Any]:
        return {
            "device": self.id, "machine": self.machine, "device_type": self.type, "backend_only": self.backend_only,
            "skew_ms": self.skew_ms,
        }  # fmt: skip


class Playing(Protocol):
    """A player, or a box that only fetches."""

    view: View | None
    device: Device

    @property
    def busy(self) -> bool:
        """Whether somebody sits before it."""

    @property
    def over(self) -> bool:
        """Whether it will never do anything again."""

    def vanish(self, end: str) -> None: ...


class Home:
    """A household to the world: its own source of chance, its requests in order, its players."""

    def __init__(self, world: World, seed: int, account: str, plan: str, link: Link | None = None) -> None:
        self.world, self.account, self.plan_name, self.plan = world, account, plan, PLANS[plan]
        self.rng = random.Random(f"{seed}:{account}")
        self.link = link or Link(0.0, 0.0, 0.0, 0.0)
        self.requests: deque[Request] = deque()
        self.asked = 0
        self.devices: list[Device] = []
        self.profiles: list[str] = []
        self.playing: list[Playing] = []
        self._tokens: dict[str, str] = {}

    def after(self, delay_ms: float, what: Callable[..., None], *args: Any) -> None:
        """Will happen so much later."""
        self.world.at(self, self.world.now + int(delay_ms), what, *args)

    def token(self, device: Device) -> str:
        """A player's names its account and plan; a box's names the device as well, because the edge asks with nothing else."""
        key = device.id if device.backend_only else ""
        if key not in self._tokens:
            claims = {"device": device.id, "device_type": device.type} if device.backend_only else {}
            self._tokens[key] = self.world.signer.player(self.account, self.plan_name, None, **claims)
        return self._tokens[key]

    def uuid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    @property
    def views(self) -> list[View]:
        """What is there, or could be at any moment."""
        return [each.view for each in self.playing if each.view is not None]

    @property
    def busy(self) -> int:
        """At how many players somebody sits."""
        self.playing = [each for each in self.playing if not each.over]
        return sum(each.busy for each in self.playing)

    def in_use(self, device: Device) -> bool:
        return any(each.device is device and not each.over for each in self.playing)

    def end(self) -> None:
        """The run is over; whoever watches goes on, unseen."""
        for each in self.playing:
            if not each.over:
                each.vanish("still_running")

    def line(self, **more: Any) -> dict[str, Any]:
        """What the truth says of it."""
        return {
            "type": "household", "at": self.world.now, "account": self.account, "plan": self.plan_name,
            "limit": self.plan.limit, "mode": self.plan.mode, "unit": self.plan.unit, "honest": True,
            "devices": [device.line() for device in self.devices], "profiles": self.profiles,
        } | more  # fmt: skip
