"""`pulsegate bad list|replay`: looks at rejected tracking events, and puts them in again once what was wrong is fixed."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

from engine import bad, scripts, tracking
from engine.bad import BadEvent
from engine.clients import Clients, connected
from engine.errors import BadRequest, Overloaded
from engine.settings import Settings

SHOWN = 100
"""Characters of an event that a line of the table shows."""


def add(commands: Any) -> None:
    """The subcommand with its arguments."""
    parser = commands.add_parser("bad", help="tracking events that were rejected")
    what = parser.add_subparsers(required=True, metavar="command")

    show = what.add_parser("list", help="shows them, the newest first")
    show.add_argument("--account")
    show.add_argument("--reason", help="invalid, invalid_json, reserved, too_deep")
    show.add_argument("--limit", type=int, default=50, help="at most so many (%(default)s)")
    show.add_argument("--json", action="store_true", help="one JSON object a line; `event` is the event as it came")
    show.set_defaults(do=_list)

    again = what.add_parser("replay", help="judges them again; those that are good now become events")
    which = again.add_mutually_exclusive_group(required=True)
    which.add_argument("--id", action="append", dest="ids", help="as `list` shows it; may be repeated")
    which.add_argument("--reason", help="all rejected for this reason")
    which.add_argument("--all", action="store_true")
    again.set_defaults(do=_replay)

    for each in (show, again):
        each.add_argument("--data", type=Path, default=Path(".pulsegate"), help="directory of `pulsegate run`")


def _list(args: argparse.Namespace) -> int:
    with connected(Settings.from_env(os.environ), args.data) as clients:
        found = bad.find(
            clients.log, clients.keys, account=args.account or "", reason=args.reason or "", newest_first=True
        )
        for entry in islice(found, max(0, args.limit)):
            print(json.dumps(entry.describe(), ensure_ascii=False) if args.json else _line(entry))
    return 0


def _line(entry: BadEvent) -> str:
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.at / 1000))
    text = "".join(c if c.isprintable() else " " for c in entry.event[: SHOWN * 4].decode(errors="replace"))
    return f"{entry.id}  {at}  {entry.account}  {entry.session}  {entry.reason}  {entry.message}\n    {text[:SHOWN]}"


def _replay(args: argparse.Namespace) -> int:
    with connected(Settings.from_env(os.environ), args.data) as clients:
        done = replay(clients, args.ids or (), args.reason or "")
    print(
        f"replayed {done['replayed']}, duplicate {done['duplicate']}, still bad {done['bad']}, not found {done['missing']}"
    )
    return 1 if done["bad"] or done["missing"] else 0


def replay(clients: Clients, ids: tuple[str, ...] | list[str] = (), reason: str = "", now: Any = "") -> Counter[str]:
    """Judges bad events again, the oldest first; those that are good now go into the outbox, and from here.

    Counts replayed, duplicate, bad, missing. Interrupted and repeated it puts no event in twice. Raises Overloaded when
    an outbox is too long.
    """
    done: Counter[str] = Counter()
    for entry in bad.find(clients.log, clients.keys, ids=ids, reason=reason):
        if entry.size:
            done["bad"] += 1
            print(f"{entry.id}: only the first {len(entry.event)} of its {entry.size} bytes were kept")
            continue
        try:
            good = tracking.judge(entry.account, entry.session, entry.event)
        except BadRequest as error:
            done["bad"] += 1
            print(f"{entry.id}: {error.message}")
            continue
        fate = _append(clients, entry, good, now)
        done["replayed" if fate else "duplicate"] += 1
        bad.remove(clients.log, clients.keys, [entry.id])
    done["missing"] = len(set(ids)) - sum(done.values()) if ids else 0
    return done


def _append(clients: Clients, entry: BadEvent, good: tracking.Good, now: Any) -> int:
    """Puts it in as of when it arrived; whether it was new."""
    settings = clients.settings
    envelope = entry.envelope
    stated = {"account": entry.account, "session": entry.session} | {
        name: envelope.get(name, "") for name in tracking.STATED
    }
    ((kind, event_id, body, _),) = tracking.bodies(stated, [good])
    told = tracking.Told(
        at=entry.at, view=envelope.get("view", 0), started_at=envelope.get("started_at", 0),
        triples=tracking.triple(kind, event_id, body, b"" if event_id else tracking.digest(f"bad {entry.id}")),
    )  # fmt: skip
    common = (now, entry.account, settings.tuning())
    keys, args = told.call(clients.keys.account(entry.account), common, settings.outbox_high)
    try:
        return tracking.fate(clients.call(scripts.load("track"), keys, args)).flags[0]
    except Overloaded as error:
        raise Overloaded(f"{error.message}: try again later", retry_after_s=error.retry_after_s) from None
