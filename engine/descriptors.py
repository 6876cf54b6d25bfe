"""File descriptors: as many as the system lets a process have, and how many of them may be viewers' connections."""

from __future__ import annotations

import contextlib
import resource

_RESERVED = 256
"""For everything that is no viewer's connection: Redis, files, logs, child processes, and connections on their way out."""


def raise_limit() -> None:
    """Raises this process's soft limit to the hard one; its children inherit that."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems name a hard limit and refuse it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_at_most(wanted: int) -> int:
    """How many connections this process can hold, `wanted` at most."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(soft - _RESERVED, soft * 3 // 4, 1))
