"""`python -m loadtest.truth`: the scoreboard (docs/simulation.md). Exit status 1 if a goal is missed, 2 for wrong use."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from loadtest.bench_rig import BenchError
from loadtest.simulator.plans import toml
from loadtest.truth import report
from loadtest.truth.deployment import KINDS, deployment
from loadtest.truth.goals import missed, rows
from loadtest.truth.questions import ask
from loadtest.truth.run import Job, Result, Simulators, Size, every, simulate
from loadtest.truth.score import score
from loadtest.truth.story import story
from loadtest.truth.truth import TruthError

CASES_PRINTED = 20


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.minutes = 1, 3.0
    for name, value in (("--seeds", args.seeds), ("--minutes", args.minutes), ("--parallel", args.parallel)):
        if value <= 0:
            parser.error(f"{name} must be positive")
    if args.households < 0:
        parser.error("--households must not be negative")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _replay(args) if args.replay else _scoreboard(args)
    except (BenchError, TruthError) as error:
        print(f"truth: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.truth", description="Compares the engine with a simulated truth."
    )
    parser.add_argument("--seeds", type=int, default=2, help="how many populations (2)")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=10.0, help="virtual minutes of each (10)")
    parser.add_argument("--households", type=int, default=0, help="how many; 0: the simulator's default")
    parser.add_argument(
        "--on", choices=(*KINDS, "both"), default="both", help="one Redis node, a cluster of three, or both in turn"
    )
    parser.add_argument("--out", type=Path, default=Path(".pulsegate/truth"), help="where each seed's result is kept")
    parser.add_argument("--json", type=Path, help="file for all figures and cases")
    parser.add_argument("--html", type=Path, help="file for the report with plots")
    parser.add_argument("--parallel", type=int, default=2, help="deployments at a time (2)")
    parser.add_argument("--resume", action="store_true", help="keep the results that are in --out already")
    parser.add_argument("--quick", action="store_true", help="one seed, three minutes")
    parser.add_argument(
        "--replay", nargs=2, metavar=("SEED", "HOUSEHOLD"), help="run one household again and tell what happened"
    )
    return parser


def _scoreboard(args: argparse.Namespace) -> int:
    size = Size(args.minutes, args.households)
    kinds = KINDS if args.on == "both" else (args.on,)
    jobs = [
        Job(seed, kind, size, args.out)
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for kind in kinds
    ]
    results: list[Result] = []
    for result in every(jobs, parallel=args.parallel, resume=args.resume):
        results.append(result)
        wrong = ", ".join(row.figure for row in missed(result.findings)) or "all goals met"
        print(
            f"seed {result.seed} on {result.on}: {result.took_s:g} s, {wrong} ({len(results)} of {len(jobs)})",
            flush=True,
        )
    print(_text(results))
    _write(args.json, json.dumps(report.to_json(results), indent=1) + "\n")
    _write(args.html, report.html(results))
    return 1 if any(missed(report.together(some)) for some in report.by_kind(results).values()) else 0


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _text(results: list[Result]) -> str:
    parts = [
        "\n" + report.table(report.title(kind, some), rows(report.together(some)))
        for kind, some in report.by_kind(results).items()
    ]
    found = report.cases(results)
    if found:
        parts.append(f"\n{len(found)} cases" + (f", the first {CASES_PRINTED}:" if len(found) > CASES_PRINTED else ":"))
        parts += [f"  {case.figure}: {case.what}\n    {case.replay}" for case in found[:CASES_PRINTED]]
    return "\n".join(parts)


def _replay(args: argparse.Namespace) -> int:
    """0 if nothing is wrong in that household, 1 if there is a case."""
    text, account = args.replay
    if not text.isdigit():
        raise BenchError(f"--replay: {text!r} is no seed")
    kind = "node" if args.on == "both" else args.on
    job = Job(int(text), kind, Size(args.minutes, args.households), Path(os.devnull))
    with deployment(kind, toml()) as deployed:
        truth = simulate(deployed, job, Simulators(), only=account)
        if account not in truth.households:
            raise BenchError(f"--replay: seed {text} has no household {account!r}")
        answers = ask(deployed, truth)
    findings = score(truth, answers, kind)
    print(story(truth, account, [r for r in answers.records if r["account"] == account], findings))
    return 1 if any(case.account == account for finding in findings.values() for case in finding.cases) else 0


if __name__ == "__main__":
    sys.exit(main())
