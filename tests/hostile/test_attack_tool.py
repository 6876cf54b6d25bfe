"""`make attack` can be run, and so can every attack of it. What they find is not judged here: other tests of this directory do."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from engine.embedded import Server
from loadtest.attack.attacker import Done, attack_for
from loadtest.attack.base import Attack, Finding, Target
from loadtest.attack.bystander import Seen
from loadtest.attack.registry import ATTACKS
from loadtest.attack.report import Grown, Result, summary
from tests.servers import ROOT, SECRET, ApiProcess, clean_env

ALONE = [name for name, attack in ATTACKS.items() if not attack.workers]


def run(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.attack", *args]
    return subprocess.run(command, cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=60, check=False)


def test_it_measures_a_bystander_without_and_with_an_attack(tmp_path: Path) -> None:
    file = tmp_path / "attack.json"
    done = run("--only", "odd-heads", "--seconds", "1", "--rate", "20", "--beats", "20", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "odd-heads" in done.stdout
    [seen] = json.loads(file.read_text())
    assert seen["attack"] == "odd-heads"
    assert seen["without"]["beats"] > 0
    assert seen["with"]["beats"] > 0
    assert sum(seen["done"]["statuses"].values()) + seen["done"]["not_sent"] + seen["done"]["hung"] == 20
    assert seen["done"]["errors"] == {}
    assert seen["done"]["findings"]


def test_it_lists_what_there_is_and_refuses_what_there_is_not() -> None:
    listed = run("--list")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in ATTACKS)
    unknown = run("--only", "nonsense")
    assert unknown.returncode == 2
    assert "nonsense" in unknown.stderr


def test_every_attack_that_needs_no_workers_can_be_made(single: Server, tmp_path: Path, prefix: str) -> None:
    async def all_of_them(base: str) -> dict[str, Done]:
        async def one(name: str) -> Done:
            attack = ATTACKS[name](Target(base, SECRET), 20, 0.5, 1)
            await attack.prepare()
            return await attack_for(attack)

        return dict(zip(ALONE, await asyncio.gather(*map(one, ALONE)), strict=True))

    with ApiProcess(single.url, tmp_path, prefix=prefix) as api:
        seen = asyncio.run(all_of_them(api.base))
    assert {name: done.errors for name, done in seen.items() if done.errors} == {}


class TestReport:
    RESULT = Result(
        ATTACKS["stops"], Seen(beats=9, p99_ms=2.0), Seen(beats=9, p99_ms=5.0), Done(10, {"204": 100}), Grown(10, 20), Grown(5, 5)
    )  # fmt: skip

    def test_held(self) -> None:
        assert self.RESULT.missed == []
        assert "2xx 100" in summary([self.RESULT])

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"with_": Seen(beats=9, degraded=1)}, "degraded 1"),
            ({"with_": Seen(beats=9, let_in=2, refused=1)}, "wrong 3"),
            ({"with_": Seen(beats=9, unanswered=1)}, "unanswered 1"),
            ({"with_": Seen(beats=9, p99_ms=7.0)}, "p99 × 3.5"),
            ({"done": Done(10, {"500": 2, "503": 3, "reset": 1})}, "5xx 2"),
            ({"done": Done(hung=1)}, "without an end 1"),
            ({"done": Done(findings=[vars(Finding("let in", 1, 7, most=0))])}, "let in: 1 of 7 (goal 0)"),
        ],
    )
    def test_not_held(self, changes: dict[str, object], said: str) -> None:
        result = replace(self.RESULT, **changes)  # type: ignore[arg-type]
        assert result.missed == [said]
        assert f"NOT HELD: {said}" in summary([result])


def test_names_are_told_apart() -> None:
    kinds: set[type[Attack]] = set(ATTACKS.values())
    assert len(kinds) == len(ATTACKS)
    assert all(attack.name == name and attack.line and attack.what for name, attack in ATTACKS.items())
