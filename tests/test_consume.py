"""The runtime of consumers: each event counts once, whoever loses its partitions when; what cannot be handled is kept apart."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from redis.client import Pipeline

from engine import lag
from engine.embedded import Server
from engine.events import Event
from tests.pipeline import drain, look, owner, plant, put
from tests.servers import ROOT, clean_env
from workers.consume import Consume
from workers.consumer import Consumer, DeadLetter
from workers.mirror import Mirror
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership


class Kinds(Consumer):
    """Counts events by type."""

    name: ClassVar[str] = "kinds"

    def handle(self, events: Sequence[Event], pipe: Pipeline) -> None:
        counted = Counter(event.type for event in events)
        for kind, count in counted.items():
            pipe.hincrby(self.space.key("kinds"), kind, count)
        for event in events:
            if event.type == "poison":
                raise DeadLetter(event, "tastes bad")

    def dump(self) -> Iterator[tuple[str, Any]]:
        for kind, count in self.client.hgetall(self.space.key("kinds")).items():
            yield kind.decode(), int(count)

    def erase(self, account: str, pipe: Pipeline) -> int:
        return 0


class Lifecycle(Kinds):
    name: ClassVar[str] = "lifecycle"
    topics: ClassVar[tuple[str, ...]] = ("events",)


@pytest.fixture
def run(single: Server, prefix: str) -> Iterator[Runtime]:
    run = plant(single.url, single.url, prefix)
    yield run
    run.log.close()
    run.session.close()


def mirror(run: Runtime) -> None:
    ownership = owner(run, "mirror")
    work = Mirror(run, 0, ownership)
    drain(work)
    work._disk.close()
    ownership.release()


def consume(run: Runtime, cls: type[Consumer] = Kinds, ownership: Ownership | None = None) -> Consume:
    return Consume(run, 0, ownership or owner(run, f"consume-{cls.name}"), cls)


def state(run: Runtime, cls: type[Consumer] = Kinds) -> dict[str, int]:
    return dict(cls(run.log, run.keys.projection(cls.name, 1), run.settings).dump())


class TestOnce:
    def test_all_partitions_and_topics_count_once(self, run: Runtime) -> None:
        for partition in range(4):
            for kind in ("view_start", "heartbeat", "heartbeat", "view_end"):
                put(run, partition, kind)
        mirror(run)
        work = consume(run)
        assert drain(work) == 16
        assert drain(work) == 0
        assert state(run) == {"view_start": 4, "heartbeat": 8, "view_end": 4}

    def test_only_its_topics(self, run: Runtime) -> None:
        put(run, 0, "heartbeat")
        put(run, 0, "view_end")
        mirror(run)
        drain(consume(run, Lifecycle))
        assert state(run, Lifecycle) == {"view_end": 1}

    def test_who_lost_its_partitions_commits_nothing(self, run: Runtime) -> None:
        put(run, 0, "view_start")
        mirror(run)
        slow = consume(run)
        successor = Ownership(run, "consume-kinds", 0)
        successor.seize()
        with pytest.raises(LostOwnership):
            drain(slow)
        assert state(run) == {}
        assert drain(consume(run, ownership=successor)) == 1
        assert state(run) == {"view_start": 1}

    def test_losing_them_in_the_middle_of_a_commit_undoes_it(
        self, run: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(run, 0, "view_start")
        mirror(run)
        work = consume(run)
        successor = Ownership(run, "consume-kinds", 0)
        handle = Kinds.handle

        def lose(self: Kinds, events: Sequence[Event], pipe: Pipeline) -> None:
            handle(self, events, pipe)
            successor.seize()

        monkeypatch.setattr(Kinds, "handle", lose)
        with pytest.raises(LostOwnership):
            drain(work)
        assert state(run) == {}
        monkeypatch.undo()
        drain(consume(run, ownership=successor))
        assert state(run) == {"view_start": 1}

    def test_renewing_in_the_middle_of_a_commit_changes_nothing(
        self, run: Runtime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put(run, 0, "view_start")
        mirror(run)
        mine = owner(run, "consume-kinds")
        work = consume(run, ownership=mine)
        handle = Kinds.handle

        def renew(self: Kinds, events: Sequence[Event], pipe: Pipeline) -> None:
            handle(self, events, pipe)
            mine._renewed = 0.0
            mine.renew()

        monkeypatch.setattr(Kinds, "handle", renew)
        assert drain(work) == 1
        assert state(run) == {"view_start": 1}


class TestDeadLetters:
    def test_the_rest_of_the_batch_counts_once(self, run: Runtime) -> None:
        ids = [put(run, 3, kind) for kind in ("view_start", "poison", "view_end", "poison")]
        mirror(run)
        drain(consume(run))
        assert state(run) == {"view_start": 1, "view_end": 1}
        dead = [fields for _, fields in run.log.xrange(run.keys.dead("kinds"))]
        assert [letter[b"id"].decode() for letter in dead] == [f"3-{ids[1]}", f"3-{ids[3]}"]
        assert {letter[b"why"] for letter in dead} == {b"tastes bad"}

    def test_what_is_no_event_is_kept_too(self, run: Runtime) -> None:
        run.session.xadd(run.keys.outbox(0), {"e": b"no json"})
        put(run, 0, "view_end")
        mirror(run)
        drain(consume(run))
        assert state(run) == {"view_end": 1}
        assert [fields[b"e"] for _, fields in run.log.xrange(run.keys.dead("kinds"))] == [b"no json"]


class TestLag:
    def test_events_and_seconds_until_it_has_caught_up(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lag, "names", lambda: {"kinds": "consume-kinds", "lifecycle": "consume-lifecycle"})
        for kind in ("view_start", "heartbeat", "heartbeat"):
            put(run, 1, kind)
        mirror(run)
        works = [consume(run), consume(run, Lifecycle)]
        before = {found.name: found for found in look(run).lags}
        assert (before["kinds"].events, before["lifecycle"].events) == (3, 1)
        assert 0 < before["kinds"].seconds < 60
        for work in works:
            drain(work)
        after = look(run)
        assert [(found.events, found.seconds, found.owners) for found in after.lags] == [(0, 0.0, 1), (0, 0.0, 1)]
        assert [found.handled for found in after.lags] == [3, 1]
        assert after.mirrored == {"heartbeats": 2, "events": 1}
        assert after.trending_s is None
        assert "lifecycle" in lag.table(after)


class TestNewConsumer:
    """`pulsegate new-consumer`, as its user goes on from there."""

    def pulsegate(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "engine.cli", *words]
        return subprocess.run(
            command, cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=60, check=False
        )

    def test_it_passes_its_own_test_and_is_found_once_installed(self, tmp_path: Path) -> None:
        wrote = self.pulsegate("new-consumer", "plays_by_day", "--into", str(tmp_path))
        assert wrote.returncode == 0, wrote.stderr
        made = tmp_path / "plays_by_day"
        python = [sys.executable, "-m"]
        env = clean_env() | {"PYTHONPATH": f"{ROOT}:{made}"}
        tested = subprocess.run(
            [*python, "pytest", "-q", "-c", "/dev/null", str(made)],
            env=env,
            cwd=made,
            capture_output=True,
            text=True,
            check=False,
        )
        assert tested.returncode == 0, tested.stdout
        assert "3 passed" in tested.stdout
        site = tmp_path / "site"
        subprocess.run(
            [*python, "pip", "install", "-q", "--no-deps", "--target", str(site), str(made)],
            check=True,
            env=clean_env(),
        )
        found = subprocess.run(
            [sys.executable, "-c", "from workers.consumer import consumers; print(sorted(consumers()))"],
            env=clean_env() | {"PYTHONPATH": f"{site}:{ROOT}"}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "plays_by_day" in found.stdout

    @pytest.mark.parametrize(("name", "why"), [("Plays", "lower-case"), ("resume", "already"), ("../x", "lower-case")])
    def test_a_bad_name_writes_nothing(self, tmp_path: Path, name: str, why: str) -> None:
        refused = self.pulsegate("new-consumer", name, "--into", str(tmp_path))
        assert refused.returncode == 1
        assert why in refused.stderr
        assert list(tmp_path.iterdir()) == []
