"""Who sits down where: a person is away, sits down at a free device as often as the hour says, and leaves again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.simulator import curves
from loadtest.simulator.behaviours import Viewer
from loadtest.simulator.catalogue import Catalogue, Content
from loadtest.simulator.home import Device

if TYPE_CHECKING:
    from loadtest.simulator.households import Household

SITTING_MS = 12 * 60_000
"""Of one person, on average."""
SITTING_MIN_MS = 15_000
ARRIVALS_MS = 25_000
"""Those who watch when a run begins arrive within so long."""
LOOK_AGAIN_MS = 20 * 60_000
"""The hour may have changed what somebody does."""
TURNED_AWAY_MS = (30_000, 240_000)
"""Who finds all places of an honest household taken looks again after so long …"""
HOPE_MS = 8_000
"""… or as soon as somebody leaves."""
BACK_MS = (2_000, 10_000)
MOVES = 0.2
"""How often somebody goes on with a title on another device."""
MOVE_MS = (1_000, 15_000)
LIVE = {"tv": 0.6, "box": 0.6, "phone": 0.35, "tablet": 0.3, "laptop": 0.35}
"""Share of live channels in what is chosen."""
STAYS_KIND = 0.85
"""Who zaps stays with live channels, or with titles."""
GOES_ON = 0.3
"""Share of the titles chosen that are half seen."""
FROM_START = 0.55


class Person:
    def __init__(self, house: Household, profile: str, temper: str, *, zapper: bool) -> None:
        self.house = self.home = house
        self.profile, self.temper, self.zapper = profile, temper, zapper
        self.catalogue: Catalogue = house.catalogue
        self.viewer: Viewer | None = None
        self.places: dict[str, float] = {}
        """Title → where it was left."""
        self._turn = 0
        self._turned_away = False

    @property
    def must_not(self) -> bool:
        """Whether an honest household has no place left."""
        return self.house.honest and self.house.busy >= self.house.plan.limit

    def begin(self) -> None:
        rng = self.house.rng
        if rng.random() < curves.watching(self.house.world.now):
            self._soon(rng.randrange(ARRIVALS_MS))
        else:
            self._rest()

    def sit_down_again(self, viewer: Viewer) -> int:
        """At a device that was asleep; until when."""
        self._turn += 1
        self.viewer = viewer
        return self._until()

    def left(
        self, *, moved: tuple[Content, float] | None = None, back: tuple[Device, Content, float] | None = None
    ) -> None:
        """Its viewer is done: for good, to go on elsewhere (`moved`), or to try once more."""
        self.viewer = None
        rng = self.house.rng
        if back is not None:
            self._soon(rng.randrange(*BACK_MS), back)
        elif moved is not None and rng.random() < MOVES:
            self._soon(rng.randrange(*MOVE_MS), (None, *moved))
        else:
            self._rest()
        self.house.freed()

    def hope(self) -> None:
        """Somebody has left."""
        if self._turned_away and self.viewer is None:
            self._soon(self.house.rng.randrange(HOPE_MS))

    def choice(self, device: Device, instead: Content | None = None) -> tuple[Content, float]:
        """What to watch, and from where; `instead` of what is running."""
        while True:
            found, position = self._choice(device, None if instead is None else instead.live)
            if found is not instead:
                return found, position

    def _choice(self, device: Device, live: bool | None) -> tuple[Content, float]:
        rng = self.house.rng
        if live is None or rng.random() >= STAYS_KIND:
            live = rng.random() < LIVE[device.type]
        if live:
            return self.catalogue.channel(rng), 0.0
        half_seen = sorted(self.places)
        if half_seen and rng.random() < GOES_ON:
            found = self.catalogue.get(rng.choice(half_seen))
        else:
            found = self.catalogue.title(rng)
        if found.id in self.places:
            return found, min(self.places[found.id], found.runtime - 5)
        start = 0.0 if rng.random() < FROM_START else round(rng.uniform(0.1, 0.95) * found.runtime, 3)
        return found, start

    def _sit_down(self, turn: int, at: tuple[Device | None, Content, float] | None) -> None:
        if turn != self._turn or self.viewer is not None:
            return
        house = self.house
        device = at[0] if at is not None and at[0] is not None and not house.in_use(at[0]) else house.free_device()
        self._turned_away = device is None or self.must_not
        if device is None or self._turned_away:
            self._soon(house.rng.randrange(*TURNED_AWAY_MS))
            return
        content, position = (at[1], at[2]) if at is not None else self.choice(device)
        self.viewer = Viewer(self, device, self._until())
        self.viewer.begin(content, position)

    def _until(self) -> int:
        length = self.house.rng.expovariate(1 / SITTING_MS)
        return self.house.world.now + int(max(SITTING_MIN_MS, length))

    def _rest(self) -> None:
        """So long that the share of the people who watch is the hour's."""
        share = curves.watching(self.house.world.now)
        wait = self.house.rng.expovariate(share / (SITTING_MS * (1 - share)))
        if wait > LOOK_AGAIN_MS:
            self._turn += 1
            self.house.after(LOOK_AGAIN_MS, self._still_away, self._turn)
        else:
            self._soon(wait)

    def _still_away(self, turn: int) -> None:
        if turn == self._turn and self.viewer is None:
            self._rest()

    def _soon(self, wait: float, at: tuple[Device | None, Content, float] | None = None) -> None:
        """The last plan counts."""
        self._turn += 1
        self.house.after(wait, self._sit_down, self._turn, at)
