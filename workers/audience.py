"""Who watches what, all partitions together: claims what each partition's audience has changed by, and adds it to the totals.

Only changes travel. Each claim is numbered and counts once, whoever dies when: the session Redis gives it again until the log Redis
says that it has it (`lua/claim.lua`, `lua/apply.lua`). Beside that, all partitions are added up anew in rotation: a Redis that lost
its last second is found out in a minute or two, and corrected (`lua/recount.lua`).
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from typing import Any

from redis.exceptions import ResponseError

from engine import scripts
from engine.scripts import Arg, Script
from workers.runtime import Runtime
from workers.tenure import LostOwnership, Ownership
from workers.troubles import Troubles, own

log = logging.getLogger(__name__)

RECOUNTED = 8
"""Partitions whose whole audience travels with one round of claims: 256 are through in 32 rounds."""
RECOUNTED_FIRST = 32
TOGETHER = 32
"""Partitions whose claims travel together."""


class Audience:
    def __init__(self, run: Runtime, ownership: Ownership) -> None:
        self._run, self._owner = run, ownership
        self._troubles = Troubles(run.log, run.keys, "trending")
        self._claim, self._apply, self._recount = (scripts.load(name) for name in ("claim", "apply", "recount"))

    def claim(self) -> int:
        """One round over all partitions; how many entries changed. Raises LostOwnership and redis-py's errors."""
        run, keys = self._run, self._run.keys
        applied: Any = run.log.hgetall(keys.applied)
        counted: Any = run.log.smembers(keys.recounted)
        every = range(run.settings.partitions)
        left = [p for p in every if str(p).encode() not in counted]
        # Totals that were never recounted are not yet what they say, so the first time is quicker.
        whole = set(left[: RECOUNTED if b"recounts" in applied else RECOUNTED_FIRST])
        changed = sum(
            self._carry(every[start : start + TOGETHER], applied, whole) for start in range(0, len(every), TOGETHER)
        )
        self._correct()
        return changed

    def _carry(self, partitions: Sequence[int], applied: Any, whole: Container[int]) -> int:
        """Claims of these partitions, applied; how many entries changed."""
        keys = self._run.keys
        claims = self._session(
            self._claim,
            [
                (
                    (keys.deltas(p), keys.claimed(p), keys.audience(p)),
                    (_number(applied.get(b"%d" % p)), int(p in whole)),
                )
                for p in partitions
            ],
        )
        claims = [self._legible(p, claim, applied, p in whole) for p, claim in zip(partitions, claims, strict=True)]
        calls: list[tuple[tuple[str, ...], tuple[Arg, ...]]] = []
        names = (keys.totals, keys.applied, keys.recount, keys.recounted, keys.accounts, self._owner.key)
        changed = 0
        for partition, (number, changes, is_whole, audience) in zip(partitions, claims, strict=True):
            changed += len(changes) // 2
            if changes or is_whole:
                pairs = [*changes, *(audience if is_whole else ())]
                calls.append((names, (self._owner.token, partition, number, len(changes) // 2, is_whole, *pairs)))
        answers = self._log(self._apply, calls)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            if answer == -1:
                raise LostOwnership(self._owner.key)
        if left_out := sum(answers):
            self._troubles.note("members of an audience", f"of partitions {partitions[0]}–{partitions[-1]}", left_out)
        self._owner.renew()
        return changed

    def _legible(self, partition: int, claim: Any, applied: Any, whole: bool) -> Any:
        """The claim; of a partition whose keys are of another type than ours nothing has changed and nobody watches."""
        if not isinstance(claim, Exception):
            return claim
        if not own(claim):
            raise claim
        self._troubles.note(f"audience of partition {partition}", claim)
        return _number(applied.get(b"%d" % partition)), (), int(whole), ()

    def _correct(self) -> None:
        keys = self._run.keys
        names = (keys.totals, keys.recount, keys.recounted, keys.applied, keys.accounts, self._owner.key)
        ((found),) = self._log(self._recount, [(names, (self._owner.token, self._run.settings.partitions))])
        if isinstance(found, Exception):
            raise found
        for what, total, recounted in zip(*(found[n::3] for n in range(3)), strict=True) if found else ():
            log.warning(
                "audience_drift",
                extra={"what": what.decode(errors="replace"), "total": _number(total), "recounted": _number(recounted)},
            )

    def _session(self, script: Script, calls: Sequence[tuple[tuple[str, ...], tuple[Arg, ...]]]) -> list[Any]:
        """Script calls on the session Redis, errors of the server as values: one round trip on a single node, one each on a
        cluster."""
        if self._run.clustered:
            return [self._called(script, names, args) for names, args in calls]
        return self._piped(self._run.session, script, calls)

    def _called(self, script: Script, names: tuple[str, ...], args: tuple[Arg, ...]) -> Any:
        try:
            return self._run.call(script, names, args)
        except ResponseError as error:
            return error

    def _log(self, script: Script, calls: Sequence[tuple[tuple[str, ...], tuple[Arg, ...]]]) -> list[Any]:
        return self._piped(self._run.log, script, calls)

    @staticmethod
    def _piped(client: Any, script: Script, calls: Sequence[tuple[tuple[str, ...], tuple[Arg, ...]]]) -> list[Any]:
        run = client.register_script(script.source)
        with client.pipeline(transaction=False) as pipe:
            for names, args in calls:
                script.check(len(names), len(args))
                run(keys=list(names), args=list(args), client=pipe)
            return list(pipe.execute(raise_on_error=False))


def _number(stored: bytes | None) -> int:
    """0 for what is not there, and for what is no number."""
    try:
        return int(stored or 0)
    except ValueError:
        return 0
