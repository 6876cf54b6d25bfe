"""Every attack there is, by name, in the order they are run."""

from __future__ import annotations

from loadtest.attack import (
    connections,
    fuzz_bodies,
    fuzz_framing,
    fuzz_tokens,
    more_than_paid,
    ordinary,
    races,
    reach,
    scarce,
    storage,
)
from loadtest.attack.base import Attack

_PARTS = (ordinary, more_than_paid, connections, storage, scarce, reach, fuzz_framing, fuzz_tokens, fuzz_bodies, races)

ATTACKS: dict[str, type[Attack]] = {attack.name: attack for part in _PARTS for attack in part.ALL}
