"""The states of one playback, from events as the engine makes them to `GET /v1/quality/sessions/{session}`."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

from engine.embedded import Server
from engine.events import Event, read
from engine.lake import Lake
from engine.partitions import partition_of
from engine.quality.columns import table
from engine.quality.facts import Fact
from engine.quality.files import TOPIC
from engine.quality.fold import Playback, fold
from engine.quality.states import Heard, states
from tests.harness import PARTITIONS, START
from tests.servers import ApiProcess, service

ACCOUNT, SESSION = "ann", "s1"
SPAN = {"from": START - 3_600_000, "to": START + 4 * 3_600_000}


class Told:
    """Events of one session: folded into facts, and both written into lakes."""

    def __init__(self) -> None:
        self.partition = partition_of(ACCOUNT, PARTITIONS)
        self.events: list[Event] = []
        self.facts: list[Fact] = []
        self._state: Playback | None = None

    def tell(self, type_: str, at_s: float, data: dict[str, Any], **more: Any) -> None:
        number = len(self.events)
        said = {
            "type": type_, "at": START + int(at_s * 1000), "account": ACCOUNT, "profile": "", "device": "tv", "session": SESSION,
            "content": "film", "kind": "vod", "view": 1, "started_at": START, "v": 1, "data": data,
        } | more  # fmt: skip
        event = read(self.partition, f"{START + number}-0", json.dumps(said).encode())
        self.events.append(event)
        self._state, made = fold(self._state, event)
        self.facts += made

    def beat(self, at_s: float, watched_s: float, state: str = "playing") -> None:
        data = {"state": state, "position": watched_s, "quality": {"bitrate": 1_000_000}}
        self.tell("heartbeat", at_s, data, seq=len(self.events), watched_ms=int(watched_s * 1000))

    def report(self, at_s: float, state: str, kind: str = "ps") -> None:
        """Of `at_s` by the player's clock, which is a year behind."""
        keys = {
            "e": kind,
            "sta": state,
            "sid": SESSION,
            "sn": len(self.events),
            "ts": START - 31_536_000_000 + int(at_s * 1000),
        }
        self.tell("cmcd", at_s, {"type": "cmcd", "target": "", "keys": keys, "raw": ""})

    def end(self, at_s: float, seen_s: float, watched_s: float, reason: str = "timeout") -> None:
        data = {"reason": reason, "watched_ms": int(watched_s * 1000), "last_seen_at": START + int(seen_s * 1000)}
        self.tell("view_end", at_s, data, watched_ms=int(watched_s * 1000))

    def states(self, server: Server, folder: Path, prefix: str) -> list[tuple[str, float, float]]:
        lake = folder / "lake"
        Lake(lake, partitions=PARTITIONS).append(self.events)
        ids = dict.fromkeys(range(PARTITIONS), f"{START + len(self.events)}-0")
        Lake(lake / "quality", partitions=PARTITIONS).add(TOPIC, table(self.facts), ids)
        with ApiProcess(server.url, folder, prefix=prefix, lake_dir=lake) as api:
            path = f"/v1/quality/sessions/{SESSION}"
            said = api.get(path, token=service("read"), params=SPAN | {"account": ACCOUNT}).json()
        return [(s["state"], (s["from"] - START) / 1000, (s["to"] - START) / 1000) for s in said["states"]]


def test_an_end_by_time_out_is_drawn_at_the_last_sign_of_life(single: Server, tmp_path: Path, prefix: str) -> None:
    told = Told()
    for n in range(4):
        told.beat(10 * n, 10 * n)
    told.end(61, seen_s=30, watched_s=30)
    assert told.states(single, tmp_path, prefix) == [("playing", 0, 30)]


def test_reports_that_end_by_time_out(single: Server, tmp_path: Path, prefix: str) -> None:
    """The last report (`rr`) is no sign of life to the engine: the end is drawn there all the same, and not over what was before."""
    told = Told()
    told.report(0, "s")
    told.report(1, "p")
    told.report(20, "r")
    told.report(24, "p")
    told.report(29, "p", "t")
    told.report(34, "p", "rr")
    told.end(60, seen_s=29, watched_s=29)
    assert told.states(single, tmp_path, prefix) == [
        ("starting", 0, 1), ("playing", 1, 20), ("stalled", 20, 24), ("playing", 24, 29),
    ]  # fmt: skip


def test_a_view_that_goes_on_after_a_time_out(single: Server, tmp_path: Path, prefix: str) -> None:
    told = Told()
    for n in range(3):
        told.beat(10 * n, 10 * n)
    told.end(51, seen_s=20, watched_s=20)
    told.tell("view_reopen", 100, {}, revision=1, watched_ms=20_000)
    for n in range(3):
        told.beat(100 + 10 * n, 20 + 10 * n)
    told.end(120, seen_s=120, watched_s=40, reason="stopped")
    assert told.states(single, tmp_path, prefix) == [("playing", 0, 20), ("idle", 20, 100), ("playing", 100, 120)]


def test_more_events_than_are_shown(single: Server, tmp_path: Path, prefix: str) -> None:
    """The view's end is beyond the events that are shown, and is looked up all the same."""
    told = Told()
    for n in range(2_100):
        told.beat(2 * n, 2 * n)
    told.end(4_400, seen_s=4_198, watched_s=4_198)
    assert told.states(single, tmp_path, prefix)[-1][2] == 4_198


def test_heartbeats_are_drawn_where_they_belong(single: Server, tmp_path: Path, prefix: str) -> None:
    """What was played in an interval is told with the next heartbeat, and in pieces that a stall divides: neither shows."""
    told = Told()
    told.beat(0, 0, "starting")
    told.beat(2, 0)
    for n in range(1, 8):
        told.beat(2 + 10 * n, 10 * n)
    told.tell("buffer_start", 75, {"type": "buffer_start"})
    told.tell("buffer_end", 80, {"type": "buffer_end", "duration_ms": 5_000})
    told.beat(82, 75)
    told.beat(92, 85)
    told.end(92, seen_s=92, watched_s=85, reason="stopped")
    assert told.states(single, tmp_path, prefix) == [
        ("starting", 0, 2), ("playing", 2, 75), ("stalled", 75, 80), ("playing", 80, 92),
    ]  # fmt: skip


def test_no_state_overlaps_and_no_time_is_lost() -> None:
    """Whatever facts and events come together."""
    for seed in range(300):
        rng = random.Random(seed)
        facts: list[dict[str, Any]] = []
        events: list[tuple[str, int, str | None, tuple[int, int]]] = []
        at, sources = START, rng.choice([["heartbeat", "cmcd"], ["cmcd"], ["heartbeat"]])
        for n in range(rng.randrange(1, 40)):
            at += rng.choice([0, 10_000, rng.randrange(100_000)])
            ident = (n // 2, 0)
            facts.append(
                {
                    "fact": rng.choice(["start", "play", "play", "play", "stall", "error"]), "at": at, "ms_id": ident[0], "seq_id": 0,
                    "source": rng.choice(sources), "ms": rng.choice([None, 0, rng.randrange(60_000)]),
                    "ad": rng.random() < 0.2, "content": rng.choice(["one", "two"]),
                }
            )  # fmt: skip
            seen = json.dumps(
                rng.choice([{"last_seen_at": at - rng.randrange(60_000)}, {"last_seen_at": "x"}, {}, [], None])
            )
            events.append((rng.choice(["heartbeat", "view_end", "cmcd"]), at, seen, ident))
        found = states(facts, Heard(events))
        assert all(one["from"] <= one["to"] for one in found), seed
        assert all(one["to"] <= other["from"] for one, other in pairwise(found)), seed
        played = sum(one["ms"] for one in found if one["state"] != "idle")
        lasted = sum(fact["ms"] or 0 for fact in facts if fact["fact"] in ("start", "play", "stall"))
        assert played <= lasted, seed
        if not any(fact["source"] == "heartbeat" for fact in facts):
            assert played == lasted, seed
