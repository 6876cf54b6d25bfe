"""The generator as a process of its own, and what the others used while it sent: CPU time from /proc, bytes from Redis."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.bench_rig import ROOT, BenchError, Place, Valkey, Web, pinned
from loadtest.capacity.crowd import PLAIN
from loadtest.capacity.generator import Report

HEARTBEATS = ("plain", "zap", "join")
"""Kinds of requests that are heartbeats."""


class Generator:
    """Steps, one after another, against any of several servers; each has a crowd of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def step(
        self, base: str, rate: float, seconds: float, *, warm_up: float = 1.0, whole_round: bool = False, seed: int = 1
    ) -> Report:
        """`rate` requests/s for `seconds`, after `warm_up` or until every viewer has had a turn. Raises BenchError if it died."""
        asked = {
            "base": base, "rate": rate, "seconds": seconds, "warm_up": warm_up, "whole_round": whole_round, "seed": seed,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise BenchError("the load generator ended; its output says why")
        return Report(**json.loads(line))


@contextlib.contextmanager
def generator(core: int | None, viewers: int, mix: Mapping[str, float], late_ms: float) -> Iterator[Generator]:
    """A generator on that core. `late_ms`: what it calls late of itself."""
    command = [
        sys.executable, "-m", "loadtest.capacity.generator", "--viewers", str(viewers), "--late-ms", str(late_ms),
        "--mix", ",".join(f"{name}={share:g}" for name, share in mix.items()),
    ]  # fmt: skip
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(core)
    ) as process:
        try:
            yield Generator(process)
        finally:
            process.kill()


@dataclass(frozen=True)
class Measured:
    """A step, and what it cost. CPU and bytes are of one heartbeat, with the stops and checks that came with it."""

    report: Report
    heartbeats: int
    """With the warm-up."""
    api_us: float
    redis_us: float
    redis_bytes: float

    @property
    def target_per_s(self) -> float:
        return self.report.target_per_s

    @property
    def achieved_per_s(self) -> float:
        return self.report.achieved_per_s

    @property
    def p99_ms(self) -> float:
        return self.report.p99_ms

    @property
    def requests(self) -> int:
        return self.report.requests

    @property
    def failed(self) -> int:
        return self.report.failed

    @property
    def late(self) -> bool:
        return self.report.late


@dataclass
class Stage:
    """One API process, its session Redis, and who asks it."""

    place: Place
    session: Valkey
    web: Web
    load: Generator
    mix: Mapping[str, float]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.web.port}"

    @property
    def heartbeat_share(self) -> float:
        """Of all requests."""
        return heartbeat_share(self.mix)

    def step(self, rate: float, seconds: float, **options: Any) -> Measured:
        """`rate` requests/s for so long. Outboxes are left as they are."""
        api, redis, moved = (
            self.web.process.cpu_s() or 0.0,
            self.session.process.cpu_s() or 0.0,
            net_bytes(self.session),
        )
        report = self.load.step(self.base, rate, seconds, **options)
        moved = net_bytes(self.session) - moved
        redis = (self.session.process.cpu_s() or 0.0) - redis
        api = (self.web.process.cpu_s() or 0.0) - api
        beats = max(1, round(report.requests_in_all * self.heartbeat_share))
        return Measured(report, beats, api / beats * 1e6, redis / beats * 1e6, moved / beats)


def heartbeat_share(mix: Mapping[str, float]) -> float:
    share = sum(mix.get(kind, 0.0) for kind in HEARTBEATS) / sum(mix.values())
    if share <= 0:
        raise ValueError(f"mix: no heartbeats ({', '.join(HEARTBEATS)}) in it, but for instance {dict(PLAIN)}")
    return share


def net_bytes(server: Valkey) -> int:
    """Bytes that came to the server and that it sent, ever."""
    stats: dict[str, int] = server.client.info("stats")
    return stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


def used_memory(server: Valkey) -> int:
    """Bytes in use, outboxes included."""
    return int(server.client.info("memory")["used_memory"])
