"""Erases an account everywhere: session Redis, outbox, log, projections, kept bad events and dead letters, lake.

In the order in which events flow, with the partition's mirror, projections and exports taken over meanwhile, so that nothing
under way brings the account back: what they have read already they can no longer commit. The lake, whose commits know no
owner, remembers itself whom not to let in again.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine import bad, deadletters, scripts
from engine.ask import REFUSED
from engine.errors import Conflict
from engine.events import TOPICS
from engine.lake import Lake
from engine.partitions import partition_of
from engine.quality.files import lake_of
from engine.scripts import Arg
from engine.settings import Settings
from workers import consumer, sinks
from workers.consume import live_generation
from workers.consumer import consumers
from workers.jobs import jobs
from workers.runtime import Runtime, runtime
from workers.tenure import Keeper, Ownership

_PAGE = 1_000


def erase(account: str) -> dict[str, Any]:
    """The RQ job. Returns the receipt."""
    try:
        return erase_account(runtime(Settings.from_env(os.environ)), account)
    except Conflict as error:
        return {REFUSED: {"code": error.code, "message": error.message}}


def erase_account(run: Runtime, account: str) -> dict[str, Any]:
    """What was removed where, in numbers, so that the receipt itself says nothing about the account. Idempotent.

    Raises Conflict while a projection is replayed: it may have read the account already.
    """
    for name in consumers():
        if run.log.exists(run.keys.owner(f"replay-{name}", 0)):
            raise Conflict(f"a replay of {name} is under way; try again when it is done", code="replay")
    partition = partition_of(account, run.settings.partitions)
    with _taken_over(run, partition % run.settings.groups):
        removed: dict[str, Any] = {
            "sessions": _session(run, account, partition),
            "outbox": _stream(run.session, run.keys.outbox(partition), account),
            "log": sum(_stream(run.log, run.keys.log(partition, topic), account) for topic in TOPICS),
            "projections": {name: _projection(run, name, account) for name in consumers()},
            "kept": _kept(run, account),
        }
    if run.settings.lake_dir:
        receipt = Lake(Path(run.settings.lake_dir), partitions=run.settings.partitions).erase(account)
        removed["lake"] = {"rows": receipt.rows, "files": receipt.files}
        facts = lake_of(run.settings)
        if facts is not None:
            receipt = facts.erase(account)
            removed["quality"] = {"rows": receipt.rows, "files": receipt.files}
        # A projection that lagged may have read the lake meanwhile.
        with _taken_over(run, partition % run.settings.groups):
            for name in consumers():
                removed["projections"][name] += _projection(run, name, account)
    return {"erased_at": int(time.time() * 1000), "removed": removed}


@contextlib.contextmanager
def _taken_over(run: Runtime, group: int) -> Iterator[None]:
    """Whoever works on the group can commit nothing meanwhile. A lake rewrite takes long, so it is not done in here."""
    names = [job for job in jobs(run.settings) if job == "mirror" or job.startswith(("consume-", "export-"))]
    taken = [Ownership(run, job, group) for job in names]
    for ownership in taken:
        ownership.seize()
    try:
        with Keeper(*taken):
            yield
    finally:
        for ownership in taken:
            ownership.release()


def _session(run: Runtime, account: str, partition: int) -> int:
    keys, settings = run.keys.account(account), run.settings
    args: list[Arg] = ["", account, settings.tuning()]
    names = [keys.leases, keys.deadlines, keys.outbox, keys.takeovers, keys.seen]
    (known,) = run.call(scripts.load("erase"), names, args)
    return int(known)


def _stream(client: Any, key: str, account: str) -> int:
    """Deletes the account's entries of a stream of events; how many."""
    gone = 0
    for page in _pages(client, key):
        ids = [id_ for id_, fields in page if _account_of(fields.get(b"e", b"")) == account]
        gone += client.xdel(key, *ids) if ids else 0
    return gone


def _kept(run: Runtime, account: str) -> int:
    """Bad events and dead letters."""
    gone = 0
    for page in _pages(run.log, run.keys.bad):
        ids = [id_.decode() for id_, fields in page if fields.get(b"account") == account.encode()]
        gone += bad.remove(run.log, run.keys, ids)
    return gone + sum(
        deadletters.erase(run.log, run.keys, name, account) for name in [*consumer.names(), *sinks.names()]
    )


def _pages(client: Any, key: str) -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    after = "-"
    while page := client.xrange(key, min=after, count=_PAGE):
        yield page
        after = f"({page[-1][0].decode()}"


class _Named(msgspec.Struct):
    account: str = ""


_named = msgspec.json.Decoder(_Named)


def _account_of(payload: bytes) -> str:
    try:
        return _named.decode(payload).account
    except msgspec.DecodeError:
        return ""


def _projection(run: Runtime, name: str, account: str) -> int:
    cls = consumers()[name]
    space = run.keys.projection(name, live_generation(run, name))
    with run.log.pipeline(transaction=True) as pipe:
        gone = cls(run.log, space, run.settings).erase(account, pipe)
        pipe.execute()
    return gone
