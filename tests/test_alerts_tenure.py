"""The alerts tenure: rules over facts, told once, posted until they are taken; and what the API says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.embedded import Server
from engine.quality.columns import table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC, lake_of
from tests.pipeline import owner, plant
from tests.receiver import SECRET, Receiver
from tests.servers import ApiProcess, service
from workers.alerts import Alerts
from workers.jobs import jobs
from workers.runtime import Runtime
from workers.tenure import LostOwnership

NOW = 1_800_000_000_000
RULES = """
[[alert]]
name = "stalls"
metric = "rebuffer_ratio"
by = ["cdn"]
above = 0.02
sessions = 10
window_s = 60
for_s = 30
clear_s = 30
severity = "page"
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found
        assert all(request.signed for request in found.asked)


@pytest.fixture
def run(single: Server, prefix: str, tmp_path: Path, receiver: Receiver) -> Iterator[Runtime]:
    (tmp_path / "alerts.toml").write_text(RULES)
    run = plant(
        single.url, single.url, prefix, lake_dir=str(tmp_path / "lake"), alerts_file=str(tmp_path / "alerts.toml"),
        alerts_webhook_url=receiver.url, alerts_webhook_secret=SECRET,
    )  # fmt: skip
    yield run
    run.close()


def items(receiver: Receiver) -> list[dict[str, Any]]:
    return [item for request in receiver.taken for item in request.items]


class Evening:
    """Viewers of two CDNs; the second one stalls as much as is said."""

    def __init__(self, run: Runtime) -> None:
        self.run, self.now = run, NOW
        self.owner = owner(run, "alerts")
        self.work = Alerts(run, self.owner, now=lambda: self.now)

    def goes_on(self, seconds: int, stalled: float, cdn: str = "two") -> int:
        """Facts and a judgement every 10 s; how often something was told."""
        told = 0
        for _ in range(seconds // 10):
            self.now += 10_000
            facts = []
            for n in range(20):
                common: dict[str, Any] = {
                    "at": self.now - 1,
                    "account": f"a{n}",
                    "session": f"s{n}",
                    "stream_ms": self.now,
                    "stream_seq": n,
                }
                for name, share in (("one", 0.0), (cdn, stalled)):
                    common |= {"cdn": name, "session": f"{name}{n}"}
                    facts.append(Fact(fact="play", ms=int(10_000 * (1 - share)), stalls_known=True, **common))
                    if share:
                        facts.append(
                            Fact(fact="stall", ms=int(10_000 * share), count=1, stalls_known=True, part=1, **common)
                        )
            lake = lake_of(self.run.settings)
            assert lake is not None
            lake.add(TOPIC, table(facts), {0: f"{self.now}-99"})
            told += self.judged()
        return told

    def judged(self) -> int:
        self.work._due = 0.0
        return self.work.step(0.0)

    def told(self) -> list[dict[str, Any]]:
        found: Any = self.run.log.xrange(self.run.keys.alerts_told)
        return [json.loads(fields[b"a"]) for _, fields in found]


@pytest.fixture
def evening(run: Runtime) -> Iterator[Evening]:
    found = Evening(run)
    yield found
    found.work.close()


def test_it_is_a_job_only_where_there_are_rules_and_a_lake(run: Runtime, single: Server) -> None:
    assert "alerts" in jobs(run.settings)
    bare = plant(single.url, single.url, "x")
    assert "alerts" not in jobs(bare.settings)
    bare.close()


def test_it_fires_for_its_group_is_posted_and_is_over(evening: Evening, receiver: Receiver) -> None:
    assert evening.goes_on(120, 0.0) == 0
    assert evening.goes_on(60, 0.2) == 1
    (fired,) = evening.told()
    assert (fired["alert"], fired["status"], fired["by"], fired["severity"]) == (
        "stalls",
        "firing",
        {"cdn": "two"},
        "page",
    )
    assert fired["value"] > 0.02
    assert fired["sessions"] == 20
    assert fired["at"] - fired["since_at"] == 30_000
    assert evening.goes_on(60, 0.2) == 0, "it is told once"
    assert evening.goes_on(120, 0.0) == 1
    assert [said["status"] for said in evening.told()] == ["firing", "resolved"]
    assert [item["status"] for item in items(receiver)] == ["firing", "resolved"]
    assert len(set(receiver.ids)) == 2


def test_what_the_receiver_does_not_take_is_offered_again(evening: Evening, receiver: Receiver) -> None:
    receiver.answer = lambda _: (503, {})
    evening.goes_on(60, 0.2)
    assert len(receiver.asked) == 1
    assert receiver.taken == []
    evening.judged()
    assert len(receiver.asked) == 1, "not at once"
    receiver.answer = lambda _: (204, {})
    evening.work._webhook._not_before = 0.0
    evening.judged()
    assert [item["status"] for item in items(receiver)] == ["firing"]
    evening.judged()
    assert len(receiver.asked) == 2


def test_another_worker_goes_on_and_the_former_tells_nothing(evening: Evening, run: Runtime) -> None:
    evening.goes_on(20, 0.2)
    former = evening.work
    former.close()
    run.log.delete(evening.owner.key)
    evening.owner = owner(run, "alerts")
    evening.work = Alerts(run, evening.owner, now=lambda: evening.now)
    evening.now += 30_000
    former._due = 0.0
    with pytest.raises(LostOwnership):
        former.step(0.0)
    assert evening.told() == []
    assert evening.goes_on(40, 0.2) == 1, "it had been pending since before"


def test_rules_that_go_take_their_states_with_them(evening: Evening, run: Runtime) -> None:
    evening.goes_on(60, 0.2)
    assert run.log.hlen(run.keys.alerts) == 2
    Path(run.settings.alerts_file).write_text("")
    evening.judged()
    assert run.log.hlen(run.keys.alerts) == 0


def test_a_rule_that_cannot_be_asked_keeps_the_others(evening: Evening, run: Runtime) -> None:
    evening.goes_on(20, 0.2)
    Path(run.settings.alerts_file).write_text(RULES + '[[alert]]\nname="x"\nmetric="colour"\nabove=1\n')
    assert evening.goes_on(60, 0.2) == 1
    assert "colour" in evening.work._rules.error


def test_the_api_says_what_fires_and_what_was_told(evening: Evening, run: Runtime, tmp_path: Path) -> None:
    evening.goes_on(60, 0.2)
    settings = {
        "log_redis_url": run.settings.log_redis_url,
        "alerts_file": run.settings.alerts_file,
        "lake_dir": run.settings.lake_dir,
    }
    with ApiProcess(run.settings.redis_url, tmp_path, prefix=run.settings.prefix, **settings) as api:
        reader = service("read")
        (firing,) = api.get("/v1/alerts", token=reader).json()["items"]
        assert (firing["alert"], firing["by"], firing["metric"]) == ("stalls", {"cdn": "two"}, "rebuffer_ratio")
        (quiet,) = api.get("/v1/alerts", params={"status": "quiet"}, token=reader).json()["items"]
        assert quiet["by"] == {"cdn": "one"}
        (told,) = api.get("/v1/alerts/history", token=reader).json()["items"]
        assert told["status"] == "firing"
        assert api.get("/v1/alerts", params={"status": "loud"}, token=reader).json()["error"]["field"] == "status"
        assert api.get("/v1/alerts", token=service("signals")).status_code == 403
        Path(run.settings.alerts_file).write_text("[[alert]")
        assert "alerts:" in api.get("/v1/alerts", token=reader).json()["rules_error"]
