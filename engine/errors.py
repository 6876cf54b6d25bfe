"""Every error Pulsegate raises on purpose.

PulsegateError
├── BadRequest          400  the caller's input is wrong; names the field
│   └── TooLarge        413  a body over its limit, refused before parsing
├── Unauthorized        401  no token, or one that does not verify
├── Forbidden           403  a good token that does not reach this far
├── NotFound            404
├── Conflict            409  the request fits no state we know
├── Gone                410  never again: the sender should fall silent
├── TooCostly           422  a question that needs more time or memory than one may
├── Overloaded          429  try again after `retry_after_s`
│   └── AccountBusy     429  the account has as many calls under way as it may
├── Unavailable         503  session Redis is away and the call cannot fail open
├── ConfigError         a setting or plan is wrong; names the variable or the table
├── LayoutMismatch      this deployment was created with another layout
└── (BadLine, Refused, IngestError, Unreadable: `engine/cdnlog/errors.py`; they never leave that package)

`code` is stable and meant for programs, `message` for people, `field` for forms. `api/http.py` holds the
one table that maps the tree to HTTP.
"""

from __future__ import annotations


class PulsegateError(Exception):
    """Base of the tree. `code` is stable; `message` may change between releases."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        if code is not None:
            self.code = code


class BadRequest(PulsegateError):
    code = "invalid"


class TooLarge(BadRequest):
    code = "too_large"


class Unauthorized(PulsegateError):
    code = "unauthorized"


class Forbidden(PulsegateError):
    code = "forbidden"


class NotFound(PulsegateError):
    code = "not_found"


class Conflict(PulsegateError):
    code = "conflict"


class Gone(PulsegateError):
    code = "gone"


class TooCostly(PulsegateError):
    code = "too_costly"


class Overloaded(PulsegateError):
    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: int = 1, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class AccountBusy(Overloaded):
    code = "account_busy"


class Unavailable(PulsegateError):
    code = "unavailable"
    retry_after_s = 1


class ConfigError(PulsegateError):
    code = "config"


class LayoutMismatch(ConfigError):
    code = "layout"
