"""`pulsegate replay`: builds a projection anew from the lake and the log, beside the live one, and compares or swaps.

The shadow is the projection's next generation: other keys, a position of its own, the same consumer. While it is built
the live one goes on. For the last step the replay takes the live consumer's partitions over (its workers notice at their next
commit and stop), brings the shadow to exactly the live one's position, and compares; or makes the shadow the live one, with
one write, and gives the partitions back. Nothing is exported: sinks are no consumers.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from redis.client import Pipeline

from engine.errors import PulsegateError
from engine.events import Event, order
from workers.consume import BATCH, COUNT, Commit, handle, latest, live_generation
from workers.consumer import Consumer, consumers
from workers.history import history
from workers.reading import LogReader
from workers.runtime import Runtime
from workers.tenure import Ownership

SHOWN = 20
"""Differences printed, at most."""
START = "0-0"
HOLD_MS = 60_000
"""A replay that dies in its last step delays the live projection by this much."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay found. Digests are SHA-256 over the sorted state."""

    events: int
    seconds: float
    live: str
    shadow: str
    differences: tuple[str, ...]

    @property
    def equal(self) -> bool:
        return self.live == self.shadow


class Replay:
    """One projection. `since_ms` leaves out what is older: quicker, but then the shadow knows less than the live one."""

    def __init__(self, run: Runtime, name: str, *, since_ms: int = 0, quiet: bool = False) -> None:
        found = consumers()
        if name not in found:
            raise PulsegateError(f"no projection {name!r}; there are {', '.join(sorted(found))}", code="projection")
        self._run, self._name, self._cls, self._since, self._quiet = run, name, found[name], since_ms, quiet
        self._partitions = list(range(run.settings.partitions))
        self._live = live_generation(run, name)
        self._next = int(run.log.hincrby(run.keys.generations, f"{name}:last", 1)) + self._live
        self._owner = Ownership(run.log, run.keys, f"replay-{name}", 0)
        self._commit = Commit(run, name, self._next, self._owner)
        self._shadow = self._consumer(self._next)
        self._positions: dict[int, str] = {}
        self._events = 0
        self._began = time.monotonic()
        self._said = 0.0

    def compare(self) -> Outcome:
        """Builds the shadow, compares it with the live projection, and removes it."""
        return self._play(swap=False)

    def swap(self) -> Outcome:
        """Builds the shadow and puts it in the live one's place; says how they differed."""
        return self._play(swap=True)

    def _consumer(self, generation: int) -> Consumer:
        run = self._run
        return self._cls(run.log, run.keys.projection(self._name, generation), run.settings)

    def _play(self, *, swap: bool) -> Outcome:
        if not self._owner.acquire():
            raise PulsegateError(f"another replay of {self._name} is under way", code="conflict")
        taken: list[Ownership] = []
        dropped = self._next
        try:
            self._from_history()
            self._from_log(None)
            taken = self._take_over()
            self._from_log(self._live_positions(), taken)
            outcome = self._judge()
            if swap:
                self._run.log.hset(self._run.keys.generations, self._name, self._next)
                dropped = self._live
            return outcome
        finally:
            for ownership in taken:
                ownership.release()
            self._drop(dropped)
            self._owner.release()

    # building

    def _from_history(self) -> None:
        """All that the lake holds, or the part that the log has forgotten."""
        trimmed: Any = self._run.log.hgetall(self._run.keys.trimmed)
        if trimmed and not self._run.settings.lake_dir:
            raise PulsegateError(
                "the log was trimmed and there is no lake to replay from", code="no_lake", field="PULSEGATE_LAKE_DIR"
            )
        after = dict.fromkeys(self._partitions, f"{self._since}-0" if self._since else START)
        self._apply(history(self._run.settings, self._cls.topics, after))
        self._positions = {p: max(self._positions.get(p, START), after[p], key=order) for p in self._partitions}

    def _from_log(self, until: Mapping[int, str] | None, taken: Sequence[Ownership] = ()) -> None:
        """The log beyond that, up to the positions `until`; without them, until there is no more."""
        reader = LogReader(self._run.log, self._run.keys, self._partitions, self._cls.topics)
        while True:
            for ownership in taken:
                ownership.renew()
            found = reader.look(self._positions, COUNT)
            if found.behind:
                raise PulsegateError("the log was trimmed beyond the lake; replay again", code="behind")
            events = found.events
            if until is not None:
                events = [e for e in events if order(e.stream_id) <= order(until.get(e.partition, START))]
            self._apply(events)
            self._positions |= found.ends if until is None else {}
            if not events:
                break
        if until is not None:
            self._positions = dict(until)
            self._commit_batch([], until)

    def _apply(self, events: Iterable[Event]) -> None:
        batch: list[Event] = []
        for event in events:
            batch.append(event)
            if len(batch) >= BATCH:
                self._commit_batch(batch, latest(batch))
                batch = []
        if batch:
            self._commit_batch(batch, latest(batch))

    def _commit_batch(self, batch: Sequence[Event], reached: Mapping[int, str]) -> None:
        self._owner.renew()
        pipe: Pipeline = self._commit.pipeline()
        handle(self._shadow, batch, pipe)
        self._commit.execute(pipe, reached, len(batch))
        self._positions |= reached
        self._events += len(batch)
        self._progress()

    def _progress(self) -> None:
        now = time.monotonic()
        if not self._quiet and now - self._said > 2:
            self._said = now
            rate = self._events / max(now - self._began, 0.001)
            print(f"{self._name}: {self._events:,} events, {rate:,.0f}/s", file=sys.stderr, flush=True)

    # the last step

    def _take_over(self) -> list[Ownership]:
        taken = []
        for group in range(self._run.settings.groups):
            ownership = Ownership(self._run.log, self._run.keys, f"consume-{self._name}", group)
            ownership.seize(HOLD_MS)
            taken.append(ownership)
        return taken

    def _live_positions(self) -> dict[int, str]:
        found: Any = self._run.log.hgetall(self._run.keys.cursor(self._name, self._live))
        return {int(p): id_.decode() for p, id_ in found.items() if p.isdigit()}

    def _judge(self) -> Outcome:
        """Both are tidied as of the same moment first: what is past its retention is no difference."""
        now = int(time.time() * 1000)
        live = self._consumer(self._live)
        for consumer in (live, self._shadow):
            consumer.tidy(now)
        left, right = _state(live), _state(self._shadow)
        differ = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        said = tuple(
            f"{name}: live {left.get(name, b'-').decode()} replayed {right.get(name, b'-').decode()}" for name in differ
        )
        return Outcome(self._events, time.monotonic() - self._began, _digest(left), _digest(right), said)

    def _drop(self, generation: int) -> None:
        """Removes a generation's keys. The one place besides `dump` that scans."""
        log, keys = self._run.log, self._run.keys
        for key in log.scan_iter(match=keys.projection(self._name, generation).key("*"), count=1_000):
            log.unlink(key)
        log.delete(keys.cursor(self._name, generation))


def _state(consumer: Consumer) -> dict[str, bytes]:
    return {name: orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for name, value in consumer.dump()}


def _digest(state: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(b"%b\n%b\n" % (name.encode(), state[name]))
    return digest.hexdigest()


def replay(run: Runtime, names: Sequence[str], *, since_ms: int, swap: bool) -> int:
    """The command: 0 if every projection came out equal (or was swapped), 1 with a list of differences."""
    status = 0
    for name in names or sorted(consumers()):
        work = Replay(run, name, since_ms=since_ms)
        outcome = work.swap() if swap else work.compare()
        verdict = "swapped" if swap else "equal" if outcome.equal else "DIFFERENT"
        rate = outcome.events / max(outcome.seconds, 0.001)
        print(f"{name}: {verdict}; {outcome.events:,} events in {outcome.seconds:.1f} s ({rate:,.0f}/s)")
        print(f"  live     {outcome.live}\n  replayed {outcome.shadow}")
        for line in outcome.differences[:SHOWN]:
            print(f"  {line}")
        if len(outcome.differences) > SHOWN:
            print(f"  … and {len(outcome.differences) - SHOWN} more")
        if not swap and not outcome.equal:
            status = 1
    return status
