"""Ownership of groups of partitions: one owner a group, and one count of groups a deployment."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.embedded import Server
from tests.pipeline import plant
from tests.servers import wait_for
from workers.runtime import Runtime
from workers.tenure import LostOwnership, OtherGroups, Ownership


@pytest.fixture
def make_run(single: Server, prefix: str) -> Iterator[type[Runtime]]:
    made: list[Runtime] = []

    def make(groups: int) -> Runtime:
        made.append(plant(single.url, single.url, prefix, groups=groups))
        return made[-1]

    yield make  # type: ignore[misc]
    for run in made:
        run.log.close()
        run.session.close()


def test_a_group_has_one_owner(make_run) -> None:  # type: ignore[no-untyped-def]
    run = make_run(1)
    first, second = Ownership(run, "mirror", 0), Ownership(run, "mirror", 0)
    assert first.acquire()
    assert not second.acquire()
    second.release()
    assert not second.acquire(), "only the owner can release it"
    second.seize()
    first._renewed = 0
    with pytest.raises(LostOwnership):
        first.renew()
    second.release()
    assert first.acquire()


def test_who_counts_groups_differently_owns_nothing_meanwhile(make_run) -> None:  # type: ignore[no-untyped-def]
    one, two = make_run(1), make_run(2)
    at_work = Ownership(one, "mirror", 0)
    assert at_work.acquire()
    for refused in (Ownership(two, "mirror", 1), Ownership(two, "consume-views", 0)):
        with pytest.raises(OtherGroups, match="PULSEGATE_GROUPS is 2 here and 1 where others are at work") as caught:
            refused.acquire()
        assert caught.value.field == "PULSEGATE_GROUPS"
        with pytest.raises(OtherGroups):
            refused.seize()
    assert one.log.exists(one.keys.owner("mirror", 1)) == 0


def test_the_count_changes_when_nobody_is_at_work_any_more(make_run, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("workers.tenure.GROUPS_MS", 200)
    one, two = make_run(1), make_run(2)
    at_work = Ownership(one, "mirror", 0)
    assert at_work.acquire()
    at_work._renewed = 0
    at_work.renew()
    assert 0 < one.log.pttl(one.keys.groups) <= 200
    at_work.release()

    def free() -> bool:
        try:
            return Ownership(two, "mirror", 1).acquire()
        except OtherGroups:
            return False

    wait_for(free, "the count is free")
    with pytest.raises(OtherGroups):
        at_work.acquire()
