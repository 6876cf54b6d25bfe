"""`python -m loadtest.simulator`, `pulsegate simulate`: a population against a running engine (docs/simulation.md). Exit status 1 if
the engine does not do, 2 for wrong use."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loadtest.http1 import Pool
from loadtest.simulator import plans
from loadtest.simulator.observe import ObserveError
from loadtest.simulator.run import HOUSEHOLDS, STEP_MS, Options, Run, RunError
from loadtest.simulator.truth import Truth
from loadtest.simulator.wire import Reply, Request

SECRET_MIN = 32
AT_MAX = 4_000_000_000_000


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.write_plans:
        return _write_plans(args.write_plans)
    secret = os.environ.get("PULSEGATE_SECRET", "")
    _check(parser, args, secret)
    options = Options(
        args.seed, args.minutes, args.households, args.surges, args.start, args.time == "virtual", args.only
    )
    try:
        return asyncio.run(_run(options, args, secret))
    except (RunError, ObserveError) as error:
        print(f"simulator: {args.base}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"simulator: --truth: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.simulator",
        description="A seeded population with known truth against a running engine. The secret that signs its tokens is in PULSEGATE_SECRET.",
    )
    parser.add_argument("--base", default="", help="where the engine answers: http://host:port")
    parser.add_argument("--seed", type=int, default=1, help="the same seed: the same population (1)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, by its clock (10)")
    parser.add_argument(
        "--households", type=int, default=HOUSEHOLDS, help=f"beside the crowds of the surges ({HOUSEHOLDS})"
    )
    parser.add_argument("--surges", type=int, help="how many; 0: none, and no decoys (as many as fit, up to 4)")
    parser.add_argument("--truth", type=Path, help="file for what really happens, JSON lines")
    parser.add_argument("--time", choices=("virtual", "real"), default="virtual")
    parser.add_argument(
        "--start", type=int, default=0, metavar="MS", help="when, in virtual time; drawn from the seed if left out"
    )
    parser.add_argument(
        "--only", default="", metavar="ACCOUNT", help="that household alone, as it is in the whole run: household-12"
    )
    parser.add_argument("--verbose", action="store_true", help="print every request and its answer")
    parser.add_argument(
        "--write-plans", type=Path, metavar="FILE", help="write the plans.toml that the engine must use, and end"
    )
    return parser


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace, secret: str) -> None:
    """Ends the process with 2 and the name of the argument that is wrong."""
    if not args.base:
        parser.error("--base is required: where the engine answers")
    if not args.base.startswith("http://"):
        parser.error(f"--base: expected http://host:port, not {args.base!r}")
    if not 0 < args.minutes <= 7 * 24 * 60:
        parser.error("--minutes must be more than 0, and a week at most")
    if args.minutes * 60_000 < STEP_MS:
        parser.error("--minutes must be a second at least")
    if not 0 <= args.households <= 100_000:
        parser.error("--households must be 0 to 100,000")
    if args.surges is not None and not 0 <= args.surges <= 20:
        parser.error("--surges must be 0 to 20")
    if args.start and args.time == "real":
        parser.error("--start: real time cannot be chosen")
    if args.start and not (0 < args.start <= AT_MAX and args.start % STEP_MS == 0):
        parser.error("--start must be ms since the epoch, a whole second, before the year 2096")
    if len(secret) < SECRET_MIN:
        parser.error(
            f"PULSEGATE_SECRET must be the engine's secret, {SECRET_MIN} characters or more (PULSEGATE_JWT_SECRET there)"
        )


async def _run(options: Options, args: argparse.Namespace, secret: str) -> int:
    pool = Pool(args.base, timeout_s=60)
    began = time.monotonic()
    try:
        with Truth(args.truth) as truth:
            run = Run(options, pool, truth, secret, _tell if args.verbose else None)
            if options.only and not (run.households or run.members):
                print(f"simulator: --only: seed {options.seed} has no household {options.only!r}", file=sys.stderr)
                return 2
            await run.whole()
            print(_summary(run, truth, time.monotonic() - began))
    finally:
        pool.close()
    return 0


def _tell(request: Request, reply: Reply, now: int) -> None:
    what = [request.call, request.who.get("account"), request.who.get("session") or request.who.get("device")]
    what += [
        f"{name}={value}"
        for name in ("seq", "state", "position", "evidence")
        if (value := getattr(request, name)) is not None
    ]
    what += [name for name in ("late", "repeated", "lost_answer") if getattr(request, name)]
    answer = [f"{name}={value}" for name, value in reply.fields().items() if value not in (None, False)]
    print(now, request.who.get("content") or "-", *what, "→", *answer)


def _summary(run: Run, truth: Truth, took_s: float) -> str:
    counts = truth.counts
    asked = sum(number for name, number in counts.items() if name.startswith("call "))
    answers = ", ".join(
        f"{number:,} {name.removeprefix('answer ')}"
        for name, number in sorted(counts.items())
        if name.startswith("answer ")
    )
    return (
        f"seed {run.options.seed}: {len(run.households)} households, {len(run.members)} in crowds, {run.options.minutes:g} min in {took_s:.1f} s; "
        f"{asked:,} requests ({answers}), {counts['lost']:,} lost on the way, {counts['failed']:,} failed; {truth.lines:,} lines of truth"
    )


def _write_plans(path: Path) -> int:
    try:
        path.write_text(plans.toml(), encoding="utf-8")
    except OSError as error:
        print(f"simulator: --write-plans: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
