"""The deployment's layout, fixed when it is created: partition count and schema version.

A process whose settings do not match refuses to start, because accounts would be looked for in the wrong partition.
"""

from __future__ import annotations

from typing import Any

from engine.errors import LayoutMismatch
from engine.keys import Keys

SCHEMA = 1


async def ensure(client: Any, keys: Keys) -> None:
    """Records the layout if there is none. Raises LayoutMismatch if there is another."""
    wanted = {b"partitions": str(keys.partitions).encode(), b"schema": str(SCHEMA).encode()}
    for field, value in wanted.items():
        await client.hsetnx(keys.layout, field.decode(), value)
    found = await client.hgetall(keys.layout)
    for field, value in wanted.items():
        if found.get(field) != value:
            name, has = field.decode(), found.get(field, b"?").decode()
            raise LayoutMismatch(f"{keys.layout} says {name} {has}, this process {value.decode()}", field=name)
