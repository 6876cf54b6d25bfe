"""Exports: every event arrives, in order, whatever the receiver does and whoever is killed when."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any, ClassVar, Self

import orjson
import pytest
from rq import SimpleWorker
from rq.job import Job
from rq.registry import FailedJobRegistry, ScheduledJobRegistry

from engine import deadletters
from engine.embedded import Server
from engine.events import EVENTS, HEARTBEATS, Event
from engine.lake import Lake
from engine.settings import Settings
from tests.harness import PARTITIONS
from tests.pipeline import owner, plant
from tests.receiver import SECRET, Answer, Receiver, Request
from tests.servers import ROOT, Child, clean_env, environment, wait_for
from workers import jobs, runtime, sinks
from workers.export import BACKOFF_S, RETRY_AFTER_MAX_S, Backoff, Export, Postponed
from workers.reading import LogReader
from workers.runtime import Runtime
from workers.sinks import Rejected, Retry, Sink, build, configured
from workers.tenure import LostOwnership
from workers.webhook import Webhook

START_S = 1_800_000_000.0


class Clock:
    """Seconds; moves by `+=` only."""

    def __init__(self) -> None:
        self.at = START_S

    def __call__(self) -> float:
        return self.at


class Listed(Sink):
    """Keeps what it is given; `fails` is raised instead, once each."""

    name: ClassVar[str] = "listed"
    topics = (HEARTBEATS, EVENTS)
    batch = 7

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.fails: list[Exception] = []

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        return cls()

    def deliver(self, events: Sequence[Event]) -> None:
        if self.fails:
            raise self.fails.pop(0)
        self.batches.append([event.id for event in events])

    @property
    def ids(self) -> list[str]:
        return [id_ for batch in self.batches for id_ in batch]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def run(single: Server, prefix: str, receiver: Receiver) -> Iterator[Runtime]:
    """A runtime whose webhook posts to the receiver."""
    found = plant(single.url, single.url, prefix, webhook_url=receiver.url, webhook_secret=SECRET, webhook_batch=10)
    build.cache_clear()
    yield found
    hook = build(Webhook, found.settings)
    if isinstance(hook, Webhook):
        hook.poster.close()
    build.cache_clear()
    found.log.close()
    found.session.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def put(run: Runtime, partition: int, n: int, kind: str = "custom", **fields: Any) -> str:
    """One event in the log, as the mirror writes it; its id."""
    topic = HEARTBEATS if kind == "heartbeat" else EVENTS
    said = {"type": kind, "at": 1, "account": "ann", "session": "s", "data": {"n": n}} | fields
    return put_raw(run, partition, f"{1000 + n}-0", topic, orjson.dumps(said))


def put_raw(run: Runtime, partition: int, id_: str, topic: str, payload: bytes) -> str:
    run.log.xadd(run.keys.log(partition, topic), {"e": payload}, id=id_)
    run.log.hset(run.keys.mirrored, str(partition), id_)
    return f"{partition}-{id_}"


def fill(run: Runtime, count: int) -> list[str]:
    """Events over all partitions; their ids."""
    return [put(run, n * 7 % PARTITIONS, n) for n in range(count)]


def export(run: Runtime, sink: type[Sink] = Webhook, clock: Callable[[], float] = time.time) -> Export:
    """A tenure's export; the one before it has let go, or has died and run out."""
    run.log.delete(run.keys.owner(f"export-{sink.name}", 0))
    return Export(run, 0, owner(run, f"export-{sink.name}"), sink, clock)


def drain(work: Export) -> int:
    done = 0
    while step := work.step(0.01):
        done += step
    return done


def cursor(run: Runtime, sink: str) -> dict[str, str]:
    found: Any = run.log.hgetall(run.keys.cursor(sink))
    return {field.decode(): value.decode() for field, value in found.items()}


def dead(run: Runtime, sink: str) -> list[deadletters.DeadLetter]:
    return list(deadletters.letters(run.log, run.keys, sink))


def by_partition(ids: Sequence[str]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for id_ in ids:
        out.setdefault(id_.split("-")[0], []).append(id_)
    return out


class TestDelivery:
    def test_every_event_arrives_once_and_in_order(self, run: Runtime, receiver: Receiver) -> None:
        sent = fill(run, 137)
        assert drain(export(run)) == 137
        assert by_partition(receiver.ids) == by_partition(sent)
        assert max(len(request.items) for request in receiver.taken) == 10
        more = fill_from(run, 137, 20)
        assert drain(export(run)) == 20
        assert by_partition(receiver.ids) == by_partition(sent + more)

    def test_both_topics_arrive_as_one_order(self, run: Runtime) -> None:
        sent = [put(run, 3, n, "heartbeat" if n % 3 else "pause") for n in range(40)]
        work = export(run, Listed)
        drain(work)
        assert listed(run).ids == sent
        assert {len(batch) for batch in listed(run).batches} <= {7, 5}

    def test_the_position_counts_what_was_delivered(self, run: Runtime) -> None:
        fill(run, 30)
        drain(export(run))
        found = cursor(run, "webhook")
        assert found["handled"] == "30"
        assert found["topics"] == EVENTS
        mirrored: Any = run.log.hgetall(run.keys.mirrored)
        reached = {field: id_ for field, id_ in found.items() if field.isdigit() and id_ != "0-0"}
        assert reached == {field.decode(): id_.decode() for field, id_ in mirrored.items()}

    def test_a_sink_with_positions_of_its_own_is_believed(self, run: Runtime) -> None:
        class Keeps(Listed):
            name: ClassVar[str] = "keeps"

            def positions(self) -> dict[int, str]:
                return {3: "1001-0"}

        ids = [put(run, 3, n) for n in range(4)]
        drain(export(run, Keeps))
        assert listed(run, Keeps).ids == ids[2:]

    def test_a_new_sink_begins_with_what_the_log_holds(self, run: Runtime) -> None:
        ids = [put(run, 3, n) for n in range(6)]
        run.log.hset(run.keys.trimmed, "3", "1002-0")
        run.log.xtrim(run.keys.log(3, EVENTS), minid="1003-0", approximate=False)
        work = export(run, Listed)
        drain(work)
        assert listed(run).ids == ids[3:]
        # What it never saw is nothing it lags behind by.
        assert cursor(run, "listed")["handled"] == "6"

    def test_what_cannot_be_decoded_is_kept_with_its_reason(self, run: Runtime) -> None:
        sent = [put(run, 3, n) for n in range(9)]
        put_raw(run, 3, "1002-5", HEARTBEATS, b"{nonsense")
        put_raw(run, 3, "1008-5", HEARTBEATS, b"[]")
        drain(export(run, Listed))
        assert listed(run).ids == sent
        assert [(letter.of, letter.payload) for letter in dead(run, "listed")] == [
            ("3-1002-5", b"{nonsense"),
            ("3-1008-5", b"[]"),
        ]
        drain(export(run, Listed))
        assert len(dead(run, "listed")) == 2

    def test_a_sink_may_let_events_gather(self, run: Runtime) -> None:
        class Gathers(Listed):
            name: ClassVar[str] = "gathers"
            left = 5.0

            def gather_s(self, partitions: Sequence[int]) -> float:
                assert list(partitions) == list(range(PARTITIONS))
                return self.left

        sent = [put(run, 3, n) for n in range(4)]
        work = export(run, Gathers)
        assert work.step(0.01) == 0
        Gathers.left = 0.0
        assert drain(work) == 4
        assert listed(run, Gathers).ids == sent

    def test_each_group_has_its_own_part(self, single: Server, prefix: str) -> None:
        run = plant(single.url, single.url, prefix, groups=2)
        sent = fill(run, 40)
        drain(Export(run, 1, owner(run, "export-listed", 1), Listed))
        odd = [id_ for id_ in sent if int(id_.split("-")[0]) % 2]
        assert by_partition(listed(run).ids) == by_partition(odd)
        run.log.close()
        run.session.close()


def fill_from(run: Runtime, first: int, count: int) -> list[str]:
    return [put(run, n * 7 % PARTITIONS, n) for n in range(first, first + count)]


def listed(run: Runtime, sink: type[Listed] = Listed) -> Listed:
    found = build(sink, run.settings)
    assert isinstance(found, Listed)
    return found


class TestFailures:
    def test_it_is_left_alone_and_then_gets_the_same_again(
        self, run: Runtime, receiver: Receiver, clock: Clock
    ) -> None:
        sent = fill(run, 25)
        receiver.answer = lambda _: (503, {})
        with pytest.raises(Postponed, match="503"):
            export(run, clock=clock).step(0)
        # Meanwhile more has happened, and another worker looks after it.
        sent += fill_from(run, 25, 25)
        work = export(run, clock=clock)
        with pytest.raises(Postponed, match="left alone"):
            work.step(0)
        assert len(receiver.asked) == 1
        receiver.answer = lambda _: (200, {})
        clock.at += BACKOFF_S[0]
        assert drain(work) == 50
        failed, again = receiver.asked[0], receiver.asked[1]
        assert (again.body, again.headers["pulsegate-batch"]) == (failed.body, failed.headers["pulsegate-batch"])
        assert again.signed
        assert by_partition(receiver.ids) == by_partition(sent)
        assert len(set(receiver.ids)) == 50

    def test_a_tenure_that_is_not_ended_by_a_failure_goes_on_with_it(self, run: Runtime, clock: Clock) -> None:
        sent = [put(run, 3, n) for n in range(20)]
        work = export(run, Listed, clock)
        listed(run).fails = [Retry(None, "no"), ValueError("what is that?")]
        for error in (Postponed, ValueError):
            with pytest.raises(error):
                work.step(0)
            clock.at += 60
        drain(work)
        assert listed(run).ids == sent

    def test_any_other_error_counts_as_a_failure(self, run: Runtime, clock: Clock) -> None:
        put(run, 3, 1)
        listed(run).fails = [ValueError("what is that?")]
        with pytest.raises(ValueError, match="what is that"):
            export(run, Listed, clock).step(0)
        with pytest.raises(Postponed):
            export(run, Listed, clock).step(0)
        clock.at += BACKOFF_S[0]
        assert drain(export(run, Listed, clock)) == 1

    def test_a_receiver_that_dies_and_comes_back_gets_everything(
        self, run: Runtime, receiver: Receiver, clock: Clock
    ) -> None:
        sent = fill(run, 30)
        work = export(run, clock=clock)
        assert work.step(0) == 10
        receiver.close()
        build(Webhook, run.settings).poster.close()  # type: ignore[union-attr]  # its connection died with it
        build.cache_clear()
        with pytest.raises(Postponed, match="ConnectError"):
            export(run, clock=clock).step(0)
        clock.at += 1
        with Receiver(receiver.port) as again:
            drain(export(run, clock=clock))
            assert by_partition(receiver.ids + again.ids) == by_partition(sent)

    def test_back_off_grows_and_is_forgotten(self, run: Runtime, clock: Clock) -> None:
        backoff = Backoff(run.log, run.keys, "x", 0, clock)
        assert backoff.wait_s() == 0
        waits = [backoff.failed(None, "no") for _ in range(len(BACKOFF_S) + 2)]
        assert waits == [*BACKOFF_S, BACKOFF_S[-1], BACKOFF_S[-1]]
        assert backoff.wait_s() == BACKOFF_S[-1]
        clock.at += BACKOFF_S[-1] - 1
        assert backoff.wait_s() == pytest.approx(1, abs=0.01)
        backoff.succeeded()
        assert backoff.wait_s() == 0
        assert backoff.failed(None, "no") == BACKOFF_S[0]

    def test_what_the_receiver_asks_for_counts_for_all_groups(self, run: Runtime, clock: Clock) -> None:
        one, other = (Backoff(run.log, run.keys, "x", group, clock) for group in (0, 1))
        assert one.failed(None, "no") == BACKOFF_S[0]
        assert other.wait_s() == 0
        assert one.failed(90, "429") == 90
        assert other.wait_s() == pytest.approx(90, abs=0.01)
        assert one.failed(1_000_000, "429") == RETRY_AFTER_MAX_S
        one.succeeded()
        assert one.wait_s() == pytest.approx(RETRY_AFTER_MAX_S, abs=0.01)

    def test_retry_after_is_honoured(self, run: Runtime, receiver: Receiver, clock: Clock) -> None:
        put(run, 3, 1)
        receiver.answer = lambda _: (429, {"Retry-After": "30"})
        with pytest.raises(Postponed):
            export(run, clock=clock).step(0)
        receiver.answer = lambda _: (200, {})
        clock.at += 29
        with pytest.raises(Postponed):
            export(run, clock=clock).step(0)
        assert len(receiver.asked) == 1
        clock.at += 1.1
        assert drain(export(run, clock=clock)) == 1

    def test_who_has_lost_the_partitions_moves_nothing(self, run: Runtime, receiver: Receiver) -> None:
        sent = [put(run, 3, n) for n in range(3)]
        receiver.answer = lambda request: (422 if len(request.items) > 1 or "1001" in request.ids[0] else 200, {})
        work = export(run)
        before = cursor(run, "webhook")
        run.log.set(run.keys.owner("export-webhook", 0), "another")
        with pytest.raises(LostOwnership):
            work.step(0)
        assert cursor(run, "webhook") == before
        assert dead(run, "webhook") == []
        drain(export(run))
        assert [letter.of for letter in dead(run, "webhook")] == [sent[1]]
        assert receiver.ids == [sent[0], sent[2]] * 2

    def test_a_slow_receiver_does_not_cost_the_partitions(
        self, run: Runtime, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.tenure.OWNER_MS", 1_500)
        put(run, 3, 1)
        over = threading.Event()
        receiver.answer = lambda _: (200 if over.wait(20) else 500, {})
        work = export(run)
        thread = threading.Thread(target=lambda: work.step(0))
        thread.start()
        try:
            wait_for(lambda: receiver.asked, "the request")
            until = time.monotonic() + 2.5
            while time.monotonic() < until:
                assert run.log.exists(run.keys.owner("export-webhook", 0))
                time.sleep(0.05)
        finally:
            over.set()
            thread.join()
        assert cursor(run, "webhook")["3"] == "1001-0"


class TestDeadLetters:
    def refuse(self, *numbers: int) -> Callable[[Request], Answer]:
        return lambda request: (422 if any(item["data"]["n"] in numbers for item in request.items) else 200, {})

    def test_what_is_refused_is_kept_and_the_rest_arrives(self, run: Runtime, receiver: Receiver, clock: Clock) -> None:
        sent = [put(run, 3, n) for n in range(30)]
        receiver.answer = self.refuse(4, 5, 29)
        assert drain(export(run, clock=clock)) == 30
        letters = dead(run, "webhook")
        assert [letter.of for letter in letters] == [sent[4], sent[5], sent[29]]
        assert {letter.why for letter in letters} == {"422 answer 422"}
        assert {letter.at for letter in letters} == {int(START_S * 1000)}
        assert letters[0].event().export() == letters[0].event().export()
        assert receiver.ids == [id_ for n, id_ in enumerate(sent) if n not in (4, 5, 29)]

    def test_the_oldest_go_when_there_are_too_many(self, single: Server, prefix: str, receiver: Receiver) -> None:
        run = plant(
            single.url, single.url, prefix, webhook_url=receiver.url, webhook_secret=SECRET, webhook_body_max=1024, dead_max=10
        )  # fmt: skip
        for n in range(400):
            put(run, 3, n, data={"n": n, "text": "x" * 1024})
        drain(export(run))
        kept = dead(run, "webhook")
        assert 10 <= len(kept) < 200
        assert kept[-1].of == "3-1399-0"
        run.log.close()
        run.session.close()

    def test_an_account_can_be_erased(self, run: Runtime, receiver: Receiver) -> None:
        receiver.answer = lambda _: (422, {})
        _, other, _ = (put(run, 3, n, account=account) for n, account in enumerate(['a"b', 'a"bc', 'a"b']))
        drain(export(run))
        assert deadletters.count(run.log, run.keys, "webhook") == 3
        assert deadletters.erase(run.log, run.keys, "webhook", 'a"b') == 2
        assert [letter.of for letter in dead(run, "webhook")] == [other]


class TestCommand:
    def pulsegate(self, run: Runtime, *words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        names = ("redis_url", "log_redis_url", "prefix", "partitions", "webhook_url", "webhook_secret", "webhook_batch")
        env = environment(**({name: getattr(run.settings, name) for name in names} | settings))
        return subprocess.run(
            [sys.executable, "-m", "engine.cli", "dead", *words], env=clean_env() | env, cwd=ROOT, capture_output=True,
            text=True, timeout=60, check=False,
        )  # fmt: skip

    @pytest.fixture
    def letters(self, run: Runtime, receiver: Receiver) -> list[deadletters.DeadLetter]:
        """Three of them, of the events 1, 2 and 3 (whose account looks odd in a terminal)."""
        run.session.hset(run.keys.layout, "partitions", PARTITIONS)
        for n in range(5):
            put(run, 3, n, account="\x1b[31m" if n == 3 else "ann")
        receiver.answer = TestDeadLetters().refuse(1, 2, 3)
        drain(export(run))
        return dead(run, "webhook")

    def test_list(self, run: Runtime, letters: list[deadletters.DeadLetter]) -> None:
        shown = self.pulsegate(run, "list", "webhook")
        assert shown.returncode == 0, shown.stderr
        assert [line.split()[0] for line in shown.stdout.splitlines()[::2]] == [letter.id for letter in letters]
        assert "422 answer 422" in shown.stdout
        assert "\x1b" not in shown.stdout
        first, second = self.pulsegate(run, "list", "webhook", "--json", "--limit", "2").stdout.splitlines()
        assert json.loads(first)["of"] == "3-1001-0"
        assert json.loads(json.loads(second)["event"])["data"] == {"n": 2}

    def test_replay(self, run: Runtime, receiver: Receiver, letters: list[deadletters.DeadLetter]) -> None:
        receiver.answer = TestDeadLetters().refuse(2)
        before = len(receiver.ids)
        done = self.pulsegate(run, "replay", "webhook", "--all")
        assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "delivered 2, still refused 1"), done.stderr
        assert receiver.ids[before:] == [letters[0].of, letters[2].of]
        assert all(request.signed for request in receiver.taken)
        assert [letter.of for letter in dead(run, "webhook")] == [letters[1].of]
        receiver.answer = lambda _: (200, {})
        done = self.pulsegate(run, "replay", "webhook", "--id", letters[1].id)
        assert (done.returncode, done.stdout) == (0, "delivered 1, still refused 0\n")
        assert dead(run, "webhook") == []
        assert self.pulsegate(run, "replay", "webhook", "--id", letters[1].id).returncode == 1

    def test_replay_while_the_receiver_is_away(
        self, run: Runtime, receiver: Receiver, letters: list[deadletters.DeadLetter]
    ) -> None:
        receiver.answer = lambda _: (503, {})
        asked = len(receiver.asked)
        done = self.pulsegate(run, "replay", "webhook", "--all", webhook_batch=1)
        assert done.returncode == 1
        assert "503" in done.stdout
        assert len(receiver.asked) == asked + 1
        assert dead(run, "webhook") == letters

    def test_drop(self, run: Runtime, letters: list[deadletters.DeadLetter]) -> None:
        assert self.pulsegate(run, "drop", "webhook", "--id", letters[0].id).stdout == "dropped 1\n"
        assert dead(run, "webhook") == letters[1:]

    def test_wrong_use(self, run: Runtime, letters: list[deadletters.DeadLetter]) -> None:
        assert self.pulsegate(run, "replay", "webhook").returncode == 2
        unknown = self.pulsegate(run, "replay", "nowhere", "--all")
        assert (unknown.returncode, unknown.stderr.count("nowhere is not a sink")) == (1, 1)
        assert self.pulsegate(run, "list", "webhook", redis_url="redis://127.0.0.1:1").returncode == 1


WORKER = """
import os, sys, time
from engine.settings import Settings
from workers.export import Export
from workers.runtime import runtime
from workers.tenure import Ownership
from workers.webhook import Webhook
run = runtime(Settings.from_env(os.environ))
owner = Ownership(run, "export-webhook", 0)
while not owner.acquire():
    time.sleep(0.02)
work = Export(run, 0, owner, Webhook)
while True:
    work.step(0.05)
    owner.renew()
"""


class TestKilled:
    def test_killed_between_delivery_and_commit_it_repeats_the_same_batch(
        self, run: Runtime, receiver: Receiver, tmp_path: Path
    ) -> None:
        """kill −9 while the receiver holds the request, again and again: each time it has the events, and nobody knows."""
        sent = fill(run, 95)
        kills = iter([2, 5, 6])
        kill_at = [next(kills)]
        env = environment(**{
            name: getattr(run.settings, name)
            for name in ("redis_url", "log_redis_url", "prefix", "partitions", "webhook_url", "webhook_secret", "webhook_batch")
        })  # fmt: skip
        child = Child([sys.executable, "-c", WORKER], tmp_path / "worker.log", env)

        def answer(_: Request) -> Answer:
            if len(receiver.asked) == kill_at[0]:
                kill_at[0] = next(kills, -1)
                os.kill(child.pid, signal.SIGKILL)
            return 200, {}

        receiver.answer = answer
        killed: list[Request] = []
        for _ in range(3):
            child.start()
            assert child.wait(60) == -signal.SIGKILL
            killed.append(receiver.asked[-1])
            # As time would: a dead owner's lease runs out.
            run.log.delete(run.keys.owner("export-webhook", 0))
            sent += fill_from(run, len(sent), 5)
        with child:
            wait_for(lambda: set(receiver.ids) == set(sent), f"all events; it said {child.said()[-2000:]}", 30)
        batches = [request.headers["pulsegate-batch"] for request in receiver.asked]
        for request in killed:
            repeated = [r for r in receiver.asked if r.headers["pulsegate-batch"] == request.headers["pulsegate-batch"]]
            assert len(repeated) >= 2
            assert {r.body for r in repeated} == {request.body}
        assert len(receiver.asked) - len(set(batches)) == 3
        unique = list(dict.fromkeys(receiver.ids))
        assert by_partition(unique) == by_partition(sent)


class Slow(Listed):
    """Waits until it is let go."""

    name: ClassVar[str] = "slow"
    go = threading.Event()

    def deliver(self, events: Sequence[Event]) -> None:
        assert self.go.wait(20)
        super().deliver(events)


class TestApart:
    def test_a_slow_sink_does_not_delay_another(self, run: Runtime) -> None:
        sent = [put(run, 3, n) for n in range(50)]
        slow, fast = export(run, Slow), export(run, Listed)
        thread = threading.Thread(target=lambda: drain(slow))
        thread.start()
        try:
            drain(fast)
            assert listed(run).ids == sent
            assert listed(run, Slow).ids == []
        finally:
            Slow.go.set()
            thread.join()
        assert listed(run, Slow).ids == sent

    def test_a_dead_sink_fails_its_own_job_and_rq_tries_it_when_the_receiver_says(
        self, run: Runtime, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(run, 3, 1)
        receiver.answer = lambda _: (429, {"Retry-After": "77"})
        monkeypatch.setattr(runtime, "runtime", lambda _: run)
        monkeypatch.setattr(jobs, "runtime", lambda _: run)
        run.queue_of("export-webhook").empty()
        jobs.queue_tenure(run, "export-webhook", 0)
        before = time.time()
        SimpleWorker([run.queue_of("export-webhook")], connection=run.log).work(burst=True, logging_level="CRITICAL")
        registry = ScheduledJobRegistry(queue=run.queue_of("export-webhook"))
        (job_id,) = [found for found in registry.get_job_ids() if found.startswith("export-webhook")]
        due = registry.get_scheduled_time(job_id).timestamp()
        assert before + 76 <= due <= time.time() + 78
        assert FailedJobRegistry(queue=run.queue_of("export-webhook")).get_job_ids() == []
        # Nobody owns the group meanwhile, and no second tenure is queued.
        assert not run.log.exists(run.keys.owner("export-webhook", 0))
        jobs.queue_tenure(run, "export-webhook", 0)
        assert run.queue_of("export-webhook").get_job_ids() == []
        Job.fetch(job_id, connection=run.log).delete()


class TestCatchUp:
    def trim(self, run: Runtime, partition: int, upto: int) -> None:
        run.log.hset(run.keys.trimmed, str(partition), f"{1000 + upto}-0")
        run.log.xtrim(run.keys.log(partition, EVENTS), minid=f"{1000 + upto}-1", approximate=False)

    def test_what_the_log_has_forgotten_comes_from_the_lake(
        self, single: Server, prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = plant(single.url, single.url, prefix, lake_dir=str(tmp_path / "lake"))
        for n in range(60):
            put(run, n % 3, n)
        drain(export(run, Listed))
        before = len(listed(run).ids)
        sent = [put(run, n % 3, n, "heartbeat" if n % 5 else "pause") for n in range(100, 160)]
        Lake(tmp_path / "lake").append(LogReader(run.log, run.keys, range(PARTITIONS)).read({})[0])
        for partition in (0, 1):
            self.trim(run, partition, 140)
            run.log.xtrim(run.keys.log(partition, HEARTBEATS), minid="1141-0", approximate=False)
        sent += [put(run, n % 3, n) for n in range(160, 170)]
        drain(export(run, Listed))
        assert by_partition(listed(run).ids[before:]) == by_partition(sent)
        assert cursor(run, "listed")["0"] == "1168-0"
        assert cursor(run, "listed")["handled"] == "130"
        assert not [r for r in caplog.records if r.name == "workers.export"]
        run.log.close()
        run.session.close()

    def test_killed_while_it_catches_up_it_goes_on_from_there(
        self, single: Server, prefix: str, tmp_path: Path
    ) -> None:
        run = plant(single.url, single.url, prefix, lake_dir=str(tmp_path / "lake"))
        drain(export(run, Listed))
        sent = [put(run, n % 3, n) for n in range(60)]
        Lake(tmp_path / "lake").append(LogReader(run.log, run.keys, range(PARTITIONS)).read({})[0])
        for partition in range(3):
            self.trim(run, partition, 59)
        assert export(run, Listed).step(0) == Listed.batch
        drain(export(run, Listed))
        assert by_partition(listed(run).ids) == by_partition(sent)
        run.log.close()
        run.session.close()

    def test_without_a_lake_the_gap_is_said_and_it_goes_on(
        self, run: Runtime, caplog: pytest.LogCaptureFixture
    ) -> None:
        put(run, 3, 1)
        drain(export(run, Listed))
        ids = [put(run, 3, n) for n in range(10, 16)]
        self.trim(run, 3, 12)
        drain(export(run, Listed))
        assert listed(run).ids[1:] == ids[3:]
        assert [(r.message, r.partitions) for r in caplog.records if r.name == "workers.export"] == [
            ("lost_to_sink", [3])
        ]  # type: ignore[attr-defined]


class TestPlugIns:
    def test_what_is_installed_is_found(self) -> None:
        assert sinks.sinks()["webhook"] is Webhook

    def test_only_what_is_configured_runs(self) -> None:
        on = Settings(webhook_url="https://host/x", webhook_secret=SECRET)
        assert "webhook" not in configured(Settings())
        assert configured(on)["webhook"] is Webhook
        assert "export-webhook" in jobs.jobs(on)
        assert "export-webhook" not in jobs.jobs(Settings())

    def test_a_broken_plug_in_is_left_out(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        found = [
            EntryPoint("webhook", "workers.webhook:Webhook", sinks.GROUP),
            EntryPoint("gone", "no.such:Sink", sinks.GROUP),
        ]
        found.append(EntryPoint("misnamed", "workers.webhook:Webhook", sinks.GROUP))
        monkeypatch.setattr(sinks, "entry_points", lambda group: EntryPoints(found))
        assert list(configured(Settings(webhook_url="https://host/x", webhook_secret=SECRET))) == ["webhook"]
        assert {r.sink for r in caplog.records if r.message == "broken_sink"} == {"gone", "misnamed"}  # type: ignore[attr-defined]

    def test_a_rejection_gives_each_event_its_reason(self) -> None:
        one, two = Event("a", 1, "x"), Event("b", 1, "x")
        assert Rejected([one, two], "no").refused == [(one, "no"), (two, "no")]
        assert Rejected([one, two], ["no", "never"]).refused == [(one, "no"), (two, "never")]
        with pytest.raises(ValueError, match="shorter"):
            Rejected([one, two], ["no"])

    def test_the_worked_example_works(self, run: Runtime, tmp_path: Path) -> None:
        """The class and the entry point as docs/exports.md prints them, installed beside the engine."""
        text = (ROOT / "docs" / "exports.md").read_text()
        (module,) = re.findall(r"```python\n(# jsonl_sink\.py\n.*?)```", text, re.DOTALL)
        (project,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
        (tmp_path / "jsonl_sink.py").write_text(module)
        info = tmp_path / "jsonl_sink-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: jsonl-sink\nVersion: 1.0\n")
        points = tomllib.loads(project)["project"]["entry-points"]
        lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in found.items()) for group, found in points.items()]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")

        sent = [put(run, 3, n, "secret" if n == 4 else "custom") for n in range(9)]
        put(run, 3, 20, "heartbeat")
        script = (
            "import os; from engine.settings import Settings; from workers.runtime import runtime; from workers.jobs import jobs, work as work_of;"
            "from workers.tenure import Ownership; run = runtime(Settings.from_env(os.environ));"
            "owner = Ownership(run, 'export-jsonl', 0); owner.acquire();"
            "assert 'export-jsonl' in jobs(run.settings);work = work_of(run, 'export-jsonl', 0, owner)\nwhile work.step(0.01): pass"
        )
        names = ("redis_url", "log_redis_url", "prefix", "partitions")
        env = clean_env() | environment(**{name: getattr(run.settings, name) for name in names})
        env |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "JSONL_PATH": str(tmp_path / "events.jsonl")}
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        lines = (tmp_path / "events.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == [id_ for n, id_ in enumerate(sent) if n != 4]
        assert [(letter.of, letter.why) for letter in dead(run, "jsonl")] == [
            (sent[4], "secrets are not written to files")
        ]

    def test_the_docs_verification_is_the_engines(self) -> None:
        from engine.signing import sign

        text = (ROOT / "docs" / "exports.md").read_text()
        (block,) = re.findall(r"```python\n(import hmac.*?)```", text, re.DOTALL)
        found: dict[str, Any] = {}
        exec(block, found)
        stamp = int(time.time())
        headers = {"Pulsegate-Timestamp": str(stamp), "Pulsegate-Signature": sign(SECRET, stamp, b"{}")}
        assert found["genuine"](SECRET.encode(), headers, b"{}")
        assert not found["genuine"](SECRET.encode(), headers, b"{ }")
