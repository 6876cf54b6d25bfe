"""The deployment's layout, fixed when it is created: partition count, schema version, and whether its clock is virtual.

A process whose settings do not match refuses to start, because accounts would be looked for in the wrong partition, or
sessions of one time be judged by another.
"""

from __future__ import annotations

from typing import Any

from engine.errors import LayoutMismatch
from engine.keys import Keys

SCHEMA = 1
CLOCK, VIRTUAL = "clock", b"virtual"
"""A field of simulations only."""


async def ensure(client: Any, keys: Keys, virtual: bool = False) -> None:
    """Records the layout if there is none. Raises LayoutMismatch if there is another."""
    wanted = {b"partitions": str(keys.partitions).encode(), b"schema": str(SCHEMA).encode()}
    if virtual and not await client.exists(keys.layout):
        await client.hsetnx(keys.layout, CLOCK, VIRTUAL)
    for field, value in wanted.items():
        await client.hsetnx(keys.layout, field.decode(), value)
    found = await client.hgetall(keys.layout)
    for field, value in wanted.items():
        if found.get(field) != value:
            name, has = field.decode(), found.get(field, b"?").decode()
            raise LayoutMismatch(f"{keys.layout} says {name} {has}, this process {value.decode()}", field=name)
    check_clock(keys, found.get(CLOCK.encode()), virtual)


def check_clock(keys: Keys, found: bytes | None, virtual: bool) -> None:
    """`found` is the field `clock` of an existing layout. Raises LayoutMismatch."""
    if (found == VIRTUAL) != virtual:
        has, wants = ("virtual", "the real one") if found == VIRTUAL else ("real", "a virtual one")
        raise LayoutMismatch(
            f"{keys.layout} says that this deployment's clock is {has}, this process has {wants} (PULSEGATE_VIRTUAL_CLOCK)",
            field=CLOCK,
        )
