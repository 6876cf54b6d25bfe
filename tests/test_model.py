"""A hypothesis state machine: the engine and `tests/model.py` see the same requests and must agree after every step.

Runs the same examples every time. More of them, and new ones: `HYPOTHESIS_PROFILE=many pytest tests/test_model.py`.
"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from hashlib import blake2b
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from engine import records
from engine.embedded import Server
from engine.errors import NotFound
from engine.partitions import partition_of
from tests import model
from tests.harness import PARTITIONS, START, World, leases_of

ACCOUNTS = (
    "a",
    next(f"b{n}" for n in range(1000) if partition_of(f"b{n}", PARTITIONS) == partition_of("a", PARTITIONS)),
)
DEVICES = {"s1": "d1", "s2": "d1", "s3": "d2", "s4": "d2", "s5": "d3"}
CONTENTS = {"film": "vod", "show": "vod", "match": "live"}
NO_PROGRESS_MS = 30_000
LENGTH, CREDITS = 1200, 400
"""Seconds. `film` is completed with three minutes left, `show` where its credits start."""
COMPLETED_FROM = {"film": LENGTH - 180, "show": CREDITS}
MODES, UNITS, LIMITS = ("deny_new", "stop_oldest", "stop_latest"), ("device", "stream"), (1, 2, 3)
LIFE_CYCLE = (
    "view_start",
    "view_end",
    "view_reopen",
    "session_linked",
    "block",
    "evict",
    "takeover",
    "pause",
    "resume",
)

accounts = st.sampled_from([ACCOUNTS[0]] * 9 + [ACCOUNTS[1]])
sessions = st.sampled_from(sorted(DEVICES))
devices = st.sampled_from(["d1", "d2", "d3", "d4"])
contents = st.sampled_from(["film", "film", "show", "match"])
waits = st.sampled_from(
    [0.1, 1, 2, 4, 5, 5.1, 9.9, 10, 10, 10, 14.9, 15, 15.1, 20, 20.1, 29.9, 30, 30.1, 45, 59.9, 60, 60.1, 120, 120.1, 300, 301, 600, 1799, 1800, 1860]
)  # fmt: skip
ages = st.sampled_from([0, 0, 0, 0, 1, 5, 12, 29, 31, 65, 300, 599, 601])
moves = st.sampled_from(["clock", "clock", "clock", "still", "back", "ahead"])


class Universe:
    """Every plan the machine uses, as the engine's TOML and as the model's object."""

    def __init__(self) -> None:
        self.plans: dict[str, model.Plan] = {}
        text = ['default = "deny_new-device-1-one"']
        for mode, unit, limit, live, proof in itertools.product(
            MODES, UNITS, LIMITS, ("one", "live", "liveonly"), (False, True)
        ):
            name = f"{mode}-{unit}-{limit}-{live}" + ("-proof" if proof else "")
            rules = [model.Rule("streams", limit, unit=unit)] if live != "liveonly" else []
            if live != "one":
                rules.append(model.Rule("live", 1 if live == "live" else limit, "live", unit))
            self.plans[name] = model.Plan(tuple(rules), mode, proof)
            text.append(f'[plans.{name}]\nat_limit = "{mode}"\nrequire_evidence = {str(proof).lower()}')
            for r in rules:
                text.append(f'[[plans.{name}.rules]]\nname = "{r.name}"\nlimit = {r.limit}\nunit = "{r.unit}"')
                text.append(f'kind = "{r.kind}"' if r.kind else "")
        self.toml = "\n".join(text)


UNIVERSE = Universe()
plans = st.sampled_from(sorted(UNIVERSE.plans))
_prefixes = itertools.count(1)


class Engine(RuleBasedStateMachine):
    """One world, two accounts of one partition, and a model of each."""

    backend = "fake"

    def __init__(self) -> None:
        super().__init__()
        prefix = f"m{os.getpid()}-{next(_prefixes)}"
        self.world = World(self.backend, prefix, UNIVERSE.toml, no_progress_ms=NO_PROGRESS_MS).__enter__()
        self.models = {name: model.Account(NO_PROGRESS_MS) for name in ACCOUNTS}
        self.seqs: dict[tuple[str, str], int] = {}
        self.positions: dict[tuple[str, str], float] = {}
        self.plan_changed = False
        self.touched: set[str] = set()
        self.seen_id = b"-"
        self.pending: dict[str, list[model.Event]] = {name: [] for name in ACCOUNTS}
        self.views: dict[tuple[str, str, int], str] = {}
        self.began: dict[tuple[str, str, int], int] = {}
        self.plan = ""
        self.stretch = 1

    def teardown(self) -> None:
        self.world.__exit__(None, None, None)

    @property
    def terms(self) -> model.Plan:
        return UNIVERSE.plans[self.plan]

    def model(self, account: str) -> model.Account:
        found = self.models[account]
        found.now = self.world.now
        self.touched.add(account)
        return found

    # what happens

    @initialize(plan=plans)
    def begin(self, plan: str) -> None:
        self.plan = plan

    @rule(
        account=accounts,
        session=sessions,
        content=contents,
        state=st.sampled_from(["playing"] * 4 + ["paused"] * 2 + ["buffering"]),
        move=moves,
    )
    def beat(self, account: str, session: str, content: str, state: str, move: str) -> None:
        self._beat(account, session, content, state, move, self.seqs.get((account, session), -1) + 1)

    @rule(
        account=accounts,
        session=sessions,
        rounds=st.integers(1, 5),
        state=st.sampled_from(["playing", "playing", "paused"]),
        move=moves,
    )
    def go_on(self, account: str, session: str, rounds: int, state: str, move: str) -> None:
        """One session goes on with what it plays, on time."""
        known = self.models[account].sessions.get(session)
        for _ in range(rounds):
            self._beat(
                account,
                session,
                known.content if known else "film",
                state,
                move,
                self.seqs.get((account, session), -1) + 1,
            )
            self.world.wait(10)

    @rule(account=accounts, rounds=st.integers(1, 3), evidence=st.booleans())
    def all_go_on(self, account: str, rounds: int, evidence: bool) -> None:
        """Everybody who is running goes on, on time."""
        for _ in range(rounds):
            self.world.wait(10)
            for session in sorted(self.model(account).running()):
                known = self.models[account].sessions.get(session)
                if known and known.player:
                    seq = self.seqs.get((account, session), -1) + 1
                    self._beat(
                        account, session, known.content, "paused" if known.paused_at else "playing", "clock", seq
                    )
                elif known:
                    self._signal(account, known.device, known.content, "segment", 0, "")
                if known and known.player and evidence:
                    self._signal(account, known.device, known.content, "segment", 0, session)

    @rule(
        account=accounts,
        session=sessions,
        content=contents,
        seq=st.integers(0, 3),
        state=st.sampled_from(["playing", "paused"]),
    )
    def beat_again(self, account: str, session: str, content: str, seq: int, state: str) -> None:
        """An old, repeated or restarted `seq`."""
        self._beat(account, session, content, state, "clock", seq)

    @rule(account=accounts, session=sessions, content=contents, state=st.sampled_from(["ended", "error"]))
    def close(self, account: str, session: str, content: str, state: str) -> None:
        self._beat(account, session, content, state, "clock", self.seqs.get((account, session), -1) + 1)

    @rule(account=accounts, session=sessions, known=st.booleans())
    def stop(self, account: str, session: str, known: bool) -> None:
        seq = self.seqs.get((account, session)) if known else None
        assert self.world.stop(session, account=account, seq=seq) == self.model(account).stop(session, seq)

    @rule(account=accounts, session=sessions, content=contents, victim=st.one_of(st.just("oldest"), sessions))
    def takeover(self, account: str, session: str, content: str, victim: str) -> None:
        device, kind = DEVICES[session], CONTENTS[content]
        fields = {"device": device, "content": content, "kind": kind}
        try:
            expected = self.model(account).takeover(session, device, content, kind, self.terms, victim)
        except model.UnknownTarget:
            expected = None
        try:
            answer = self.world.takeover(session, victim, account=account, plan=self.plan, **fields)
        except NotFound:
            answer = None
        assert (answer is None) == (expected is None), (answer, expected)
        if expected and answer:
            self._same(answer, expected)

    @rule(account=accounts, device=devices, content=st.one_of(contents, contents, st.just("")), age=ages,
          evidence=st.sampled_from(["segment"] * 4 + ["manifest", "licence", "token"]), named=st.sampled_from([""] * 5 + ["x1", "own"]))  # fmt: skip
    def signal(self, account: str, device: str, content: str, evidence: str, age: float, named: str) -> None:
        if named == "own":
            named = next(s for s in (*sorted(DEVICES), "") if not s or DEVICES[s] == device)
        self._signal(account, device, content, evidence, age, named)

    @rule(account=accounts, device=devices, content=contents, rounds=st.integers(2, 5))
    def fetch(self, account: str, device: str, content: str, rounds: int) -> None:
        """A device fetches segments for a while."""
        for _ in range(rounds):
            self._signal(account, device, content, "segment", 0, "")
            self.world.wait(5)

    @rule(account=accounts, session=sessions, content=contents)
    def check(self, account: str, session: str, content: str) -> None:
        device, kind = DEVICES[session], CONTENTS[content]
        before = self._dump(account)
        answer = self.world.check(session, device, content, kind, account=account, plan=self.plan)
        assert self._dump(account) == before, "check changed something"
        self._same(answer, self.model(account).check(session, device, content, kind, self.terms))

    @rule(seconds=waits)
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @rule()
    def sweep(self) -> None:
        self.world.sweep()
        for account in ACCOUNTS:
            self.model(account).sweep()

    @rule(plan=plans)
    def change_plan(self, plan: str) -> None:
        self.plan = plan
        self.plan_changed = True

    @rule(stretch=st.sampled_from([1, 2]))
    def load(self, stretch: int) -> None:
        """Under load players are asked to come less often."""
        self.stretch = stretch
        self.world.decisions._stretch = lambda: float(stretch)  # type: ignore[method-assign]

    # what must hold

    @invariant()
    def agree(self) -> None:
        if not self.plan:
            return
        self._absorb()
        new, self.pending = self.pending, {name: [] for name in ACCOUNTS}
        counted: Counter[str] = Counter()
        for account in ACCOUNTS:
            known = self.models[account]
            known.now = self.world.now
            expected, known.events = sorted(known.events), []
            assert sorted(new[account]) == expected, f"events: engine {sorted(new[account])}, model {expected}"
            members, *_ = self._dump(account)
            self._leases(known, "streams", leases_of(members, "streams"))
            self._leases(known, "live", leases_of(members, "live"))
            watched = Counter(filter(None, (records.read(text).watched for text, _ in members)))
            counted.update(watched)
            counted.update(f"{what}\t@" for what in watched)
            self._deadline(known, self.world.deadlines(account).get(account))
            self._views(account, known, new[account])
        self._audience(counted)
        for account in self.touched:
            running = {item["session"]: item for item in self.world.sessions(account)}
            assert running.keys() == self.models[account].running()
            assert all(
                tuple(item["rules"]) == self.models[account].sessions[name].rules for name, item in running.items()
            )
        self.touched.clear()

    def _leases(self, known: model.Account, name: str, held: dict[str, int]) -> None:
        """Every session with a view holds exactly its rules, nobody else holds any, and no rule is overdrawn."""
        running = {id: s for id, s in known.sessions.items() if s.phase is model.Phase.RUNNING and name in s.rules}
        assert held == {id: s.expires for id, s in running.items()}
        live = sum(at > self.world.now for at in held.values())
        limit = next((r.limit for r in self.terms.rules if r.name == name), live)
        assert live <= limit or self.plan_changed, f"{live} leases under {name}, limit {limit}"

    def _audience(self, counted: Counter[str]) -> None:
        """The partitions' counts, and the changes nobody has claimed, are what the records add up to; only who has been paused
        for long is not counted."""
        places = sorted({partition_of(account, PARTITIONS) for account in ACCOUNTS})
        keys, client = self.world.keys, self.world.client

        async def read() -> tuple[Counter[str], Counter[str]]:
            now: Counter[str] = Counter()
            changes: Counter[str] = Counter()
            pipe = client.pipeline(transaction=False)
            for partition in places:
                pipe.zrange(keys.audience(partition), 0, -1, withscores=True)
                pipe.hgetall(keys.deltas(partition))
            found = await pipe.execute()
            for members, deltas in zip(found[::2], found[1::2], strict=True):
                now.update({what.decode(): int(score) for what, score in members})
                changes.update({what.decode(): int(more) for what, more in deltas.items()})
            return now, changes

        now, changes = self.world.run(read())
        assert now == counted, f"counted {now}, recounted {counted}"
        assert {what: n for what, n in changes.items() if n} == now
        watching = sum(
            s.phase is model.Phase.RUNNING and (s.paused_at is None or self.world.now < s.paused_at + model.PAUSED_KEEP)
            for known in self.models.values() for s in known.sessions.values()
        )  # fmt: skip
        assert sum(n for what, n in now.items() if not what.endswith("\t@")) >= watching

    def _deadline(self, known: model.Account, deadline: float | None) -> None:
        """The sweep looks at every account that has a record, in time."""
        due = min((s.due for s in known.sessions.values()), default=None)
        assert due is None or (deadline is not None and deadline <= due), f"deadline {deadline}, due {due}"

    def _views(self, account: str, known: model.Account, new: list[model.Event]) -> None:
        """Each view starts once, ends once, or once more for each time it was reopened."""
        for kind, session, view, _, reason, _ in new:
            key = account, session, view
            if kind == "view_start":
                assert self.views.get(key) != "open", f"{key} starts twice"
                self.views[key] = "open"
            elif kind == "session_linked":
                origin = [k for k, v in self.views.items() if k[:2] == (account, reason) and v == "open"]
                assert len(origin) == 1, (reason, origin)
                self.views[origin[0]] = "moved"
                self.views[key] = "open"
            elif kind == "view_reopen":
                assert self.views.get(key) == "ended"
                self.views[key] = "open"
            elif kind == "view_end":
                assert reason
                assert self.views.get(key) == "open", f"{key} ends, was {self.views.get(key)}"
                self.views[key] = "ended"
        open_now = {k[1:] for k, v in self.views.items() if v == "open" and k[0] == account}
        assert open_now == {(s.id, s.view) for s in known.sessions.values() if s.phase is model.Phase.RUNNING}

    # one request to both

    def _beat(self, account: str, session: str, content: str, state: str, move: str, seq: int) -> None:
        device, kind = DEVICES[session], CONTENTS[content]
        position: float | None = None
        if kind == "vod":
            last = self.positions.get((account, session), 0.0)
            clock = (self.world.now - START) / 1000
            position = {"clock": clock, "still": last, "back": max(0.0, last - 30), "ahead": last + 600}[move]
            self.positions[account, session] = position
        # A player that does not know the length yet says nothing of it: nor can its beat complete anything.
        fields: dict[str, Any] = {"duration": LENGTH} if seq % 8 else {}
        if fields and content == "show":
            fields["credits"] = CREDITS
        completes = bool(fields) and position is not None and position >= COMPLETED_FROM[content]
        before = self._dump(account)
        answer = self.world.beat(
            session,
            device,
            content,
            account=account,
            plan=self.plan,
            kind=kind,
            position=position,
            state=state,
            seq=seq,
            **fields,
        )
        expected = self.model(account).heartbeat(
            session, device, content, kind, self.terms, seq, state, None if position is None else int(position * 1000) / 1000, self.stretch,
            completes,
        )  # fmt: skip
        self._same(answer, expected)
        if expected.duplicate:
            assert self._dump(account) == before, "a duplicate changed something"
        self.seqs[account, session] = max(seq, self.seqs.get((account, session), -1)) if seq else 0

    def _signal(self, account: str, device: str, content: str, evidence: str, age: float, named: str) -> None:
        kind = CONTENTS.get(content, "")
        at = None if not age else self.world.now - int(age * 1000)
        answer = self.world.signal(
            device, content, evidence, account=account, plan=self.plan, kind=kind, at=at, session=named
        )
        born = "~" + blake2b(f"{device}\t{content}".encode(), digest_size=12).hexdigest()
        expected = self.model(account).signal(device, content, kind, self.terms, evidence, born, at, named)
        if expected.allowed and expected.expires is None:
            expected.last_seq = answer[
                "last_seq"
            ]  # without a lease it means nothing: several sessions may have left it
        self._same(answer, expected)

    def _same(self, answer: dict[str, Any], expected: model.Answer) -> None:
        conflicts = frozenset(item["session"] for item in answer["conflicts"])
        got = model.Answer(
            answer["decision"], answer["reason"], answer["rule"], answer["limit"], answer["by"], answer["lease_expires_at"],
            answer["retry_at"], conflicts, answer["duplicate"], answer["last_seq"],
        )  # fmt: skip
        expected.leaving = []
        if expected.reason == "takeover_limited":
            got.retry_at = None
        self._absorb()
        assert got == expected, f"\nengine {got}\nmodel  {expected}"

    # looking

    def _absorb(self) -> None:
        """Reads what the engine has appended, and tells the models which overdue views it ended on the way."""
        key = self.world.keys.outbox(partition_of(ACCOUNTS[0], PARTITIONS))
        start = "-" if self.seen_id == b"-" else b"(" + self.seen_id
        for entry, fields in self.world.run(self.world.client.xrange(key, min=start)):
            self.seen_id = entry
            event = json.loads(fields[b"e"])
            self._began(event)
            if event["type"] in LIFE_CYCLE:
                data = event["data"] or {}  # fakeredis writes an empty table as a list
                reason = data.get("from") or ("" if event["type"] in ("evict", "takeover") else data.get("reason", ""))
                completed = bool(data.get("completed"))
                self.pending[event["account"]].append(
                    (event["type"], event["session"], event["view"], event["revision"], reason, completed)
                )
                if event["type"] == "view_end" and reason in ("timeout", "paused_timeout"):
                    self.models[event["account"]].lapse(event["session"])

    def _began(self, event: dict[str, Any]) -> None:
        """Every event says when its view began, and all of one view say the same."""
        key, at = (event["account"], event["session"], event["view"]), event["started_at"]
        if event["type"] in ("view_start", "session_linked"):
            self.began[key] = at
        assert at == (self.began[key] if event["view"] else 0), event

    def _dump(self, account: str) -> Any:
        keys, client = self.world.keys.account(account), self.world.client

        async def read() -> Any:
            pipe = client.pipeline(transaction=False)
            pipe.zrange(keys.leases, 0, -1, withscores=True)
            pipe.get(keys.takeovers)
            pipe.xlen(keys.outbox)
            return await pipe.execute()

        return self.world.run(read())


MANY = os.environ.get("HYPOTHESIS_PROFILE") == "many"


def budget(examples: int, steps: int = 30) -> settings:
    """A failure is reported as it was found: shrinking takes minutes, so it is left to the profile `many`."""
    phases = tuple(Phase) if MANY else (Phase.explicit, Phase.generate)
    return settings(
        max_examples=examples * (40 if MANY else 1), stateful_step_count=steps, derandomize=not MANY, database=None,
        deadline=None, suppress_health_check=list(HealthCheck), print_blob=MANY, phases=phases,
    )  # fmt: skip


def test_engine_agrees_with_model_on_fakeredis() -> None:
    run_state_machine_as_test(Engine, settings=budget(30))


def test_engine_agrees_with_model_on_one_node(single: Server) -> None:
    run_state_machine_as_test(_on(str(single.url)), settings=budget(200))


def test_engine_agrees_with_model_on_a_cluster(cluster: list[Server]) -> None:
    run_state_machine_as_test(_on(str(cluster[0].url)), settings=budget(30))


def _on(url: str) -> type[Engine]:
    return type("Engine", (Engine,), {"backend": url})
