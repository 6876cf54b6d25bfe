"""`make capacity`: how much one core carries until the percentiles break, and what a deployment of any size needs.

    python -m loadtest.capacity [--quick] [--players N] [--seconds S] [--json FILE]         the knee and the sizing table
    python -m loadtest.capacity storm [--quick] [--rate N] [--json FILE]                    all reconnect after an outage

See docs/capacity.md. Exit code: 0 measured (storm: and all goals met), 1 a goal of the storm missed or a wrong answer, 2 wrong use.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from loadtest.bench_rig import BenchError, jemalloc, pin_self, workplace
from loadtest.capacity import report, storm
from loadtest.capacity.crowd import MIX, parse_mix
from loadtest.capacity.knee import Goal
from loadtest.capacity.measure import Options, background, front
from loadtest.capacity.rig import HEARTBEATS
from loadtest.capacity.sizing import Assumed
from loadtest.capacity.verdict import QUICK, Plan


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not any(args.mix.get(kind) for kind in HEARTBEATS):
        parser.error(f"argument --mix: no heartbeats ({', '.join(HEARTBEATS)}) in it")
    options = _options(args)
    if options.start > options.most:
        parser.error(f"argument --start: {options.start:g} is above --most, which is {options.most:g}")
    try:
        print(report.machine() + "\n", flush=True)
        return _storm(args, options) if args.what == "storm" else _size(args, options)
    except BenchError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 1


def _size(args: argparse.Namespace, options: Options) -> int:
    assumed = Assumed(args.interval, args.headroom)
    with workplace(preload=jemalloc()) as place:
        pin_self(place.others)
        measured = front(place, options, _say)
        back = background(place, options, measured.knee.per_s / 2, _say)
    text, raw = report.sizes(measured, back, assumed, options)
    print(text)
    _write(args.json, raw)
    return 0


def _storm(args: argparse.Namespace, options: Options) -> int:
    plan = QUICK if args.quick else Plan()
    given = {
        "players": args.players, "rate": args.rate, "outage_s": args.outage, "before_s": args.before, "after_s": args.after,
        "at_once_s": args.at_once,
    }  # fmt: skip
    plan = replace(plan, **{name: value for name, value in given.items() if value is not None})
    with workplace(preload=jemalloc()) as place:
        result = storm.run(place, plan, options, _say)
    print(result.text())
    _write(args.json, result.to_json())
    return 0 if result.passed else 1


def _options(args: argparse.Namespace) -> Options:
    options = Options(mix=args.mix)
    if args.quick:
        # A look at whether it works, on any machine: no figure of it means anything.
        options = replace(
            options, players=300, seconds=0.6, warm_up_s=0.3, rounds=2, start=100.0, most=150.0, precision=0.3, attempts=1,
            late_ms=1000.0, background_processes=2, drains=1, much=1, goal=Goal(p99_ms=2_000.0, achieved=0.5, failed=0.01),
        )  # fmt: skip
    given = {
        "players": args.players, "seconds": args.seconds, "rounds": args.rounds, "start": args.start, "most": args.most,
    }  # fmt: skip
    options = replace(options, **{name: value for name, value in given.items() if value is not None})
    if args.p99 is not None:
        options = replace(options, goal=replace(options.goal, p99_ms=args.p99))
    return options


def _say(text: str) -> None:
    print(text, flush=True)


def _write(path: Path | None, raw: dict[str, object]) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# arguments


def _number(kind: Callable[[str], float], least: float, *, above: bool = False) -> Callable[[str], float]:
    """A type for argparse: a number of that kind, at least (or above) so much."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not math.isfinite(value) or value < least or (above and value == least):
            raise argparse.ArgumentTypeError(f"expected {'above' if above else 'at least'} {least:g}, got {text}")
        return value

    return read


def _mix(text: str) -> dict[str, float]:
    try:
        return parse_mix(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.capacity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    whole, positive, zero = _number(int, 1), _number(float, 0, above=True), _number(float, 0)
    add = parser.add_argument
    add("what", nargs="?", choices=("size", "storm"), default="size", help="default: size")
    add("--quick", action="store_true", help="seconds instead of minutes: shows that it works, measures nothing")
    add(
        "--players",
        "--accounts",
        type=whole,
        metavar="N",
        help="viewers, one an account (storm: two; default: rate × interval)",
    )
    add("--seconds", type=positive, metavar="S", help="of a step, without its warm-up (4)")
    add("--json", type=Path, metavar="FILE", help="also write everything measured to this file")
    add(
        "--mix",
        type=_mix,
        default=dict(MIX),
        help="per cent of requests: " + ",".join(f"{k}={v:g}" for k, v in MIX.items()),
    )
    add("--p99", type=positive, metavar="MS", help="the percentiles are broken from here (50)")
    add("--rounds", type=whole, metavar="N", help="turns of bare and API at half of the knee's rate (5)")
    add("--start", type=positive, metavar="N", help="requests/s of the first step (2000)")
    add("--most", type=positive, metavar="N", help="requests/s of the last step (100000)")
    add(
        "--headroom",
        type=_number(float, 1),
        default=2.0,
        metavar="N",
        help="everything is given N times what it needs (2)",
    )
    add(
        "--interval",
        type=positive,
        default=10.0,
        metavar="S",
        help="between two heartbeats of a viewer, in the sizing (10)",
    )
    of_storm = parser.add_argument_group("storm")
    add = of_storm.add_argument
    add(
        "--rate", type=positive, metavar="N", help="heartbeats/s (default: half of the knee, which is looked for first)"
    )
    add("--outage", type=positive, metavar="S", help="the API is away so long (60)")
    add("--before", type=positive, metavar="S", help="watched before, after all have joined (20)")
    add("--after", type=positive, metavar="S", help="watched after its return (75)")
    add("--at-once", type=zero, metavar="S", help="all reconnect within (1)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
