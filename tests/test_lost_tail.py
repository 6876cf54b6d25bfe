"""What the scripts do after session Redis came back without its newest writes: no id twice, no view without an end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.exceptions import ResponseError

from engine import scripts
from engine.errors import PulsegateError
from engine.partitions import partition_of
from tests.harness import PARTITIONS, START, World


def raise_to(world: World, id_: str) -> bool:
    key = world.keys.outbox(partition_of("a", PARTITIONS))
    return bool(world.run(world.executor.run(scripts.load("raise"), [key], [id_]))[0])


def append(world: World, id_: str = "*") -> str:
    key = world.keys.outbox(partition_of("a", PARTITIONS))
    return str(world.run(world.client.xadd(key, {"e": '{"account":"a","type":"x"}'}, id=id_)).decode())


class TestRaise:
    def test_an_outbox_that_does_not_exist(self, world: World) -> None:
        far = 9_000_000_000_000
        assert raise_to(world, f"{far}-7")
        assert world.events() == []
        assert append(world) == f"{far}-8"

    def test_one_that_is_behind_keeps_what_it_has(self, world: World) -> None:
        append(world, "5-1")
        assert raise_to(world, "5-9")
        assert [e["type"] for e in world.events()] == ["x"]
        with pytest.raises(ResponseError, match="equal or smaller"):
            append(world, "5-9")
        assert append(world, "5-10") == "5-10"

    @pytest.mark.parametrize("id_", ["5-1", "5-0", "4-99", "0-0"])
    def test_one_that_is_not_is_left_alone(self, world: World, id_: str) -> None:
        append(world, "5-1")
        assert not raise_to(world, id_)
        assert append(world, "5-2") == "5-2"

    def test_raising_twice_is_once(self, world: World) -> None:
        assert raise_to(world, "7-7")
        assert not raise_to(world, "7-7")
        assert append(world, "7-8") == "7-8"

    def test_anything_else_is_an_error(self, world: World) -> None:
        with pytest.raises((ResponseError, PulsegateError), match="Invalid stream ID"):
            raise_to(world, "not-an-id")
        world.run(world.client.set(world.keys.outbox(partition_of("a", PARTITIONS)), "no stream"))
        with pytest.raises((ResponseError, PulsegateError), match="WRONGTYPE"):
            raise_to(world, "7-7")


class TestLost:
    def lose(self, world: World, view: int = 1, session: str = "s1", started: int = START) -> bool:
        k, s = world.keys.account("a"), world.settings
        who = {
            "account": "a",
            "profile": "",
            "device": "d1",
            "session": session,
            "content": "film",
            "kind": "vod",
            "v": 1,
        }
        body = json.dumps(who | {"data": {"reason": "lost", "last_seen_at": START - 1}}, separators=(",", ":"))[1:]
        args: list[Any] = [
            world.now, "a", s.tuning(), session, view, started, 2, s.request_ttl_ms, body,
        ]  # fmt: skip
        keys = [k.leases, k.deadlines, k.outbox, k.request("lost", f"{session}:{view}")]
        return bool(world.run(world.executor.run(scripts.load("lost"), keys, args))[0])

    def test_a_forgotten_view_ends_once(self, world: World) -> None:
        assert self.lose(world, started=START - 5000)
        assert not self.lose(world, started=START - 5000)
        assert world.events() == [
            {
                "type": "view_end", "at": START, "view": 1, "started_at": START - 5000, "revision": 2, "account": "a",
                "profile": "", "device": "d1", "session": "s1", "content": "film", "kind": "vod", "v": 1,
                "data": {"reason": "lost", "last_seen_at": START - 1},
            }
        ]  # fmt: skip
        assert self.lose(world, view=2)
        assert self.lose(world, session="s2")

    def test_one_that_goes_on_does_not(self, world: World) -> None:
        world.beat()
        before = world.events()
        assert not self.lose(world)
        assert world.events() == before
        world.wait(10)
        assert world.beat()["lease_expires_at"] == world.now + 30_000

    def test_nor_one_whose_end_is_in_the_outbox(self, world: World) -> None:
        world.beat()
        world.stop()
        assert not self.lose(world)
        assert len(world.events("a", "view_end")) == 1

    def test_a_refusal_since_then_is_no_view(self, world: World) -> None:
        world.beat("s2", "d2", limit=1)
        assert world.beat("s1", "d1", limit=1)["decision"] == "block"
        assert self.lose(world)

    def test_another_view_of_the_session_is_left_alone(self, world: World) -> None:
        world.beat("s1", "d1", seq=40)  # forgotten: it goes on from a number of its own
        assert self.lose(world)
        assert world.running() == {"s1"}
        assert world.leases() == {"s1": START + 30_000}

    def test_one_whose_number_came_back_is_another(self, world: World) -> None:
        world.beat()  # forgotten, and from seq 0 again
        assert self.lose(world, started=START - 5000)
        assert [(e["type"], e["view"], e["started_at"]) for e in world.events("a", "view_start", "view_end")] == [
            ("view_start", 1, START), ("view_end", 1, START - 5000),
        ]  # fmt: skip
        assert world.running() == {"s1"}

    def test_one_that_went_on_meanwhile_may_be_lost_later(self, world: World) -> None:
        world.beat()
        assert not self.lose(world)
        world.run(world.client.delete(world.keys.account("a").leases))
        assert self.lose(world)
