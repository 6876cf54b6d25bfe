"""Structured logs: one JSON object a line, with a request id and never a token (query strings are not logged)."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import orjson

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}
_requests = logging.getLogger("pulsegate.requests")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        said: dict[str, Any] = {
            "at": int(time.time() * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        said.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD})
        if record.exc_info:
            said["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(said, default=str).decode()


def configure(level: str) -> None:
    """All loggers to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # Theirs name URLs and headers, which may hold passwords.
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel("WARNING")


def log_failure(route: str, status: int, request_id: str, answer: bytes) -> None:
    """A refused or failed request. Client errors are many and expected: debug; ours are errors."""
    level = logging.ERROR if status >= 500 else logging.DEBUG
    if _requests.isEnabledFor(level):
        _requests.log(
            level,
            "request",
            extra={"route": route, "status": status, "request_id": request_id, "answer": answer.decode()},
        )


def log_answer(route: str, method: str, status: int, request_id: str, seconds: float) -> None:
    if _requests.isEnabledFor(logging.DEBUG):
        ms = round(seconds * 1000, 2)
        _requests.debug(
            "request", extra={"route": route, "method": method, "status": status, "request_id": request_id, "ms": ms}
        )
