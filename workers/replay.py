"""`pulsegate replay`: builds a projection anew from the lake and the log, beside the live one, and compares or swaps.

The shadow is the projection's next generation: other keys, a position of its own, the same consumer. While it is built
the live one goes on. For the last step the replay takes the live consumer's partitions over (its workers notice at their next
commit and stop), brings the shadow to exactly the live one's position, and compares; or makes the shadow the live one, with
one write, and gives the partitions back. Nothing is exported: sinks are no consumers.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import orjson
from redis.client import Pipeline

from engine.errors import PulsegateError
from engine.events import Event, order
from engine.lag import HANDLED
from workers.consume import COUNT, Commit, handle, latest, live_generation
from workers.consumer import Consumer, consumers
from workers.history import history, lake_positions
from workers.reading import Ahead, LogReader, batches
from workers.runtime import Runtime
from workers.tenure import Keeper, LostOwnership, Ownership

SHOWN = 20
"""Differences printed, at most."""
START = "0-0"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay found. Digests are SHA-256 over the sorted state. Seconds, and this process's own CPU seconds, are of
    building the shadow; comparing it took another `compared_s`."""

    events: int
    seconds: float
    cpu_seconds: float
    compared_s: float
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
        self._owner = Ownership(run, f"replay-{name}", 0)
        self._commit = Commit(run, name, self._next, self._owner)
        self._shadow = self._consumer(self._next)
        self._positions: dict[int, str] = {}
        self._events = 0
        self._began, self._cpu_began = time.monotonic(), time.process_time()
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
        taken = [Ownership(self._run, f"consume-{self._name}", group) for group in range(self._run.settings.groups)]
        dropped, keeper = self._next, Keeper(self._owner)
        try:
            with keeper:
                self._from_history()
                self._from_log()
                for ownership in taken:
                    ownership.seize()
                    keeper.keep(ownership)
                self._from_log()
                outcome = self._judge()
                if swap:
                    self._take_place()
                    dropped = self._live
                return outcome
        except LostOwnership as error:
            raise PulsegateError(f"{error} was taken over; replay again", code="conflict") from None
        finally:
            for ownership in taken:
                ownership.release()
            self._drop(dropped)
            self._owner.release()

    def _take_place(self) -> None:
        log, keys = self._run.log, self._run.keys
        live: Any = log.hgetall(keys.cursor(self._name, self._live))
        # It goes on counting where the live one was, so that lag stays what it was.
        counted: Any = {field: live[field] for field in (b"topics", HANDLED.encode()) if field in live}
        with log.pipeline(transaction=True) as pipe:
            if counted:
                pipe.hset(keys.cursor(self._name, self._next), mapping=counted)
            pipe.hset(keys.generations, self._name, self._next)
            pipe.execute()

    # building: never beyond the live projection, or there would be nothing to compare

    def _from_history(self) -> None:
        """What the lake holds, as far as the live projection has come."""
        settings = self._run.settings
        if self._run.log.exists(self._run.keys.trimmed) and not settings.lake_dir:
            raise PulsegateError(
                "the log was trimmed and there is no lake to replay from", code="no_lake", field="PULSEGATE_LAKE_DIR"
            )
        start = f"{self._since}-0" if self._since else START
        bound, kept = self._live_positions(), lake_positions(settings)
        within = (
            event
            for event in history(settings, self._cls.topics, dict.fromkeys(self._partitions, start))
            if order(event.stream_id) <= order(bound.get(event.partition, START))
        )
        self._apply(within)
        for partition in self._partitions:
            whole = min(kept.get(partition, START), bound.get(partition, START), key=order)
            self._positions[partition] = max(start, self._positions.get(partition, START), whole, key=order)

    def _from_log(self) -> None:
        """The log beyond that, until the shadow stands where the live projection does."""
        with contextlib.closing(
            Ahead(LogReader(self._run.log, self._run.keys, self._partitions, self._cls.topics))
        ) as reader:
            self._follow(reader)
        self._commit_batch([], self._positions)

    def _follow(self, reader: Ahead) -> None:
        while True:
            bound = self._live_positions()
            left = {p: self._positions[p] for p, id_ in bound.items() if order(self._positions[p]) < order(id_)}
            if not left:
                break
            found = reader.look(self._positions, COUNT)
            if left.keys() & found.behind.keys():
                raise PulsegateError("the log was trimmed beyond what the lake gave; replay again", code="behind")
            self._apply(e for e in found.events if order(e.stream_id) <= order(bound.get(e.partition, START)))
            for partition, end in found.ends.items():
                reached = min(end, bound.get(partition, START), key=order)
                self._positions[partition] = max(self._positions[partition], reached, key=order)

    def _apply(self, events: Iterable[Event]) -> None:
        for batch in batches(events, self._shadow.batch):
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

    def _live_positions(self) -> dict[int, str]:
        found: Any = self._run.log.hgetall(self._run.keys.cursor(self._name, self._live))
        return {int(p): id_.decode() for p, id_ in found.items() if p.isdigit()}

    def _judge(self) -> Outcome:
        """Both are tidied as of the same moment first: what is past its retention is no difference."""
        built, cpu = time.monotonic(), time.process_time()
        now = int(time.time() * 1000)
        live = self._consumer(self._live)
        for consumer in (live, self._shadow):
            consumer.tidy(now)
        left, right = _state(live), _state(self._shadow)
        differ = sorted(name for name in left.keys() | right.keys() if left.get(name) != right.get(name))
        said = tuple(
            f"{name}: live {left.get(name, b'-').decode()} replayed {right.get(name, b'-').decode()}" for name in differ
        )
        return Outcome(
            self._events, built - self._began, cpu - self._cpu_began, time.monotonic() - built, _digest(left),
            _digest(right), said,
        )  # fmt: skip

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


def replay(run: Runtime, names: Sequence[str], *, since_ms: int, swap: bool, as_json: bool = False) -> int:
    """The command: 0 if every projection came out equal (or was swapped), 1 with a list of differences."""
    status = 0
    for name in names or sorted(consumers()):
        work = Replay(run, name, since_ms=since_ms)
        outcome = work.swap() if swap else work.compare()
        if as_json:
            print(
                orjson.dumps({"projection": name, "equal": outcome.equal, "swapped": swap} | asdict(outcome)).decode()
            )
        else:
            _say(name, outcome, "swapped" if swap else "equal" if outcome.equal else "DIFFERENT")
        if not swap and not outcome.equal:
            status = 1
    return status


def _say(name: str, outcome: Outcome, verdict: str) -> None:
    rate = outcome.events / max(outcome.seconds, 0.001)
    took = f"in {outcome.seconds:.1f} s ({rate:,.0f}/s), compared in {outcome.compared_s:.1f} s"
    print(f"{name}: {verdict}; {outcome.events:,} events {took}")
    print(f"  live     {outcome.live}\n  replayed {outcome.shadow}")
    for line in outcome.differences[:SHOWN]:
        print(f"  {line}")
    if len(outcome.differences) > SHOWN:
        print(f"  … and {len(outcome.differences) - SHOWN} more")
