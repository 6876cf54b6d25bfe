"""A `World`: the real decision engine and scripts over one backend, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fakeredis
import msgspec
from redis import Redis

from engine import records, scripts
from engine.decisions import Decisions
from engine.embedded import VOLATILE, Server, free_port
from engine.keys import Keys
from engine.marks import Marks
from engine.metrics import Metrics
from engine.outages import Announcer, Outage
from engine.partitions import partition_of
from engine.plans import PlanFile, Plans, parse
from engine.router import ClientExecutor, Router, connect
from engine.settings import Settings
from engine.spool import Spool
from engine.tokens import Claims
from engine.wire import Signal, Stop, Takeover, decode_events, decode_heartbeat

START = 1_800_000_000_000
PARTITIONS = 16
TICK_MS = 250
SLOTS = 16_384

PLANS = """
default = "two"
[plans.two]
[[plans.two.rules]]
name = "streams"
limit = 2
[plans.oldest]
at_limit = "stop_oldest"
[[plans.oldest.rules]]
name = "streams"
limit = 1
[plans.latest]
at_limit = "stop_latest"
[[plans.latest.rules]]
name = "streams"
limit = 2
[plans.by_stream]
[[plans.by_stream.rules]]
name = "streams"
limit = 1
unit = "stream"
[plans.live_one]
[[plans.live_one.rules]]
name = "streams"
limit = 3
[[plans.live_one.rules]]
name = "live"
limit = 1
kind = "live"
[plans.evidence]
at_limit = "stop_oldest"
require_evidence = true
[[plans.evidence.rules]]
name = "streams"
limit = 1
"""


def start_cluster(directory: Path) -> list[Server]:
    """Three primaries that share the slots; returns when the cluster is whole."""
    servers = []
    for number in range(3):
        # The cluster bus listens on port + 10,000, which must be a port too.
        port = next(p for p in iter(free_port, 0) if p + 10_000 < 65_536)
        options = VOLATILE | {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
        servers.append(Server(directory / str(number), options, port))
        servers[-1].start()
    clients = [Redis(port=server.port, decode_responses=True) for server in servers]
    bounds = [SLOTS * n // 3 for n in range(4)]
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for other in servers[:number]:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port)

    async def whole() -> None:
        while any(_state(client) != ("ok", "3") for client in clients):
            await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(whole(), 30))
    for client in clients:
        client.close()
    return servers


def _state(client: Any) -> tuple[str, str]:
    info = client.execute_command("CLUSTER", "INFO")
    if isinstance(info, str):
        info = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return str(info["cluster_state"]), str(info["cluster_known_nodes"])


class FixedPlans(PlanFile):
    """Plans from text instead of a file."""

    def __init__(self, plans: Plans) -> None:
        self.current = plans
        self.error = ""


class World:
    """Calls return decisions as the API would give them. Times are ms; `self.now` moves only by `wait`."""

    def __init__(self, backend: str, prefix: str, plans: str = PLANS, **settings: Any) -> None:
        self.settings = Settings(prefix=prefix, partitions=PARTITIONS, **settings)
        self.keys = Keys(prefix, PARTITIONS)
        self.now = START
        self.outage = Outage()
        self.metrics = Metrics()
        self._backend = backend
        self._plans = parse(plans)
        self._runner = asyncio.Runner()
        self._seqs: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        self._runner.run(self._open())
        return self

    async def _open(self) -> None:
        self.router: Router | None = None
        self.client: Any
        if self._backend == "fake":
            self.client = fakeredis.FakeAsyncRedis(version=(7, 2))
            self.executor: Any = ClientExecutor(self.client)
        else:
            self.client = await connect(self._backend)
            self.executor = self.router = Router(
                self._backend, self.client, Marks(None, self.keys), timeout_ms=5000, silent_ms=5000, retry_ms=50
            )
            await self.router.open()
            await self.router.settle()
        plans = FixedPlans(self._plans)
        spool = Spool(None, 0, self.metrics.spooled)
        self.decisions = Decisions(
            self.executor, self.keys, self.settings, plans, self.metrics, self.outage, spool, lambda: self.now
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def close() -> None:
            await self.decisions.close()
            if self.router is not None:
                await self.router.close()
            await self.client.aclose()

        self._runner.run(close())
        self._runner.close()

    def run(self, coroutine: Any) -> Any:
        """The coroutine's result. A degraded decision would be an allow for the wrong reason."""
        result = self._runner.run(coroutine)
        assert not (isinstance(result, dict) and result.get("degraded")), result
        return result

    def wait(self, seconds: float) -> None:
        """Time passes; nothing else happens."""
        self.now += int(seconds * 1000)

    # players

    def beat(
        self, session: str = "s1", device: str = "d1", content: str = "film", *, account: str = "a", plan: str = "", limit: int | None = None,
        kind: str = "vod", position: float | None = None, state: str = "playing", seq: int | None = None, at: int | str = "",
        claims: dict[str, Any] | None = None, **fields: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """One heartbeat. `seq` counts up by itself; `position` follows the clock unless given."""
        if seq is None:
            seq = self._seqs.get((account, session), -1) + 1
        self._seqs[account, session] = max(seq, self._seqs.get((account, session), -1))
        if position is None and kind == "vod":
            position = (self.now - START) / 1000
        said = {
            "session": session,
            "device": device,
            "content": content,
            "kind": kind,
            "state": state,
            "seq": seq,
            **fields,
        }
        if position is not None:
            said["position"] = position
        body = json.dumps(said).encode()
        beat = decode_heartbeat(body)
        events = decode_events(beat.events) if beat.events else []
        who = Claims(account=account, plan=plan, max_streams=limit, **(claims or {}))
        return dict(self.run(self.decisions.heartbeat(who, beat, body, events, at)))

    def play(self, seconds: float, *streams: tuple[str, str], every: float = 10, **fields: Any) -> list[dict[str, Any]]:
        """Each (session, device) beats every `every` seconds for a while; the last round's decisions."""
        last: list[dict[str, Any]] = []
        for _ in range(int(seconds / every)):
            self.wait(every)
            last = [self.beat(session, device, **fields) for session, device in streams]
        return last

    def check(
        self,
        session: str = "",
        device: str = "d1",
        content: str = "film",
        kind: str = "vod",
        *,
        account: str = "a",
        plan: str = "",
        limit: int | None = None,
    ) -> dict[str, Any]:
        who = Claims(account=account, plan=plan, max_streams=limit)
        return dict(self.run(self.decisions.check(who, session, device, content, kind, {})))

    def stop(self, session: str = "s1", *, account: str = "a", seq: int | None = None, request_id: str = "") -> bool:
        return bool(
            self.run(self.decisions.stop(Claims(account=account), session, Stop(seq=seq, request_id=request_id)))
        )

    def takeover(
        self, session: str, stop: str, *, account: str = "a", plan: str = "", limit: int | None = None, **fields: Any
    ) -> dict[str, Any]:
        who = Claims(account=account, plan=plan, max_streams=limit)
        return dict(self.run(self.decisions.takeover(who, session, Takeover(stop=stop, **fields))))

    # the backend

    def signal(
        self, device: str = "d1", content: str = "film", evidence: str = "segment", *, account: str = "a", plan: str = "",
        limit: int | None = None, kind: str = "vod", at: int | None = None, session: str = "", **fields: Any,
    ) -> dict[str, Any]:  # fmt: skip
        signal = Signal(
            account=account, device=device, evidence=evidence, content=content, kind=kind, at=at, session=session, plan=plan,  # type: ignore[arg-type]
            max_streams=limit, **fields,
        )  # fmt: skip
        return dict(self.run(self.decisions.signal(signal, msgspec.json.encode(signal))))

    def sweep(self) -> int:
        """One round of the sweep over all partitions; the number of views it ended."""

        async def go() -> int:
            script, ended = scripts.load("sweep"), 0
            for partition in range(PARTITIONS):
                args = [self.now, 500, self.settings.tuning(self.outage.began, self.outage.ended)]
                reply = await self.executor.run(
                    script, [self.keys.deadlines(partition), self.keys.outbox(partition)], args
                )
                ended += reply[0]
            return ended

        return int(self.run(go()))

    def announcer(self) -> Announcer:
        """An API process; its `announce` moves this world's outage."""
        return Announcer(
            self.executor,
            self.keys,
            self.settings,
            self.outage,
            now=lambda: self.now,
            monotonic=lambda: self.now / 1000,
        )

    # looking

    def sessions(self, account: str = "a") -> list[dict[str, Any]]:
        return list(self.run(self.decisions.sessions(account)))

    def running(self, account: str = "a") -> set[str]:
        return {item["session"] for item in self.sessions(account)}

    def events(self, account: str = "a", *types: str) -> list[dict[str, Any]]:
        """The account's events so far, oldest first."""

        async def read() -> list[dict[str, Any]]:
            key = self.keys.outbox(partition_of(account, PARTITIONS))
            entries = await self.client.xrange(key)
            return [json.loads(fields[b"e"]) for _, fields in entries]

        found = [event for event in self.run(read()) if event["account"] == account]
        return [event for event in found if not types or event["type"] in types]

    def deadlines(self, account: str = "") -> dict[str, int]:
        """When the sweep will look at each account (of one account's partition), at the latest."""

        async def read() -> dict[str, int]:
            out: dict[str, int] = {}
            for partition in [partition_of(account, PARTITIONS)] if account else range(PARTITIONS):
                ticks = await self.client.zrange(self.keys.deadlines(partition), 0, -1)
                for tick in sorted(int(t) for t in ticks):
                    for member in await self.client.smembers(self.keys.due(partition, tick)):
                        out.setdefault(member.decode(), tick * TICK_MS)
            return out

        return dict(self.run(read()))

    def leases(self, rule: str = "streams", account: str = "a") -> dict[str, int]:
        """Session → when its lease under the rule expires."""

        async def read() -> dict[str, int]:
            return leases_of(await self.client.zrange(self.keys.account(account).leases, 0, -1, withscores=True), rule)

        return dict(self.run(read()))


def leases_of(members: list[tuple[bytes, float]], rule: str) -> dict[str, int]:
    """The same, of an account's set as Redis returns it (lua/lib/record.lua)."""
    found = [(records.read(text), int(score)) for text, score in members]
    return {r.session: score for r, score in found if r.status == records.RUNNING and rule in r.rules}
