"""A burst of one account opens nobody's limit: neither its own, nor another account's."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.embedded import Server
from engine.errors import AccountBusy
from engine.tokens import Claims
from engine.wire import Signal, decode_heartbeat
from tests.harness import World
from tests.servers import ApiProcess, player, service


def body(session: str, device: str, seq: int = 0) -> str:
    return json.dumps({
        "session": session, "device": device, "content": "film", "kind": "vod", "state": "playing", "seq": seq, "position": 1,
    })  # fmt: skip


def test_an_account_has_a_bound_on_what_it_has_under_way(single: Server, prefix: str) -> None:
    """Whoever is over it learns so; others are decided meanwhile, and it is itself when some of it is done."""
    with World(single.url, prefix, account_inflight_max=4) as world:
        beat = decode_heartbeat(body("s", "d").encode())

        async def ask(account: str) -> Any:
            return await world.decisions.heartbeat(Claims(account=account, max_streams=1), beat, b"{}", [])

        async def go() -> list[Any]:
            return await asyncio.gather(*(ask("greedy") for _ in range(10)), ask("other"), return_exceptions=True)

        *greedy, other = world.run(go())
        assert [type(each) for each in greedy] == [dict] * 4 + [AccountBusy] * 6
        assert other["decision"] == "allow"
        assert not other["degraded"]
        assert world.run(ask("greedy"))["decision"] == "allow"


def test_a_burst_of_refusals_lets_nobody_else_in(single: Server, prefix: str, tmp_path: Path) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix) as api:
        greedy, bystander = player("greedy", max_streams=1), player("bystander", max_streams=1)
        for token in (greedy, bystander):
            assert api.beat(token, "s1", "d1")["decision"] == "allow"

        async def post(client: httpx.AsyncClient, token: str, session: str, device: str) -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"}
            return await client.post(f"{api.base}/v1/heartbeats", content=body(session, device), headers=headers)

        async def go() -> tuple[list[httpx.Response], list[httpx.Response]]:
            limits = httpx.Limits(max_connections=400)
            async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as client:
                burst = [asyncio.create_task(post(client, greedy, f"x{n}", f"y{n}")) for n in range(300)]
                asked = [await post(client, bystander, f"b{n}", f"c{n}") for n in range(8)]
                return await asyncio.gather(*burst), asked

        burst, asked = asyncio.run(go())
        for answer in (*burst, *asked):
            if answer.status_code == 429:
                assert answer.json()["error"]["code"] == "account_busy"
                assert answer.headers["retry-after"]
            else:
                said = answer.json()
                assert (said["decision"], said["reason"]) == ("block", "limit_reached"), said
        assert {answer.status_code for answer in asked} == {200}, "who sends one at a time is always decided"


def test_the_edge_refuses_what_a_burst_would_let_through(single: Server, prefix: str, tmp_path: Path) -> None:
    """The edge lets pass what cannot be decided; that an account asks too much at once is no such thing."""
    with ApiProcess(single.url, tmp_path, prefix=prefix, account_inflight_max=1) as api:
        assert api.beat(player("ann", max_streams=1), "s1", "d1")["decision"] == "allow"
        token = player("ann", max_streams=1, device="d2")

        async def go() -> list[httpx.Response]:
            headers = {"Authorization": f"Bearer {token}", "X-Original-URI": "/vod/other/1.ts"}
            async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
                asked = (client.get(f"{api.base}/v1/edge/authorize", headers=headers) for _ in range(50))
                return await asyncio.gather(*asked)

        answers = asyncio.run(go())
        assert {answer.status_code for answer in answers} == {403}
        assert {answer.headers["x-pulsegate-reason"] for answer in answers} >= {"limit_reached", "account_busy"}


def test_a_backends_batch_about_one_account_is_told_whole(single: Server, prefix: str, tmp_path: Path) -> None:
    with ApiProcess(single.url, tmp_path, prefix=prefix, account_inflight_max=2) as api:
        signals = [{"account": "ann", "device": "d", "evidence": "segment", "content": "film", "kind": "vod"}] * 100
        answer = api.post("/v1/signals", token=service("signals"), content=json.dumps(signals))
        assert answer.status_code == 200
        assert [each["decision"] for each in answer.json()] == ["allow"] * 100


def test_a_busy_account_in_a_backends_batch_costs_the_others_nothing(single: Server, prefix: str) -> None:
    with World(single.url, prefix, account_inflight_max=1) as world:
        busy, other = (
            Signal(account=account, device="d", evidence="segment", content="film", kind="vod")
            for account in ("busy", "other")
        )

        async def go() -> Any:
            world.decisions.quotas.use("busy").under_way = 1  # as if a call of its own took for ever
            return await asyncio.wait_for(world.decisions.signals([(busy, b"{}"), (other, b"{}"), (busy, b"{}")]), 30)

        first, second, third = world.run(go())
        assert second["decision"] == "allow"
        for refused in (first, third):
            assert (refused["decision"], refused["reason"]) == ("block", "account_busy")
            assert refused["retry_at"] > world.now


@pytest.mark.parametrize("plan", ["unlimited", ""])
def test_an_account_is_bounded_whatever_its_plan(backend: str, prefix: str, plan: str) -> None:
    """By rules that match nothing, and by a token that allows a thousand."""
    plans = """
default = "two"
[plans.two]
[[plans.two.rules]]
name = "streams"
limit = 2
[plans.unlimited]
[[plans.unlimited.rules]]
name = "live"
limit = 1
kind = "live"
"""
    with World(backend, prefix, plans, sessions_max=12, records_max=4) as world:
        limit = None if plan else 1000
        for n in range(12):
            assert world.beat(f"s{n}", f"d{n}", plan=plan, limit=limit)["decision"] == "allow"
        refused = world.beat("s12", "d12", plan=plan, limit=limit)
        assert (refused["decision"], refused["reason"], refused["rule"], refused["limit"]) == (
            "block",
            "limit_reached",
            "account",
            12,
        )
        assert refused["retry_at"] > world.now
        world.wait(1)
        for n in range(12):
            assert world.beat(f"s{n}", f"d{n}", plan=plan, limit=limit)["decision"] == "allow", "who plays goes on"
        for n in range(40):
            world.stop(f"s{n % 12}")
            world.beat(f"s{n % 12}", f"d{n % 12}", f"film-{n}", plan=plan, limit=limit)
            world.beat(f"x{n}", f"y{n}", plan=plan, limit=limit)
        size = world.run(world.client.zcard(world.keys.account("a").leases))
        assert size <= 12 + 4


def test_a_refusal_changes_nothing_twice(backend: str, prefix: str) -> None:
    """A player that asks again and again costs no writes."""
    with World(backend, prefix) as world:
        world.beat("s1", "d1", limit=1)
        world.beat("s2", "d2", limit=1)

        def stored() -> Any:
            k = world.keys.account("a")
            return (
                world.run(world.client.zrange(k.leases, 0, -1, withscores=True)),
                len(world.events()),
                world.deadlines("a"),
            )

        before = stored()
        for _ in range(5):
            assert world.beat("s2", "d2", limit=1)["decision"] == "block"
        assert stored() == before


def test_what_only_looks_like_something_over_is_asked_in_vain(backend: str, prefix: str) -> None:
    """Of what is over only a little is read at first: whatever the rest is, decisions go on."""
    with World(backend, prefix) as world:
        leases = world.keys.account("a").leases
        for n in range(8):
            world.beat(f"s{n}", f"d{n}", limit=1)
            world.stop(f"s{n}")
            world.wait(1)
        odd = {f"{name}\nrubbish\n{status}\nd1\tfilm": -1 - world.now for name in ("x", "s9", "") for status in "eb"}
        world.run(world.client.zadd(leases, odd))
        assert world.beat("s9", "d1", limit=1)["decision"] == "allow"
        assert world.signal("d1", "film", limit=1)["decision"] == "allow"
        assert world.beat("x", "d2", limit=1)["rule"] == "streams"
        assert world.check("s1", "d1", limit=1)["decision"] in ("allow", "block")
        world.stop("s9")
        assert world.beat("x", "d1", limit=1)["decision"] == "allow"
        world.wait(3600)
        world.sweep()
        assert world.running() == set()


def test_what_an_account_owes_is_known_however_much_ended_since(backend: str, prefix: str) -> None:
    """Sharing is paid for by the account; its newest records alone are asked for that."""

    def shared(world: World, rounds: int) -> int:
        """Of two films on one device, how many segments of the one that no player plays passed."""
        passed = 0
        for _ in range(rounds):
            world.beat("s", "d", "film-a", limit=1)
            world.beat("s", "d", "film-b", limit=1)
            for _ in range(5):
                world.wait(6)
                world.beat("s", "d", "film-b", limit=1)
                passed += world.signal("d", "film-a", limit=1)["decision"] == "allow"
        return passed

    got = []
    for others in (0, 20):
        with World(backend, f"{prefix}-{others}") as world:
            shared(world, 40)
            world.stop("s")
            for n in range(others):
                world.beat(f"x{n}", f"y{n}", limit=1)
                world.stop(f"x{n}")
            got.append(shared(world, 10))
    assert got[0] == got[1]
