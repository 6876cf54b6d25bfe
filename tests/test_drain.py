"""`pulsegate drain`: one job until nothing is left, whoever else is at work."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from engine.embedded import Server
from engine.errors import PulsegateError
from engine.events import Event
from engine.lake import Lake
from tests.harness import PARTITIONS
from tests.pipeline import log_ids, owner, plant, put
from tests.servers import ROOT, clean_env, environment
from tests.test_consume import mirror
from workers import sinks
from workers.consume import Consume
from workers.consumer import consumers
from workers.drain import drain
from workers.runtime import Runtime
from workers.sinks import Retry, Sink
from workers.tenure import Ownership, stopping


@pytest.fixture
def run(single: Server, tmp_path: Path, prefix: str) -> Iterator[Runtime]:
    # A sink that is asked to wait would wait longer than a test may take.
    run = plant(single.url, single.url, prefix, lake_dir=str(tmp_path / "lake"), lake_roll_s=300)
    yield run
    run.log.close()
    run.session.close()


def fill(run: Runtime, count: int = 40) -> int:
    """Views that begin and beat once, in several partitions; the number of events."""
    for n in range(count // 2):
        common: dict[str, Any] = {"account": f"account-{n}", "content": "film", "kind": "vod", "started_at": 1_000}
        put(run, n % PARTITIONS, "view_start", at=1_000, **common)
        put(run, n % PARTITIONS, "heartbeat", at=11_000, seq=1, **common, data={"position": 600, "state": "playing"})
    return count


def command(run: Runtime, *words: str) -> subprocess.CompletedProcess[str]:
    settings = run.settings
    env = environment(
        redis_url=settings.redis_url, prefix=settings.prefix, partitions=PARTITIONS, lake_dir=settings.lake_dir,
        groups=settings.groups,
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "engine.cli", "drain", *words], capture_output=True, text=True, timeout=60, check=False,
        cwd=ROOT, env=clean_env() | env,
    )  # fmt: skip


def unowned(run: Runtime, job: str) -> bool:
    return not run.log.exists(run.keys.owner(job, 0))


class TestJobs:
    @pytest.mark.parametrize("name", ["resume", "views"])
    def test_a_consumer_has_everything_afterwards(self, run: Runtime, name: str) -> None:
        sent = fill(run)
        mirror(run)
        found = drain(run, f"consume-{name}")
        assert (found.events, found.complete) == (sent, True)
        assert found.seconds > 0
        assert found.cpu_seconds > 0
        state = list(consumers()[name](run.log, run.keys.projection(name, 1), run.settings).dump())
        assert len(state) == sent // 2
        assert drain(run, f"consume-{name}").events == 0
        assert unowned(run, f"consume-{name}")

    def test_a_sink_gets_what_there_is_without_gathering(self, run: Runtime) -> None:
        lake = Lake(Path(run.settings.lake_dir))
        for _ in range(2):
            sent = fill(run)
            mirror(run)
            assert drain(run, "export-lake").events == sent
        assert len(list(lake.read())) == 2 * sent

    def test_all_groups_in_turn_or_one(self, single: Server, prefix: str) -> None:
        run = plant(single.url, single.url, prefix, groups=3)
        sent = fill(run)
        one = drain(run, "sweep", 1)
        assert one.groups == (1,)
        answer = command(run, "mirror", "--json")
        said = json.loads(answer.stdout)
        assert (said["groups"], said["events"]) == ([0, 1, 2], sent)
        run.log.close()
        run.session.close()


class TestOwnership:
    def test_what_another_owns_is_left_alone(self, run: Runtime) -> None:
        fill(run)
        other = owner(run, "mirror")
        refused = command(run, "mirror")
        assert refused.returncode == 1
        assert "another worker owns group 0; --seize" in refused.stderr
        assert not any(log_ids(run, p) for p in range(PARTITIONS))
        other.release()

    def test_seized_the_former_owner_cannot_write(self, run: Runtime) -> None:
        sent = fill(run)
        other = owner(run, "mirror")
        done = command(run, "mirror", "--seize", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["events"] == sent == sum(len(log_ids(run, p)) for p in range(PARTITIONS))
        assert unowned(run, "mirror")
        other.release()

    def test_taken_over_meanwhile_it_says_so(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(run)
        mirror(run)
        renew, calls = Ownership.renew, iter(range(100))

        def renew_then_lose(self: Ownership) -> None:
            if next(calls) == 0:
                Ownership(run, "consume-views", 0).seize()
            self._renewed = 0.0
            renew(self)

        monkeypatch.setattr(Ownership, "renew", renew_then_lose)
        with pytest.raises(PulsegateError, match="took group 0 over"):
            drain(run, "consume-views")
        assert not unowned(run, "consume-views")

    def test_asked_to_stop_it_hands_over(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(run)
        mirror(run)
        monkeypatch.setattr(stopping, "_set", True)
        found = drain(run, "consume-views")
        assert (found.events, found.complete) == (0, False)
        assert "stopped before the end" in found.text()
        assert unowned(run, "consume-views")

    def test_for_a_while_it_takes_what_comes_meanwhile(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        worked, empty, sent = Consume.step, itertools.count(1), 0

        def step(self: Consume, wait_s: float) -> int:
            nonlocal sent
            done = worked(self, 0.0)
            if done:
                monkeypatch.setattr(stopping, "_set", True)
            elif next(empty) == 5:
                sent = fill(run)
                mirror(run)
            return done

        monkeypatch.setattr(Consume, "step", step)
        assert drain(run, "consume-views", seconds=60).events == sent > 0


class Away(Sink):
    name: ClassVar[str] = "away"

    @classmethod
    def from_settings(cls, settings: object) -> Away:
        return cls()

    def deliver(self, events: list[Event]) -> None:  # type: ignore[override]
        raise Retry(None, "nobody there")


class TestFailures:
    def test_a_receiver_that_is_away_is_named(self, run: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        fill(run)
        mirror(run)
        monkeypatch.setattr(sinks, "configured", lambda settings: {"away": Away})
        monkeypatch.setattr(sinks, "load", lambda name: Away)
        with pytest.raises(PulsegateError, match="away: nobody there"):
            drain(run, "export-away")
        assert unowned(run, "export-away")

    def test_no_such_job_or_group(self, run: Runtime) -> None:
        with pytest.raises(PulsegateError, match=r"no job 'mirrors'; there are .*consume-resume.*mirror"):
            drain(run, "mirrors")
        with pytest.raises(PulsegateError, match="no group 3; the last is 0"):
            drain(run, "mirror", 3)
