"""`make attack`: each attack in turn on a stack of its own, and what a bystander felt of it.

    python -m loadtest.attack [--list] [--only NAME …] [--seconds 10] [--rate 500] [--beats 50] [--seed 1] [--json FILE]

The exit status says whether it could be measured, never what came of it. See docs/benchmarks.md and docs/security.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.attack.attacker import Done
from loadtest.attack.base import Attack
from loadtest.attack.bystander import Seen
from loadtest.attack.registry import ATTACKS
from loadtest.attack.report import Grown, Result, summary
from loadtest.attack.stack import Stack, stack
from loadtest.bench_rig import ROOT, BenchError, unpinned, workplace

_SAMPLE_S = 0.1


class Helper:
    """A child that is told one line of JSON and says one line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def tell(self, said: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()

    def hear(self) -> str:
        """Raises BenchError if it ended instead; its standard error says why."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError(f"{self._process.args!r} ended; its output says why")
        return line.strip()


@contextlib.contextmanager
def helper(module: str) -> Iterator[Helper]:
    command = [sys.executable, "-m", module]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Helper(process)
        finally:
            process.kill()


class Memory:
    """Looks every 100 ms how large API and Redis are, in a thread of its own."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._api = [stack.api_bytes()]
        self._redis = [stack.redis_bytes()]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._api.append(self._stack.api_bytes())
            with contextlib.suppress(Exception):
                self._redis.append(self._stack.redis_bytes())

    def stop(self) -> tuple[Grown, Grown]:
        """(API, Redis)"""
        self._over.set()
        self._thread.join()
        return Grown(self._api[0], max(self._api)), Grown(self._redis[0], max(self._redis))


def measure(attack: type[Attack], rate: float, seconds: float, beats: float, seed: int) -> Result:
    """Raises BenchError if something does not start."""
    with (
        workplace() as place,
        unpinned(place) as free,
        stack(free, with_workers=attack.workers, quick_times=attack.quick_times) as running,
        helper("loadtest.attack.bystander") as bystander,
        helper("loadtest.attack.attacker") as attacker,
    ):
        target = {"base": running.target.base, "secret": running.target.secret}
        step = {**target, "rate": beats, "seconds": seconds}
        bystander.tell(step)
        without = Seen(**json.loads(bystander.hear()))
        attacker.tell({**target, "name": attack.name, "rate": rate, "seconds": seconds, "seed": seed})
        attacker.hear()
        memory = Memory(running)
        bystander.tell(step)
        attacker.tell({})
        with_ = Seen(**json.loads(bystander.hear()))
        done = Done(**json.loads(attacker.hear()))
        api, redis = memory.stop()
        return Result(attack, without, with_, done, api, redis)


def main(argv: list[str] | None = None) -> int:
    """Entry point: 0 measured, 1 something did not start, 2 wrong use."""
    parser = argparse.ArgumentParser(
        prog="make attack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name the attacks, and nothing else")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(ATTACKS), help="these attacks")
    parser.add_argument("--seconds", type=float, default=10.0, help="so long without, and so long with the attack")
    parser.add_argument("--rate", type=float, default=500.0, help="of the attacker, requests a second")
    parser.add_argument("--beats", type=float, default=50.0, help="of the bystander, heartbeats a second")
    parser.add_argument("--seed", type=int, default=1, help="of what is made by chance")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    args = parser.parse_args(argv)
    if unknown := set(args.only) - ATTACKS.keys():
        parser.error(f"--only: no such attack: {', '.join(sorted(unknown))}")
    if min(args.seconds, args.rate, args.beats) <= 0:
        parser.error("--seconds, --rate, --beats: expected above 0")
    if args.list:
        for attack in ATTACKS.values():
            print(f"{attack.name:20} line {attack.line}; holds {attack.holds}\n{'':20} {attack.what}")
        return 0
    results = []
    for name in args.only:
        started = time.monotonic()
        try:
            results.append(measure(ATTACKS[name], args.rate, args.seconds, args.beats, args.seed))
        except BenchError as error:
            print(f"attack {name}: {error}", file=sys.stderr)
            return 1
        missed = "; ".join(results[-1].missed)
        print(f"{name}: {missed or 'held'} ({time.monotonic() - started:.0f} s)", file=sys.stderr, flush=True)
    print(summary(results), flush=True)
    if args.json:
        args.json.write_text(json.dumps([result.to_json() for result in results], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
