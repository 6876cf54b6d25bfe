"""Households: who lives there, with which devices, under which plan, and whether they keep to it."""

from __future__ import annotations

import random
from typing import Any

from loadtest.simulator import tempers
from loadtest.simulator.catalogue import Catalogue
from loadtest.simulator.home import Device, Home
from loadtest.simulator.network import link
from loadtest.simulator.people import Person
from loadtest.simulator.plans import PLANS
from loadtest.simulator.world import World

CHEATS = 0.2
SHARED_ID = 0.4
"""Of the cheats: all machines say that they are the same device."""
PEOPLE = {1: 0.30, 2: 0.35, 3: 0.20, 4: 0.15}
OWN = {"phone": 0.8, "tablet": 0.3, "laptop": 0.4}
"""What a person owns, and how probably; a household has a TV, and one in eight a box."""
TV, BOX = 0.85, 0.125
SKEWED = ((0.75, 0), (0.15, 120_000), (0.10, 6 * 3_600_000))
"""(share of the devices, how far their clocks are wrong at most, ms)."""
QUIET_PAUSES, TELLS_TARGET, TELLS_LIVE, BEACON, SIGNALS, ZAPPERS = 0.15, 0.3, 0.4, 0.5, 0.5, 0.2


class Household(Home):
    """Everything is drawn from its own source of chance, when it is made."""

    def __init__(self, world: World, seed: int, number: int, catalogue: Catalogue) -> None:
        account = f"household-{number}"
        rng = random.Random(f"{seed}:{account}:made")
        super().__init__(world, seed, account, rng.choice(list(PLANS)), link(rng))
        self.catalogue = catalogue
        self.honest = rng.random() >= CHEATS
        people = rng.choices(list(PEOPLE), weights=list(PEOPLE.values()))[0]
        if not self.honest:
            people = max(people, min(4, self.plan.limit + 1))
        self.profiles = [f"profile-{n}" for n in range(1, people + 1)]
        self.devices = _devices(rng, people)
        if not self.honest:
            while len(self.devices) <= self.plan.limit:
                self.devices.append(_device(rng, "phone", f"phone-{len(self.devices) + 1}"))
            if rng.random() < SHARED_ID:
                self.devices = [_as(device, "shared") for device in self.devices if not device.backend_only]
        self.people = [
            Person(self, profile, tempers.pick(rng, honest=self.honest), zapper=rng.random() < ZAPPERS)
            for profile in self.profiles
        ]

    def begin(self) -> None:
        for person in self.people:
            person.begin()

    def free_device(self) -> Device | None:
        free = [device for device in self.devices if not self.in_use(device)]
        return self.rng.choice(free) if free else None

    def freed(self) -> None:
        for person in self.people:
            person.hope()

    def line(self, **more: Any) -> dict[str, Any]:
        tempers_ = [person.temper for person in self.people]
        return super().line(honest=self.honest, tempers=tempers_, **more)


def _devices(rng: random.Random, people: int) -> list[Device]:
    kinds = ["tv"] if rng.random() < TV else []
    kinds += ["box"] if rng.random() < BOX else []
    for _ in range(people):
        kinds += [kind for kind, share in OWN.items() if rng.random() < share]
    return [_device(rng, kind, f"{kind}-{n}") for n, kind in enumerate(kinds or ["phone"], 1)]


def _device(rng: random.Random, kind: str, name: str) -> Device:
    worst = rng.choices([most for _, most in SKEWED], weights=[share for share, _ in SKEWED])[0]
    return Device(
        name, name, kind, skew_ms=rng.randint(-worst, worst), quiet_pauses=rng.random() < QUIET_PAUSES,
        tells_target=rng.random() < TELLS_TARGET, tells_live=rng.random() < TELLS_LIVE,
        beacon=kind in ("phone", "laptop") and rng.random() < BEACON, signals=kind == "box" and rng.random() < SIGNALS,
    )  # fmt: skip


def _as(device: Device, name: str) -> Device:
    return Device(
        name, device.machine, device.type, device.skew_ms, device.quiet_pauses, device.tells_target, device.tells_live,
        device.beacon,
    )  # fmt: skip
