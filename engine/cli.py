"""The `pulsegate` command. `run` starts everything; the other commands are its parts, for production."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from engine import badcli, deployment, lifeline
from engine.cdnlog import command, options
from engine.errors import PulsegateError
from engine.names import check_device, check_session
from engine.settings import Settings
from engine.tokens import SCOPES, SERVICE, issue

_WORKERS = {
    "dead": "events that a sink or consumer could not handle: list, replay, drop",
    "drain": "works one background job until nothing is left, and says how fast that was",
    "new-consumer": "writes a consumer to start from, with its test",
    "verify": "recounts who watches what from the sessions, and compares",
    "replay": "builds projections anew from lake and log, and compares or swaps them",
    "status": "lag, totals and dead letters of consumers and sinks",
}
"""Commands that `python -m workers` carries out, and what they do."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 failed, 2 wrong use."""
    lifeline.hold()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] and words[0] in _WORKERS:
        return _by_workers(words)
    if words[:1] == ["simulate"]:
        return _simulate(words[1:])
    args = _parser().parse_args(words)
    try:
        return int(args.do(args) or 0)
    except PulsegateError as error:
        print(f"pulsegate: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pulsegate", description="A session engine for media streaming.")
    commands = parser.add_subparsers(required=True, metavar="command")

    run = commands.add_parser("run", help="everything in one command")
    run.add_argument("--host")
    run.add_argument("--port", type=int)
    run.add_argument("--data", type=Path, default=Path(".pulsegate"), help="directory for data and secret")
    run.add_argument("--redis-url", help="an existing Redis ≥ 7 or Valkey, single node or cluster")
    run.add_argument("--processes", type=int, help="API processes")
    run.set_defaults(do=_run)

    api = commands.add_parser("api", help="API processes")
    api.add_argument("--host")
    api.add_argument("--port", type=int)
    api.add_argument("--processes", type=int)
    api.set_defaults(do=_api)

    worker = commands.add_parser("worker", help="RQ workers")
    worker.add_argument("--processes", type=int, dest="worker_processes")
    worker.set_defaults(do=lambda args: deployment.workers(_settings(worker_processes=args.worker_processes)))

    scheduler = commands.add_parser("scheduler", help="queues tenures where nobody works")
    scheduler.set_defaults(do=lambda args: deployment.scheduler(_settings()))

    token = commands.add_parser("token", help="prints a token")
    token.add_argument("--account")
    token.add_argument("--plan")
    token.add_argument("--max-streams", type=int)
    token.add_argument("--device")
    token.add_argument("--session", dest="sid", help="the session the token is for (sid)")
    token.add_argument("--content")
    token.add_argument("--ttl", default="1h", help="90s, 15m, 1h, 7d")
    token.add_argument("--service", action="store_true", help="a service token instead of a player's")
    token.add_argument("--scope", default="signals,read,admin")
    token.add_argument("--data", type=Path, default=Path(".pulsegate"), help="directory whose secret signs it")
    token.set_defaults(do=_token)

    config = commands.add_parser("config", help="lists all settings")
    config.set_defaults(do=_config)

    logs = commands.add_parser("ingest-log", help="turns CDN access logs into signals")
    options.add_arguments(logs)
    logs.set_defaults(do=command.run)

    badcli.add(commands)
    for name, does in _WORKERS.items():
        commands.add_parser(name, help=does)
    commands.add_parser("simulate", help="a seeded population with known truth against a running engine")
    return parser


def _by_workers(words: list[str]) -> int:
    """Runs a command that needs sinks or projections, which the engine must not know: in a process of the workers."""
    try:
        return subprocess.call([sys.executable, "-m", "workers", *words])
    except KeyboardInterrupt:
        return 130


def _simulate(words: list[str]) -> int:
    """Runs the simulator, which speaks HTTP only, in a process of its own; its tokens are signed with our secret."""
    parser = argparse.ArgumentParser(prog="pulsegate simulate", add_help=False, allow_abbrev=False)
    parser.add_argument("--data", type=Path, default=Path(".pulsegate"))
    args, rest = parser.parse_known_args(words)
    env = dict(os.environ)
    try:
        if not env.get("PULSEGATE_SECRET") and not {"-h", "--help", "--write-plans"} & set(rest):
            env["PULSEGATE_SECRET"] = _settings().jwt_secret or deployment.read_secret(args.data)
        return subprocess.call([sys.executable, "-m", "loadtest.simulator", *rest], env=env)
    except PulsegateError as error:
        print(f"pulsegate simulate: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _settings(**overrides: object) -> Settings:
    return Settings.from_env(os.environ, **overrides)


def _run(args: argparse.Namespace) -> int:
    settings = _settings(host=args.host, port=args.port, redis_url=args.redis_url, processes=args.processes)
    return deployment.run(settings, args.data)


def _api(args: argparse.Namespace) -> int:
    return deployment.api(_settings(host=args.host, port=args.port, processes=args.processes))


def _token(args: argparse.Namespace) -> int:
    settings = _settings()
    if not settings.jwt_secret:
        settings = replace(settings, jwt_secret=deployment.read_secret(args.data))
    if args.service == bool(args.account):
        print("pulsegate token: give either --account or --service", file=sys.stderr)
        return 2
    if args.service:
        scopes = args.scope.replace(",", " ").split()
        if unknown := set(scopes) - SCOPES:
            print(f"pulsegate token: unknown scope {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        claims: dict[str, object] = {
            "typ": SERVICE, "scope": " ".join(settings.jwt_scope_prefix + scope for scope in scopes),
        }  # fmt: skip
    else:
        check_device(args.device or "", "--device")
        check_session(args.sid or "", "--session")
        claims = {
            "sub": args.account, "plan": args.plan, "max_streams": args.max_streams, "device": args.device,
            "sid": args.sid, "content": args.content,
        }  # fmt: skip
    print(issue(settings.jwt_secret, claims, _seconds(args.ttl), settings=settings))
    return 0


def _seconds(text: str) -> int:
    units = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
    number, unit = (text[:-1], text[-1:]) if text[-1:] in units else (text, "s")
    if not number.isdigit() or int(number) == 0:
        raise PulsegateError(f"--ttl {text!r}: write 90s, 15m, 1h or 7d")
    return int(number) * units[unit]


def _config(args: argparse.Namespace) -> int:
    for name, value, help_ in _settings().describe():
        print(f"{name}={value}\n    {help_}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
