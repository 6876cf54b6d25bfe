"""`pulsegate dead list|replay|drop`: looks at dead letters, delivers them again, or lets go of them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from engine import deadletters
from engine.clients import Clients, connected
from engine.deadletters import DeadLetter
from engine.errors import ConfigError, PulsegateError
from engine.events import Event
from engine.settings import Settings
from workers.sinks import Rejected, Retry, Sink, build, configured

SHOWN = 100
"""Characters of an event that a line of the table shows."""


def dead(arguments: Sequence[str]) -> int:
    """The exit status: 0 done, 1 failed or some stay. Wrong use exits with 2."""
    args = _parser().parse_args(arguments)
    try:
        with connected(Settings.from_env(os.environ), args.data) as clients:
            return int(args.do(clients, args))
    except PulsegateError as error:
        print(f"pulsegate: {error.message}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pulsegate dead", description="Events that a sink or consumer could not handle."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    show = commands.add_parser("list", help="shows them, the oldest first")
    show.add_argument("--limit", type=int, default=50, help="at most so many (%(default)s)")
    show.add_argument("--json", action="store_true", help="one JSON object a line")
    show.set_defaults(do=_list)
    again = commands.add_parser("replay", help="delivers them again through their sink; what it takes is let go")
    again.set_defaults(do=_replay)
    drop = commands.add_parser("drop", help="lets go of them")
    drop.set_defaults(do=_drop)
    for each in (again, drop):
        which = each.add_mutually_exclusive_group(required=True)
        which.add_argument("--id", action="append", dest="ids", help="as `list` shows it; may be repeated")
        which.add_argument("--all", action="store_true")
    for each in (show, again, drop):
        each.add_argument("name", help="the sink or consumer")
        each.add_argument("--data", type=Path, default=Path(".pulsegate"), help="directory of `pulsegate run`")
    return parser


def _list(clients: Clients, args: argparse.Namespace) -> int:
    for letter in islice(deadletters.letters(clients.log, clients.keys, args.name), max(0, args.limit)):
        print(json.dumps(_described(letter), ensure_ascii=False) if args.json else _line(letter))
    return 0


def _described(letter: DeadLetter) -> dict[str, Any]:
    event = letter.payload.decode(errors="replace")
    said = {"id": letter.id, "of": letter.of, "at": letter.at, "why": letter.why, "event": event}
    return said | ({"size": letter.size} if letter.size else {})


def _line(letter: DeadLetter) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(letter.at / 1000)) if letter.at else "-"
    text, why = (_printable(t) for t in (letter.payload.decode(errors="replace"), letter.why))
    return f"{letter.id}  {at}  {letter.of}  {why}\n    {text[:SHOWN]}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _drop(clients: Clients, args: argparse.Namespace) -> int:
    found = [letter.id for letter in _chosen(clients, args.name, args.ids)]
    gone = deadletters.remove(clients.log, clients.keys, args.name, found)
    print(f"dropped {gone}")
    return _missing(args.ids, len(found))


def _replay(clients: Clients, args: argparse.Namespace) -> int:
    sinks = configured(clients.settings)
    sink = build(sinks[args.name], clients.settings) if args.name in sinks else None
    if sink is None:
        raise ConfigError(f"{args.name} is not a sink that is configured here; those are: {', '.join(sinks) or 'none'}")
    delivered, stay = replay(clients, sink, args.ids)
    for id_, why in stay:
        print(f"{id_}: {_printable(why)}")
    print(f"delivered {delivered}, still refused {len(stay)}")
    return 1 if stay else _missing(args.ids, delivered)


def replay(clients: Clients, sink: Sink, ids: Sequence[str] | None = None) -> tuple[int, list[tuple[str, str]]]:
    """Delivers letters (all, or those with these ids) again; what was taken is let go.

    Returns how many were, and (id, why) of those that stay; it stops when the receiver is away. Interrupted and repeated it delivers some once more.
    """
    delivered, stay = 0, []
    letters = _chosen(clients, sink.name, ids)
    while batch := list(islice(letters, sink.batch)):
        events: list[tuple[DeadLetter, Event]] = []
        for letter in batch:
            try:
                events.append((letter, letter.event()))
            except (msgspec.DecodeError, ValueError) as error:
                stay.append((letter.id, f"no event: {error}"))
        refused, later = _deliver(sink, [event for _, event in events])
        taken = [letter.id for letter, event in events if id(event) not in refused and not later]
        stay += [(letter.id, later or refused[id(event)]) for letter, event in events if letter.id not in taken]
        delivered += deadletters.remove(clients.log, clients.keys, sink.name, taken)
        if later:
            break
    return delivered, stay


def _deliver(sink: Sink, events: Sequence[Event]) -> tuple[dict[int, str], str]:
    """Why events were refused, by their identity (the same event may lie there twice); and why none can be taken now."""
    try:
        if events:
            sink.deliver(events)
    except Rejected as error:
        return {id(event): why for event, why in error.refused}, ""
    except Retry as error:
        return {}, str(error) or "not now"
    return {}, ""


def _chosen(clients: Clients, name: str, ids: Sequence[str] | None) -> Iterator[DeadLetter]:
    letters = deadletters.letters(clients.log, clients.keys, name)
    return (letter for letter in letters if ids is None or letter.id in ids)


def _missing(ids: Sequence[str] | None, found: int) -> int:
    missing = len(set(ids)) - found if ids else 0
    if missing:
        print(f"not found {missing}", file=sys.stderr)
    return 1 if missing else 0
