"""The tenure that knows what everyone is watching: keeps the totals, scores them, and publishes the lists.

Every `CLAIM_S` the partitions' changes are added to the totals; with every second claim each scope (live, on demand, and each of these
by provider) is scored by its `Detector`, and all lists are written at once. What the detectors have learned is kept in the log Redis,
so that another worker goes on with it.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import orjson
from redis.exceptions import ResponseError

from engine import audience, catalogue
from engine.trending import Detector, Item, Params, popular
from engine.viewers import windows
from workers.audience import Audience
from workers.runtime import Runtime
from workers.tenure import Ownership, Work, stopping
from workers.troubles import Troubles

CLAIM_S = 2.5
"""A viewer who is switched off is gone from the totals after a lifetime, a sweep and this."""
PUBLISH_EVERY = 2
"""Claims: the lists are 5 s old at most."""
SAVE_MS = 60_000
"""A worker that is killed takes so much of what the detectors learned with it."""
VERSION = b"version"
LIST_MAX = 100
LIST_KEPT_S = 3_600
"""A list nobody publishes any more is forgotten."""
KINDS = ("live", "vod")

Scope = tuple[str, str]
"""Kind, and provider ('': all)."""


class Trending(Work):
    """One for all partitions."""

    def __init__(self, run: Runtime, ownership: Ownership) -> None:
        self._audience = Audience(run, ownership)
        self._lists = _lists(run)
        self._lists.resume()
        self._claim_at = 0.0
        self._ticks, self._claimed_ms = 0, 0.0
        self._run = run

    def step(self, wait_s: float) -> int:
        left = self._claim_at - time.monotonic()
        if left > 0:
            stopping.wait(min(left, wait_s))
            return 0
        self._claim_at = time.monotonic() + CLAIM_S
        changed = self.claim()
        if self._ticks % PUBLISH_EVERY == 0:
            self.publish()
        self._ticks += 1
        return changed

    def claim(self) -> int:
        """One round of claims; how many entries changed. Raises LostOwnership and redis-py's errors."""
        began = time.monotonic()
        changed = self._audience.claim()
        self._claimed_ms += (time.monotonic() - began) * 1000
        return changed

    def publish(self, now_ms: int = 0) -> None:
        """Scores and publishes; see `Lists.publish`."""
        began = time.monotonic()
        at = self._lists.publish(now_ms)
        self._report(at, (time.monotonic() - began) * 1000)

    def _report(self, at: int, publication_ms: float) -> None:
        took: Any = {"at": at, "claims_ms": round(self._claimed_ms), "publication_ms": round(publication_ms)}
        self._run.log.hset(self._run.keys.trending_took, mapping=took)
        self._claimed_ms = 0.0

    def close(self) -> None:
        self._lists.save()


@lru_cache(maxsize=4)
def _lists(run: Runtime) -> Lists:
    """One per process: it goes on with what it knows when it has the next tenure as well."""
    return Lists(run)


class Lists:
    """Scores every scope and publishes what it finds."""

    def __init__(self, run: Runtime) -> None:
        self._run, self._keys = run, run.keys
        self._troubles = Troubles(run.log, run.keys, "trending")
        self._providers_max = run.settings.trending_providers_max
        self._detectors: dict[Scope, Detector] = {}
        self._version = b""
        self._hidden: set[str] = set()
        self._runtimes: dict[str, float] = {}
        self._catalogue = b""
        self._minute = self._saved_at = 0
        self._unsaved = False  # a dump did not arrive: the next one has everything

    def publish(self, now_ms: int = 0) -> int:
        """One tick; when it was, ms. Raises redis-py's errors. `now_ms` is the log Redis's clock outside tests and simulations."""
        run, keys = self._run, self._keys
        seconds, micros = run.log.time()
        now = now_ms or int(seconds) * 1000 + int(micros) // 1000
        totals, accounts = self._counts(keys.totals), self._counts(keys.accounts)
        self._read_catalogue()
        views, people = _scopes(totals), _scopes(accounts)
        documents: dict[tuple[str, str, str], bytes] = {}
        for scope in self._wanted(views):
            documents |= self._score(scope, now, views.get(scope, {}), people.get(scope, {}))
        with run.log.pipeline(transaction=True) as pipe:
            for (kind, rank, provider), document in documents.items():
                pipe.set(keys.trending_list(kind, rank, provider), document, ex=LIST_KEPT_S)
            pipe.delete(keys.providers)
            if providers := {what.split("\t")[2] for what in totals}:
                pipe.sadd(keys.providers, *providers)
            pipe.publish(keys.published, str(now))
            pipe.execute()
        if now // audience.MINUTE_MS != self._minute:
            self._minute = now // audience.MINUTE_MS
            audience.record(run.log, keys, self._minute, totals)
        if now - self._saved_at > SAVE_MS:
            self._saved_at = now
            self.save()
        return now

    def _counts(self, key: str) -> dict[str, int]:
        stored: Any = self._run.log.hgetall(key)
        found, bad = audience.counts(stored)
        if bad:
            self._troubles.note("counts of an audience", bad[0], len(bad))
        return found

    def _wanted(self, views: Mapping[Scope, Mapping[str, int]]) -> list[Scope]:
        """The scopes to score. Providers come from players, too, so only the most watched are, now or over the last day; what was
        learned of the others is forgotten."""
        whole = [(kind, "") for kind in KINDS]
        sizes = {
            scope: float(sum(counts.values())) for scope, counts in views.items() if scope[0] in KINDS and scope[1]
        }
        for scope, detector in self._detectors.items():
            if scope[1]:
                sizes[scope] = max(sizes.get(scope, 0.0), sum(detector.viewed) / 24)
        kept = sorted(sizes, key=lambda scope: (-sizes[scope], scope))[: self._providers_max]
        for scope in self._detectors.keys() - {*whole, *kept}:
            del self._detectors[scope]
            self._forget(scope)
        return whole + kept

    def _score(
        self, scope: Scope, now: int, views: Mapping[str, int], accounts: Mapping[str, int]
    ) -> dict[tuple[str, str, str], bytes]:
        """The scope's lists: (kind, rank, provider) → document."""
        kind, provider = scope
        detector = self._detector(scope)
        formula, distinct = detector.params.formula(), partial(self._distinct, now)
        # Before the first recount there may be views and no accounts.
        found = {("trending", orjson.dumps(formula)): detector.observe(now, views, distinct, accounts or None)}
        if kind == "vod":
            limit = LIST_MAX + len(self._hidden)
            best = popular(detector, views, self._runtimes, limit=limit, distinct=distinct)
            found["popular", orjson.dumps(detector.params.popular_formula())] = best
        return {
            (kind, rank, provider): self._document(kind, rank, provider, now, orjson.Fragment(parts), items)
            for (rank, parts), items in found.items()
        }

    def _document(self, kind: str, rank: str, provider: str, now: int, formula: Any, items: list[Item]) -> bytes:
        shown = [item for item in items if item.content not in self._hidden]
        said = {"kind": kind, "rank": rank, "provider": provider or None, "published_at": now, "formula": formula}
        return orjson.dumps(said | {"items": shown[:LIST_MAX]})

    def _distinct(self, now: int, contents: list[str]) -> dict[str, int]:
        """The accounts of each content in the last five minutes."""
        run = self._run
        buckets = [windows(self._keys, content, now)["5m"] for content in contents]
        if run.clustered:
            counts = [self._distinct_of(*keys) for keys in buckets]
        else:
            with run.session.pipeline(transaction=False) as pipe:
                for keys in buckets:
                    pipe.pfcount(*keys)
                counts = pipe.execute(raise_on_error=False)
        return {content: self._legible(content, count) for content, count in zip(contents, counts, strict=True)}

    def _distinct_of(self, *keys: str) -> Any:
        try:
            return self._run.session.pfcount(*keys)
        except ResponseError as error:
            return error

    def _legible(self, content: str, count: Any) -> int:
        if isinstance(count, ResponseError):
            self._troubles.note("distinct viewers of a content", f"{content}: {count}")
            return 0
        if isinstance(count, Exception):
            raise count
        return int(count)

    def _read_catalogue(self) -> None:
        version: Any = self._run.log.get(self._keys.contents_version)
        if version != self._catalogue:
            found: Any = self._run.log.hgetall(self._keys.contents)
            entries = {content.decode(errors="replace"): catalogue.decode(entry) for content, entry in found.items()}
            self._hidden = {content for content, entry in entries.items() if entry.hidden}
            self._runtimes = {content: entry.runtime for content, entry in entries.items() if entry.runtime}
            self._catalogue = version

    # what the detectors have learned

    def resume(self) -> None:
        """Goes on from what was saved last, unless that was here."""
        version: Any = self._run.log.hget(self._keys.trending_state, VERSION)
        if version == self._version or version is None:
            return
        stored: Any = self._run.log.hgetall(self._keys.trending_state)
        parts: defaultdict[Scope, dict[str, bytes]] = defaultdict(dict)
        for name, part in stored.items():
            kind, *rest = name.decode(errors="replace").split("\t")
            if name != VERSION and kind in KINDS and len(rest) == 2:
                parts[kind, rest[0]][rest[1]] = part
            elif name != VERSION:
                self._troubles.note("parts of what was learned", name)
        self._detectors = {}
        for scope, known in parts.items():
            self._detector(scope).load(known)
        self._version = version

    def _detector(self, scope: Scope) -> Detector:
        found = self._detectors.get(scope)
        if found is None:
            found = self._detectors[scope] = Detector(Params.of(self._run.settings, scope[0]))
        return found

    def save(self) -> None:
        """Keeps what has changed since the last time."""
        parts: dict[Any, Any] = {}
        for scope, detector in self._detectors.items():
            dumped = detector.dump(whole=self._unsaved)
            parts |= {"\t".join((*scope, name)): part for name, part in dumped.items()}
        if parts:
            parts[VERSION] = uuid.uuid4().hex.encode()
            self._unsaved = True
            self._run.log.hset(self._keys.trending_state, mapping=parts)
            self._unsaved, self._version = False, parts[VERSION]

    def _forget(self, scope: Scope) -> None:
        state, prefix = self._keys.trending_state, "\t".join(scope) + "\t"
        known: Any = self._run.log.hkeys(state)
        if names := [name for name in known if name.startswith(prefix.encode())]:
            self._run.log.hdel(state, *names)


def _scopes(totals: Mapping[str, int]) -> dict[Scope, dict[str, int]]:
    """Scope → content → count, of all providers together and of each."""
    found: defaultdict[Scope, dict[str, int]] = defaultdict(dict)
    for what, count in totals.items():
        kind, content, provider = what.split("\t")
        for scope in {(kind, ""), (kind, provider)}:
            counts = found[scope]
            counts[content] = counts.get(content, 0) + count
    return found
