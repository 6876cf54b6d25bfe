"""No attack at all: what ordinary players of other accounts do to the bystander at the same rate, to compare with.

A ratio of p99 that an attack shares with these is what a request costs on this machine, and nothing that the attack found.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from loadtest.attack.base import Attack


class OrdinaryLoad(Attack):
    name = "ordinary-load"
    line = "control"
    what = "no attack: heartbeats of 500 accounts, evenly"
    accounts: ClassVar[int] = 500

    async def prepare(self) -> None:
        self._tokens = [self.target.player(f"ordinary-{n}") for n in range(self.accounts)]

        # Their players are known by the time it begins, as nearly all are at any time.
        for first in range(0, self.accounts, 20):
            await asyncio.gather(*(self._beat_of(who) for who in range(first, first + 20)))

    async def fire(self, n: int) -> None:
        await self._beat_of(n % self.accounts)

    async def _beat_of(self, who: int) -> None:
        await self.beat(self._tokens[who], f"ordinary-{who}", f"ordinary-{who}")


class OrdinaryBurst(OrdinaryLoad):
    name = "ordinary-burst"
    what = "no attack: heartbeats of 300 accounts at once, as often as the rate allows"
    accounts = 300
    connections = 400

    async def fire(self, n: int) -> None:
        if n % self.accounts == 0:
            await asyncio.gather(*(self._beat_of(who) for who in range(self.accounts)))


ALL: tuple[type[Attack], ...] = (OrdinaryLoad, OrdinaryBurst)
