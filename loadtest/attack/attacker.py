"""The attacker, a process of its own: one attack at a steady rate, whatever the answers do.

    python -m loadtest.attack.attacker

reads one line, `{"name": "one-packet", "base": "…", "secret": "…", "rate": 500, "seconds": 10, "seed": 1}`, prepares, says `ready`, waits
for another line, attacks, and prints what came of it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop

from loadtest.attack.base import Attack, Finding, Target
from loadtest.attack.registry import ATTACKS
from loadtest.capacity.ticker import Ticker

_PATIENCE_S = 30.0
_CLOSING_S = 0.05


@dataclass
class Done:
    """What the attacker did. `answered_per_s` counts answers while it attacked."""

    answered_per_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    not_sent: int = 0
    """Due while too many were under way."""
    hung: int = 0
    """Had no end 20 s after the attack."""
    errors: dict[str, int] = field(default_factory=dict)
    """Faults of the attacker's own, by exception."""
    findings: list[dict[str, Any]] = field(default_factory=list)

    @property
    def found(self) -> list[Finding]:
        return [Finding(**each) for each in self.findings]

    @property
    def server_errors(self) -> int:
        """Answers 5xx, but for 503, which a bound may be answered with, and 505, which is said of another version of HTTP."""
        return sum(
            count for status, count in self.statuses.items() if status[0] == "5" and status not in ("503", "505")
        )


async def attack_for(attack: Attack) -> Done:
    """Runs it, prepared, at its rate for its seconds."""
    attack.statuses.clear()
    done, errors = Done(), Counter[str]()
    under_way: set[asyncio.Task[None]] = set()
    numbers = itertools.count()
    began = time.perf_counter()

    def ended(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        if not task.cancelled() and (error := task.exception()):
            errors[f"{type(error).__name__}: {error}"[:120]] += 1

    def fire_due() -> float | None:
        while True:
            n = next(numbers)
            due = began + n / attack.rate
            if due >= began + attack.seconds:
                return None
            if len(under_way) < attack.at_once:
                task = asyncio.create_task(attack.fire(n))
                under_way.add(task)
                task.add_done_callback(ended)
            else:
                done.not_sent += 1
            following = began + (n + 1) / attack.rate
            if following > time.perf_counter():
                return following

    await Ticker(fire_due).done
    await asyncio.sleep(max(0.0, began + attack.seconds - time.perf_counter()))
    done.answered_per_s = round(attack.statuses.total() / attack.seconds, 1)
    if under_way:
        _, late = await asyncio.wait(under_way, timeout=_PATIENCE_S)
        done.hung = len(late)
        for task in late:
            task.cancel()
    done.findings = [asdict(finding) for finding in await attack.finish()]
    done.statuses, done.errors = dict(attack.statuses), dict(errors)
    attack.pool.close()
    # What was closed is let go of in the loop's next turns.
    await asyncio.sleep(_CLOSING_S)
    return done


async def _main() -> None:
    asked = json.loads(sys.stdin.readline())
    target = Target(asked["base"], asked["secret"])
    attack = ATTACKS[asked["name"]](target, asked["rate"], asked["seconds"], asked["seed"])
    await attack.prepare()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(await attack_for(attack))), flush=True)


if __name__ == "__main__":
    # An attacker has machines of its own: what it computes here must not be what the bystander waits for.
    os.nice(19)
    # Attacks open thousands of connections.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_main())
