"""`pulsegate replay`, `status`, `drain` and `new-consumer`: what needs to know projections and jobs, which the engine must not."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import re
import sys
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine import lag
from engine.clients import located
from engine.errors import PulsegateError
from engine.keys import Keys
from engine.private import keep_private
from engine.settings import Settings
from engine.wire import AT_MAX, check_ms
from workers import consumer, servers, sinks
from workers.consumer import consumers
from workers.drain import drain, stop_on_signals
from workers.replay import replay
from workers.runtime import runtime
from workers.verify import verify

_NAME = re.compile("[a-z][a-z0-9_]{0,31}")


def main(words: list[str]) -> int:
    """The exit status: 0 done, 1 failed or different, 2 wrong use."""
    args = _parser().parse_args(words)
    try:
        return int(args.do(args))
    except PulsegateError as error:
        print(f"pulsegate: {error.message}", file=sys.stderr)
        return 1
    except RedisError as error:
        print(f"pulsegate: Redis: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pulsegate")
    commands = parser.add_subparsers(required=True, metavar="command")

    again = commands.add_parser("replay", help="builds projections anew from lake and log, and compares or swaps them")
    again.add_argument("--projection", action="append", metavar="NAME", help="again for more than one; default: all")
    again.add_argument("--from", dest="since", metavar="DATE", help="leave out what is older: 2026-11-23 or ms")
    again.add_argument("--swap", action="store_true", help="put the result in the live one's place")
    again.add_argument("--json", action="store_true")
    again.set_defaults(do=_replay)

    status = commands.add_parser("status", help="lag, totals and dead letters of consumers and sinks")
    status.add_argument("--json", action="store_true")
    status.set_defaults(do=_status)

    drained = commands.add_parser("drain", help="works one job until nothing is left, and says how fast that was")
    drained.add_argument("job", help="mirror, consume-<consumer>, export-<sink>, …")
    drained.add_argument("--group", type=int, help="only this group of partitions; default: all, one after the other")
    drained.add_argument("--seize", action="store_true", help="take it over from the worker that owns it")
    drained.add_argument(
        "--for",
        type=float,
        default=0.0,
        metavar="SECONDS",
        dest="seconds",
        help="go on for so long, with what comes meanwhile",
    )
    drained.add_argument("--json", action="store_true")
    drained.set_defaults(do=_drain)

    verified = commands.add_parser("verify", help="recounts who watches what from the sessions, and compares")
    verified.add_argument("what", choices=["audience"])
    verified.add_argument("--json", action="store_true")
    verified.set_defaults(do=_verify)
    for command in (again, status, drained, verified):
        command.add_argument("--data", type=Path, default=Path(".pulsegate"), help="directory of a `pulsegate run`")

    new = commands.add_parser("new-consumer", help="writes a consumer to start from, with its test")
    new.add_argument("name", help="lower-case letters, digits and _")
    new.add_argument("--into", type=Path, default=Path(), help="directory in which its directory is made")
    new.set_defaults(do=_new_consumer)
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    settings = located(Settings.from_env(os.environ), args.data)
    keep_private(settings)
    return settings


def _replay(args: argparse.Namespace) -> int:
    names = args.projection or []
    if unknown := [name for name in names if name not in consumers()]:
        raise PulsegateError(f"no projection {unknown[0]!r}; there are {', '.join(sorted(consumers()))}")
    return replay(runtime(_settings(args)), names, since_ms=_ms(args.since), swap=args.swap, as_json=args.json)


def _ms(text: str | None) -> int:
    if text is None:
        return 0
    if text.isascii() and text.isdigit() and len(text) <= len(str(AT_MAX)):
        check_ms(int(text), "--from")
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise PulsegateError(f"--from {text!r}: write 2026-11-23, 2026-11-23T20:00 or ms") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _status(args: argparse.Namespace) -> int:
    settings = _settings(args)

    async def look() -> lag.Flow:
        async with Redis.from_url(settings.log_redis_url or settings.redis_url, socket_timeout=5) as client:
            return await lag.look(client, Keys(settings.prefix, settings.partitions), settings.groups)

    flow = asyncio.run(look())
    redis = servers.states(settings)
    if args.json:
        print(orjson.dumps({**dataclasses.asdict(flow), "redis": redis}).decode())
    else:
        print(lag.table(flow), servers.table(redis), sep="\n")
    return 0


def _drain(args: argparse.Namespace) -> int:
    stop_on_signals()
    found = drain(runtime(_settings(args)), args.job, args.group, seize=args.seize, seconds=args.seconds)
    print(orjson.dumps(found.to_json()).decode() if args.json else found.text())
    return 0 if found.complete else 1


def _verify(args: argparse.Namespace) -> int:
    found, differences = verify(runtime(_settings(args)))
    if args.json:
        print(orjson.dumps({"counts": found.sessions, "differences": differences}).decode())
    else:
        views = sum(n for what, n in found.sessions.items() if what.count("\t") == 2)
        print(f"audience: {views:,} views, {len(differences)} differences")
        for what, (sessions, partitions, totals) in differences.items():
            kind, content, provider, *accounts = what.split("\t")
            of = "accounts" if accounts else "views"
            print(
                f"  {kind} {content} {provider}: {of} by sessions {sessions}, partitions {partitions}, totals {totals}"
            )
    return 1 if differences else 0


def _new_consumer(args: argparse.Namespace) -> int:
    name: str = args.name
    if not _NAME.fullmatch(name):
        raise PulsegateError(f"{name!r}: begin with a letter; lower-case letters, digits and _, at most 32")
    if name in {*consumer.names(), *sinks.names()}:
        raise PulsegateError(f"there is a consumer or sink {name!r} already")
    directory: Path = args.into / name
    if directory.exists():
        raise PulsegateError(f"{directory} exists already")
    words = {
        "name": name, "module": f"pulsegate_{name}", "dashed": name.replace("_", "-"),
        "Class": "".join(part.capitalize() for part in name.split("_")),
    }  # fmt: skip
    directory.mkdir(parents=True)
    for template, target in (
        ("consumer.py", f"{words['module']}.py"), ("test.py", f"test_{name}.py"), ("pyproject.toml", "pyproject.toml"),
    ):  # fmt: skip
        text = (files("workers") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
        (directory / target).write_text(Template(text).substitute(words), encoding="utf-8")
    print(f"wrote {directory}: `pip install -e {directory}`, then restart workers and scheduler; `pytest {directory}`")
    return 0
