"""`make bench`: speed and size, each beside what it is compared to, measured in one run.

    python -m loadtest.bench [--quick] [--json FILE] [--server COMMAND] [--libc] [--plots DIR] [--scale N]
                             [side] [http] [script] [growth] [audience] [million] [flow] [fresh] [quality] [cmcd]

Repetitions alternate between what is compared, so that a noisy neighbour hits both; figures are `median (min–max)`.
It fails if an answer is wrong, never because it was slow. See docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest import (
    bench_audience,
    bench_cmcd,
    bench_flow,
    bench_fresh,
    bench_http,
    bench_million,
    bench_quality,
    bench_redis,
    bench_side,
)
from loadtest.bench_rig import MEMORY_ONLY, BenchError, jemalloc, pin_self, valkey, workplace
from loadtest.bench_table import Row, Sheet, table

PARTS: dict[str, tuple[str, Callable[..., tuple[Sequence[Row | Sheet], dict[str, object]]]]] = {
    "side": (
        "Side by side: heartbeats over HTTP, with their ceilings (median of the turns, min–max)",
        bench_side.measure,
    ),
    "http": ("Heartbeats over HTTP (ratios to bare ASGI on the same uvicorn)", bench_http.measure),
    "script": (
        "Redis time of a heartbeat, from INFO commandstats (ratios to an empty EVALSHA)",
        bench_redis.script_cost,
    ),
    "growth": ("Memory and growth, one session an account, outboxes emptied", bench_redis.growth),
    "audience": ("Audience and trending, a million sessions over 20,000 contents", bench_audience.measure),
    "million": ("A million live sessions, and a quarter of them gone at once", bench_million.measure),
    "fresh": (
        "From acknowledged to readable, at 2,000 heartbeats/s (the whole deployment and the load on all cores)",
        bench_fresh.measure,
    ),
    "flow": ("Background work on what has gathered, one core (ratios as named)", bench_flow.measure),
    "cmcd": (
        "CMCD reports over HTTP (ratios to bare ASGI with the same requests), and until they show",
        bench_cmcd.measure,
    ),
    "quality": ("Questions on stream quality, over HTTP, on all cores (ms of an answer)", bench_quality.measure),
}


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 measured, 1 an answer was wrong or something did not start."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"which: {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not a measurement")
    parser.add_argument("--json", type=Path, help="also write everything measured to this file")
    parser.add_argument(
        "--server", default="", metavar="COMMAND", help="a Redis ≥ 7 or Valkey server to measure instead of the wheel's"
    )
    parser.add_argument(
        "--libc", action="store_true", help="libc's allocator in the wheel's server, even where jemalloc is installed"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="side: also draw its plots (SVG) into this directory")
    parser.add_argument(
        "--scale",
        type=int,
        default=0,
        metavar="N",
        help=f"million: so many sessions (default: {bench_million.SESSIONS:,})",
    )
    args = parser.parse_args(argv)
    if args.scale and args.scale < bench_million.LEAST:
        parser.error(f"argument --scale: at least {bench_million.LEAST:,}, not {args.scale:,}")
    own: dict[str, dict[str, Any]] = {"side": {"plots_dir": args.plots}, "million": {"sessions": args.scale}}
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    server = shlex.split(args.server)
    preload = None if args.libc or server else jemalloc()
    machine = _machine(server, preload)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()), end="\n\n", flush=True)
    out: dict[str, object] = {"machine": machine, "quick": args.quick}
    for name in args.parts or PARTS:
        title, measure = PARTS[name]
        started = time.monotonic()
        try:
            with workplace(server, preload) as place:
                rows, raw = measure(place, quick=args.quick, **own.get(name, {}))
        except BenchError as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            return 1
        print(table(title, rows), flush=True)
        out[name] = {
            "rows": [row.to_json() for row in rows],
            "raw": raw,
            "seconds": round(time.monotonic() - started, 1),
        }
    if args.json:
        args.json.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def _machine(server: list[str], preload: str | None) -> dict[str, str]:
    """What it ran on. Pins this process beside the load generator, away from what is measured."""
    with workplace(server, preload) as place, valkey(place, None, MEMORY_ONLY) as running:
        info = running.client.info()
    pin_self(place.others)
    pinned = (
        "not pinned"
        if place.mine is None
        else f"measured process on core {place.mine}, the rest on core {place.others}"
    )
    return {
        "machine": f"{platform.system()} {platform.machine()}, {_cpu()}, {os.cpu_count()} cores; {pinned}",
        "python": platform.python_version(),
        "server": f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}, allocator {preload or info['mem_allocator']}"
        + (f" ({shlex.join(server)})" if server else ""),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown processor"
    )


if __name__ == "__main__":
    sys.exit(main())
