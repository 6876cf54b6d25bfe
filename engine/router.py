"""Finds the node for a script call: the only one, or on a cluster the owner of the keys' slot.

The slot map comes from redis-py (`CLUSTER SLOTS`); `MOVED` and `ASK` are followed, and a `MOVED` also asks for a
new map. What a node says about its own state (`CLUSTERDOWN`, `LOADING`, `READONLY`, `OOM`, …) becomes
`Unavailable`, so that the caller fails open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import parse_url
from redis.crc import key_slot

from engine.errors import PulsegateError, Unavailable
from engine.marks import Marks
from engine.multiplex import Address, Connection
from engine.scripts import Arg, Receiver, Script

log = logging.getLogger(__name__)

REDIRECTS_MAX = 5
_STATE_ERRORS = (
    "CLUSTERDOWN",
    "LOADING",
    "READONLY",
    "OOM",
    "MASTERDOWN",
    "MISCONF",
    "BUSY",
    "NOREPLICAS",
    "TRYAGAIN",
    "NOAUTH",
)

Client = Redis | RedisCluster


async def connect(url: str, **options: Any) -> Client:
    """A redis-py client for the URL: `RedisCluster` if the server says it is one. Raises redis-py's errors."""
    single: Redis = Redis.from_url(url, **options)
    info = await single.info("cluster")
    if not info.get("cluster_enabled"):
        return single
    await single.aclose()
    cluster: RedisCluster = RedisCluster.from_url(url, **options)
    await cluster.initialize()
    return cluster


class Router:
    """Multiplexed connections to every primary; `Executor` of the hot path."""

    def __init__(self, url: str, client: Client, marks: Marks, *, timeout_ms: int, silent_ms: int, retry_ms: int) -> None:
        self._marks = marks
        self._meeting: asyncio.Task[None] | None = None
        self._times = {"timeout_ms": timeout_ms, "silent_ms": silent_ms, "retry_ms": retry_ms}
        self._timeout = timeout_ms / 1000
        self._client = client
        parsed = parse_url(url)
        self._base = Address(
            host=parsed.get("host", "localhost"),
            port=int(parsed.get("port", 6379)),
            path=parsed.get("path", ""),
            username=parsed.get("username") or "",
            password=parsed.get("password") or "",
            db=int(parsed.get("db") or 0),
            ssl=url.startswith("rediss://"),
        )
        self._nodes: dict[tuple[str, int], Connection] = {}
        self._slots: dict[str, Connection] = {}
        self._only: Connection | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the first connections and waits for them up to one timeout; they go on trying by themselves."""
        if isinstance(self._client, RedisCluster):
            opening = [self._node(node.host, int(node.port)).open() for node in self._client.get_primaries()]
        else:
            self._only = self._connection(self._base)
            opening = [self._only.open()]
        await asyncio.wait(opening, timeout=max(self._timeout, 1.0))

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refreshing
        for connection in self.connections():
            await connection.close()

    def connections(self) -> list[Connection]:
        return [self._only] if self._only is not None else list(self._nodes.values())

    def away_ms(self) -> int:
        """How long the node that has been away longest could not be asked; 0 if all are settled."""
        now = asyncio.get_running_loop().time()
        since = [c.down_since for c in self.connections() if c.down_since is not None]
        return int((now - min(since)) * 1000) if since else 0

    async def settle(self) -> None:
        """The outage is known to all: decisions go on, on new runs of a server with ids above what the log has."""
        if not self.ready:
            await self._meet()
        for connection in self.connections():
            connection.settle()

    async def _meet(self) -> None:
        if self._meeting is None or self._meeting.done():
            self._meeting = asyncio.get_running_loop().create_task(self._marks.raise_outboxes(self))
        await asyncio.shield(self._meeting)

    @property
    def ready(self) -> bool:
        """Whether every node answers and no outage is left to announce."""
        return all(connection.up and connection.settled for connection in self.connections())

    def _connection(self, address: Address) -> Connection:
        return Connection(address, **self._times)

    def _node(self, host: str, port: int) -> Connection:
        found = self._nodes.get((host, port))
        if found is None:
            base = self._base
            address = Address(host, port, "", base.username, base.password, 0, base.ssl)
            found = self._nodes[(host, port)] = self._connection(address)
            found.open()
        return found

    def _owner(self, key: str) -> Connection:
        tag = key[key.find("{") + 1 : key.find("}")]
        found = self._slots.get(tag)
        if found is None:
            assert isinstance(self._client, RedisCluster)
            node: ClusterNode | None = self._client.nodes_manager.get_node_from_slot(key_slot(key.encode()))
            if node is None:
                raise Unavailable(f"no node serves {tag}")
            found = self._slots[tag] = self._node(node.host, int(node.port))
        return found

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, unsettled: bool = False) -> Any:
        """Runs a script where its keys live. Raises Unavailable, or PulsegateError for an error of the script's own.

        `unsettled` goes ahead on a connection whose outage has not been announced: for the announcement itself.
        """
        only = self._only
        if only is not None:
            if not (only.settled or unsettled):
                raise Unavailable("session Redis is away")
            reply = await only.call("EVALSHA", script.sha, len(keys), *keys, *args)
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
                reply = await only.run(script, keys, args)
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            raise _error(script, reply)
        try:
            return await self._run_on_cluster(script, keys, args, unsettled)
        except Unavailable:
            self._refresh()
            raise

    def submit(self, script: Script, keys: Sequence[str], args: Sequence[Arg], receiver: Receiver) -> bool:
        """See `Executor`. Raises Unavailable where a cluster has nobody for the keys."""
        connection = self._only if self._only is not None else self._owner(keys[0])
        return connection.settled and connection.submit(receiver, "EVALSHA", script.sha, len(keys), *keys, *args)

    async def _run_on_cluster(self, script: Script, keys: Sequence[str], args: Sequence[Arg], unsettled: bool) -> Any:
        connection, asking = self._owner(keys[0]), False
        for _ in range(REDIRECTS_MAX):
            if not (connection.settled or unsettled):
                raise Unavailable("a session Redis node is away")
            if asking:
                connection.call("ASKING")
            reply = await connection.run(script, keys, args)
            if not isinstance(reply, hiredis.ReplyError):
                return reply
            word, _, rest = str(reply).partition(" ")
            if word not in ("MOVED", "ASK"):
                raise _error(script, reply)
            host, _, port = rest.split(" ")[1].rpartition(":")
            connection = self._node(host or connection.address.host, int(port))
            await asyncio.wait([connection.open()], timeout=self._timeout)
            if not (connection.settled or unsettled):
                await self._meet()
                connection.settle()
            asking = word == "ASK"
            if word == "MOVED":
                tag = keys[0][keys[0].find("{") + 1 : keys[0].find("}")]
                self._slots[tag] = connection
                self._refresh()
        raise Unavailable("the cluster keeps redirecting")

    def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        assert isinstance(self._client, RedisCluster)
        try:
            await self._client.nodes_manager.initialize()
        except Exception as error:
            log.warning("cluster_map", extra={"why": str(error)})
            await asyncio.sleep(self._timeout)
            return
        self._slots.clear()
        primaries = {(node.host, int(node.port)) for node in self._client.get_primaries()}
        for place in self._nodes.keys() - primaries:
            await self._nodes.pop(place).close()


def _error(script: Script, reply: hiredis.ReplyError) -> PulsegateError:
    text = str(reply)
    if text.split(" ", 1)[0] in _STATE_ERRORS:
        return Unavailable(f"session Redis: {text}")
    return PulsegateError(f"{script.name}.lua: {text}", code="script")


class ClientExecutor:
    """Runs scripts through a redis-py client: for workers, commands and tests, where a call may cost 50 µs."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def away_ms(self) -> int:
        return 0

    async def settle(self) -> None:
        pass

    def submit(self, script: Script, keys: Sequence[str], args: Sequence[Arg], receiver: Receiver) -> bool:
        return False

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, unsettled: bool = False) -> Any:
        script.check(len(keys), len(args))
        return await self._client.register_script(script.source)(keys=list(keys), args=list(args))
