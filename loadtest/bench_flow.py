"""Background work: events a second of mirror, consumers, lake and replay on one core, each beside the same reading and
writing with nothing in between (`loadtest/baseline/flow.py`).

Each works off what has gathered, as after a stop of the workers: `pulsegate drain` and `pulsegate replay` on one core, both
Redis servers, session and log, with their append-only files on the other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.bench_events import BEATS, Load, Viewers, capture, load
from loadtest.bench_rig import DURABLE, ROOT, BenchError, Place, Spread, Valkey, pinned, valkey
from loadtest.bench_table import Row

# On one core for both servers a rewrite of the append-only file would be measured, too; elsewhere it has a core of its own.
SERVER = DURABLE | {"auto-aof-rewrite-percentage": "0"}
EVENTS, VIEWERS = 300_000, 12_500
QUICK_EVENTS, QUICK_VIEWERS = 60_000, 2_500
_TIMEOUT_S = 300

GOALS = {
    "mirror": 100_000, "consume-resume": 20_000, "consume-views": 20_000, "export-lake": 50_000,
    "replay resume, from the log": 50_000, "replay views, from the log": 50_000,
    "replay resume, from the lake": 50_000, "replay views, from the lake": 50_000,
}  # fmt: skip
CEILINGS = {
    "mirror": "bare copy", "consume-resume": "bare reading", "consume-views": "bare reading", "export-lake": "bare writing",
    "replay resume, from the log": "consume-resume", "replay views, from the log": "consume-views",
    "replay resume, from the lake": "consume-resume", "replay views, from the lake": "consume-views",
}  # fmt: skip
"""Job → what its rate is divided by."""
_NAMES = {
    "bare copy": "redis-py pipelines, outboxes → log, no script (the mirror's ceiling)",
    "bare reading": "the log read and decoded, nothing else (the consumers' ceiling)",
    "bare writing": "pyarrow, the lake's ready tables once more (the lake's ceiling)",
}


@dataclass
class Series:
    """Repetitions of one job."""

    per_s: list[float] = field(default_factory=list)
    per_cpu_s: list[float] = field(default_factory=list)

    def add(self, said: dict[str, Any]) -> None:
        self.per_s.append(said["events"] / said["seconds"])
        # The kernel counts CPU in its own steps, which a quick run may not fill.
        self.per_cpu_s.append(said["events"] / max(said["cpu_seconds"], 1e-3))


def measure(place: Place, *, quick: bool) -> tuple[list[Row], dict[str, object]]:
    """Each repetition fills the outboxes anew. Raises BenchError if events are missing, or replayed is not as live."""
    repetitions = 2 if quick else 3
    with valkey(place, place.others, SERVER) as session, valkey(place, place.others, SERVER) as log:
        viewers = Viewers(capture(session, place, place.mine), QUICK_VIEWERS if quick else VIEWERS)
        events = load(viewers, QUICK_EVENTS if quick else EVENTS)
        series: dict[str, Series] = {}
        for repetition in range(repetitions):
            for name, said in _repetition(_Run(place, session, log), events, repetition % 2 == 1):
                series.setdefault(name, Series()).add(said)
    return _rows(series, events), {name: vars(s) for name, s in series.items()} | {"events": events.events}


@dataclass(frozen=True)
class _Run:
    """Starts what is measured, on its core."""

    place: Place
    session: Valkey
    log: Valkey

    def pulsegate(self, *words: str, lake: Path | None = None) -> dict[str, Any]:
        settings = {
            "PULSEGATE_REDIS_URL": self.session.url, "PULSEGATE_LOG_REDIS_URL": self.log.url,
            "PULSEGATE_LAKE_DIR": str(lake or ""), "PULSEGATE_LOG_LEVEL": "warning",
        }  # fmt: skip
        return self._python("engine.cli", *words, "--json", env=settings)

    def bare(self, *words: str) -> dict[str, Any]:
        return self._python("loadtest.baseline.flow", *words)

    def _python(self, module: str, *words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith("PULSEGATE_")}
        done = subprocess.run(
            [sys.executable, "-m", module, *words], capture_output=True, text=True, cwd=ROOT, env=clean | (env or {}),
            preexec_fn=pinned(self.place.mine), check=False, timeout=_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"{module} {' '.join(words)} failed:\n{done.stdout[-1000:]}\n{done.stderr[-1500:]}")
        return dict(json.loads(done.stdout))


def _repetition(run: _Run, events: Load, backwards: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """(job, what it said) of everything, once. `backwards`: the consumers in the other order."""
    run.session.client.flushall()
    run.log.client.flushall()
    events.send(run.session)
    with _folder(run.place) as folder:
        lake = folder / "lake"
        # The copy first: the mirror empties the outboxes.
        yield "bare copy", _checked(run.bare("copy", run.session.url, run.log.url), events)
        run.log.client.unlink(*run.log.client.scan_iter(match="copy:*", count=10_000))
        yield "mirror", _checked(run.pulsegate("drain", "mirror"), events)
        yield "bare reading", _checked(run.bare("read", run.log.url), events)
        jobs = ["consume-resume", "consume-views"]
        for job in reversed(jobs) if backwards else jobs:
            yield job, _checked(run.pulsegate("drain", job), events)
        for source in (None, lake):
            if source:
                yield "export-lake", _checked(run.pulsegate("drain", "export-lake", lake=lake), events)
                yield "bare writing", _checked(run.bare("parquet", str(lake), str(folder / "copy")), events)
            for name in ("resume", "views"):
                said = _checked(run.pulsegate("replay", "--projection", name, lake=source), events)
                yield f"replay {name}, from the {'lake' if source else 'log'}", said


def _checked(said: dict[str, Any], events: Load) -> dict[str, Any]:
    if said["events"] != events.events:
        raise BenchError(f"{said['events']} events, not {events.events}: {said}")
    return said


@contextmanager
def _folder(place: Place) -> Iterator[Path]:
    folder = place.directory / "flow"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _rows(series: dict[str, Series], events: Load) -> list[Row]:
    rows = [Row(f"events, {BEATS} heartbeats a view; bytes each", f"{events.events:,}; {events.bytes}", "")]
    wall = {name: Spread(tuple(s.per_s)) for name, s in series.items()}
    cpu = {name: Spread(tuple(s.per_cpu_s)) for name, s in series.items()}
    for name in sorted(series, key=[*_NAMES, *GOALS].index):
        if name in _NAMES:
            rows.append(Row(_NAMES[name], wall[name].text(0), "events/s"))
            rows.append(Row("  by its own CPU", cpu[name].text(0), "events/CPU s"))
            continue
        goal, ceiling = GOALS[name], CEILINGS[name]
        for label, spread, unit in ((name, wall, "events/s"), ("  by its own CPU", cpu, "events/CPU s")):
            ratio = f"{spread[name].over(spread[ceiling]).text(2)} of {ceiling}"
            met = spread[name].median >= goal
            rows.append(Row(label, spread[name].text(0), unit, ratio, f"≥ {goal:,}", met))
    return rows
