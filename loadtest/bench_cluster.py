"""A cluster of three Valkey servers, with what a benchmark reads of one server added up over the three."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from loadtest.bench_rig import BenchError, Place, Valkey, free_port, valkey

NODES, SLOTS = 3, 16_384
_WHOLE_S = 30.0


class Cluster:
    """Three primaries that share the slots, without replicas."""

    def __init__(self, nodes: list[Valkey]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        """The first node's: clients find the others by themselves."""
        return self.nodes[0].url

    def empty_outboxes(self) -> int:
        """Empties them on all nodes; returns how many events they held."""
        return sum(node.empty_outboxes() for node in self.nodes)

    def reset(self) -> None:
        for node in self.nodes:
            node.reset()

    def settled(self) -> dict[str, tuple[int, float]]:
        """Command → (calls, µs per call) of all nodes together, once none has calls under way."""
        found: dict[str, tuple[int, float]] = {}
        for node in self.nodes:
            for name, (calls, micros) in node.settled().items():
                before, average = found.get(name, (0, 0.0))
                total = before + calls
                found[name] = (total, (before * average + calls * micros) / total)
        return found

    def cpu_s(self) -> float | None:
        return sum(node.process.cpu_s() or 0.0 for node in self.nodes)


@contextmanager
def cluster(place: Place, core: int | None, options: dict[str, str]) -> Iterator[Cluster]:
    """Three servers of their own, all on `core`; whole when this returns. Raises BenchError."""
    with ExitStack() as stack:
        nodes: list[Valkey] = []
        buses = [free_port() for _ in range(NODES)]
        for bus in buses:
            own = options | {"cluster-enabled": "yes", "cluster-node-timeout": "5000", "cluster-port": str(bus)}
            nodes.append(stack.enter_context(valkey(place, core, own)))
        bounds = [SLOTS * n // NODES for n in range(NODES + 1)]
        for number, node in enumerate(nodes):
            command = node.client.execute_command
            command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other, bus in zip(nodes[:number], buses, strict=False):
                command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        deadline = time.monotonic() + _WHOLE_S
        while not all(_whole(node) for node in nodes):
            if time.monotonic() > deadline:
                raise BenchError(f"the cluster was not whole after {_WHOLE_S:g} s")
            time.sleep(0.05)
        yield Cluster(nodes)


def _whole(node: Valkey) -> bool:
    said = node.client.execute_command("CLUSTER", "INFO")
    if isinstance(said, bytes | str):
        text = said.decode() if isinstance(said, bytes) else said
        said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return bool(said["cluster_state"] == "ok" and int(said["cluster_known_nodes"]) == NODES)
