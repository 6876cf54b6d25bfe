"""Errors of the log reader. None leaves the package: `command.run` makes them counts and exit codes.

PulsegateError
├── BadLine             a line that names no signal: kept aside with its reason
├── Refused             the server will never take these signals
└── IngestError         it cannot go on: signals cannot be delivered, or a file cannot be written
    └── Unreadable      the log cannot be read (any further); what was read is still delivered
"""

from __future__ import annotations

from engine.errors import PulsegateError


class BadLine(PulsegateError):
    """`code` is the reason it is counted under, `message` the detail."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, code=reason)


class Refused(PulsegateError):
    """`index` is the signal the server names, None if it names none."""

    def __init__(self, message: str, index: int | None = None) -> None:
        super().__init__(message)
        self.index = index


class IngestError(PulsegateError):
    code = "ingest"


class Unreadable(IngestError):
    pass
