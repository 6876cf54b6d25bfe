"""`make attack`: what it asks, counts and says. One attack runs for real, for a second; no time is judged."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.attack.__main__ import main
from loadtest.attack.attacker import Done
from loadtest.attack.bystander import Seen
from loadtest.attack.fuzz_bodies import changed
from loadtest.attack.fuzz_framing import chunks, cut
from loadtest.attack.registry import ATTACKS
from loadtest.attack.report import Grown, Result, classes, summary
from loadtest.attack.wires import SILENT, Reply
from tests.servers import ROOT, clean_env

QUIET = Grown(0, 0)


def result(with_: Seen, done: Done, without: Seen | None = None) -> Result:
    return Result(ATTACKS["one-packet"], without or Seen(beats=10, p99_ms=2), with_, done, QUIET, QUIET)


def test_every_line_of_a_client_has_an_attack() -> None:
    assert {attack.line for attack in ATTACKS.values()} >= {
        str(line) for line in (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    }
    assert all(attack.what and attack.holds for attack in ATTACKS.values())


def test_the_list_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in ATTACKS)


@pytest.mark.parametrize("wrong", [["--only", "no-such"], ["--seconds", "0"], ["--rate", "-1"], ["--beats", "0"]])
def test_wrong_use_is_2(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(wrong)
    assert left.value.code == 2


def test_a_second_of_one_packet_for_real(tmp_path: Path) -> None:
    written = tmp_path / "attack.json"
    command = [
        sys.executable, "-m", "loadtest.attack", "--only", "one-packet", "--seconds", "1", "--rate", "20", "--beats", "20",
        "--json", str(written),
    ]  # fmt: skip
    ran = subprocess.run(command, cwd=ROOT, env=clean_env(), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    (found,) = json.loads(written.read_text())
    assert (found["without"]["beats"], found["with"]["beats"]) == (20, 20)
    assert sum(found["done"]["statuses"].values()) == 20
    assert found["done"]["errors"] == {}
    assert found["api_bytes"]["before"] > 0
    assert found["redis_bytes"]["before"] > 0
    assert "one-packet" in ran.stdout


def test_what_misses_a_goal_is_said() -> None:
    assert result(Seen(beats=10, p99_ms=6), Done(statuses={"200": 9, "503": 1})).missed == []
    seen = Seen(beats=10, degraded=1, let_in=2, refused=1, unanswered=4, p99_ms=7)
    done = Done(statuses={"500": 5, "200": 1}, hung=6, findings=[{"what": "let in", "count": 7, "of": 9, "most": 0}])
    missed = result(seen, done).missed
    assert missed == [
        "degraded 1", "wrong 3", "unanswered 4", "5xx 5", "without an end 6", "p99 × 3.5", "let in: 7 of 9 (goal 0)",
    ]  # fmt: skip
    assert "NOT HELD: degraded 1" in summary([result(seen, done)])


def test_statuses_by_class() -> None:
    assert classes({"200": 3, "204": 1, "429": 2, "reset": 5}) == "2xx 4, 429 2, reset 5"


def test_answers_are_told_apart_on_a_wire() -> None:
    one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-Id: a\r\n\r\nhi"
    reply = Reply(one + one.replace(b"200", b"400"), "")
    assert (reply.statuses, reply.ids, reply.bodies) == ([200, 400], ["a", "a"], [b"hi", b"hi"])
    assert Reply(b"", "").all_said == ["closed"]
    assert Reply(b"HTTP/1.1 200 OK\r\n", SILENT).all_said == [SILENT]


def test_the_same_seed_makes_the_same_inputs() -> None:
    def made(seed: int) -> list[object]:
        chance = random.Random(seed)
        return [[changed(chance, {"a": [1, {"b": 2}], "c": "d"}), cut(chance.random, b"x" * 90, 9)] for _ in range(200)]

    assert repr(made(3)) == repr(made(3)) != repr(made(4))


def test_pieces_and_chunks_hold_the_whole_text() -> None:
    chance, text = random.Random(1), bytes(range(256))
    for _ in range(50):
        assert b"".join(cut(chance.random, text, 12)) == text
    assert chunks(lambda low, high: high, b"y" * 81) == b"50\r\n" + b"y" * 80 + b"\r\n1\r\ny\r\n0\r\n\r\n"
