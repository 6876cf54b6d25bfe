"""Whether each Redis takes what background work writes, for `pulsegate status`: what cannot write cannot say so there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from engine.clients import Clients
from engine.errors import PulsegateError
from engine.settings import Settings
from engine.watch import memory_share

_TIMEOUT_S = 5.0


def states(settings: Settings) -> dict[str, dict[str, Any]]:
    """`state` ('up', or why not) and `memory` (a share, None if it cannot be asked) of the session and the log Redis."""
    try:
        clients = Clients.of(settings, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    except (RedisError, PulsegateError, OSError) as error:
        return {"session": {"state": str(error), "memory": None}}
    try:
        # A key in every node's slots.
        proofs = [clients.keys.proof(partition) for partition in range(settings.partitions if clients.clustered else 1)]
        found = {"session": _state(clients.session, proofs)}
        if clients.log is not clients.session:
            found["log"] = _state(clients.log, [clients.keys.proof(0)])
        return found
    finally:
        clients.close()


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """For people."""
    lines = []
    for name, said in found.items():
        memory = "" if said["memory"] is None else f", {said['memory']:.0%} of its memory"
        lines.append(f"{name} Redis: {said['state']}{memory}")
    return "\n".join(lines)


def _state(client: Redis | RedisCluster, keys: Iterable[str]) -> dict[str, Any]:
    state, memory = "up", None
    try:
        for key in keys:
            client.set(key, "1", px=60_000)
    except (RedisError, OSError) as error:
        state = str(error)
    try:
        infos: list[Any]
        if isinstance(client, RedisCluster):
            infos = list(client.info("memory", target_nodes=RedisCluster.PRIMARIES).values())
        else:
            infos = [client.info("memory")]
        memory = round(max(map(memory_share, infos)), 3)
    except (RedisError, OSError):
        pass
    return {"state": state, "memory": memory}
