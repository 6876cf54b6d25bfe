"""The names that Pulsegate makes itself, or gives a meaning of its own: the one table of what nobody else may bring in.

| what    | name                     | made or meant by                                                                    |
|---------|--------------------------|-------------------------------------------------------------------------------------|
| session | begins with `~`          | `backend_session`: the session of evidence that no player speaks for                |
| session | `oldest`                 | a takeover's `stop`: whichever stream has run longest                               |
| device  | begins with `token:`     | `token_device`: where nothing names a device, one token is one device               |
| rule    | a block's reason         | `lua/lib/view.lua` remembers a block by its rule, or its reason if there is no rule |
| rule    | `account`                | the bound on an account's streams that holds whatever its plan says                 |
| rule    | `streams` with selectors | `max_streams` of a token makes a rule of this name without any                      |

A name that brings something into being is refused if it stands here: in a body, a query, a path, a token's claim, the plan
file. A name that only points to something (the path of a stop, a takeover's `stop`, a filter) may be any name there is. What a
viewer writes beside a media request (CMCD) is ignored instead, so that nobody's segment is refused for it.
"""

from __future__ import annotations

from hashlib import blake2b, sha256

from engine.errors import BadRequest

SESSION_MARK = "~"
OLDEST = "oldest"
DEVICE_MARK = "token:"
ACCOUNT_RULE = "account"
STREAMS_RULE = "streams"
BLOCK_REASONS = ("limit_reached", "evicted", "takeover", "displaced", "superseded", "takeover_limited")
RULES = frozenset([*BLOCK_REASONS, ACCOUNT_RULE])

SESSION_FIRST = SESSION_MARK + OLDEST[0]
"""No name of ours begins with any other character: what a heartbeat is asked before anything else."""
_DEVICE_LENGTH = len(DEVICE_MARK)
_TOKEN_DIGITS = 16


def backend_session(device: str, content: str) -> str:
    """The session that evidence starts where it belongs to none: the same for one device and content."""
    return SESSION_MARK + blake2b(f"{device}\t{content}".encode(), digest_size=12).hexdigest()


def token_device(token: str) -> str:
    """The device of a stream that nothing but its token tells apart."""
    return DEVICE_MARK + sha256(token.encode(errors="surrogatepass")).hexdigest()[:_TOKEN_DIGITS]


def own_session(session: str) -> bool:
    return session.startswith(SESSION_MARK) or session == OLDEST


def own_device(device: str) -> bool:
    return device[:_DEVICE_LENGTH] == DEVICE_MARK


def made_device(device: str) -> bool:
    """Whether `token_device` can have made it; `pulsegate ingest-log` sends such devices to `/v1/signals`."""
    digits = device[_DEVICE_LENGTH:]
    return own_device(device) and len(digits) == _TOKEN_DIGITS and set(digits) <= set("0123456789abcdef")


def check_session(session: str, field: str = "session") -> None:
    """Raises BadRequest for a session's name that is Pulsegate's own; '' passes."""
    if own_session(session):
        message = f"{field}: names that begin with {SESSION_MARK}, and {OLDEST}, are Pulsegate's own"
        raise BadRequest(message, code="reserved", field=field)


def check_device(device: str, field: str = "device") -> None:
    """Raises BadRequest for a device's name that is Pulsegate's own; '' passes."""
    if own_device(device):
        raise BadRequest(
            f"{field}: names that begin with {DEVICE_MARK} are Pulsegate's own", code="reserved", field=field
        )


def check_signal_device(device: str, field: str = "device") -> None:
    """The same for evidence from the backend, which may come with a device that was made of a token."""
    if own_device(device) and not made_device(device):
        check_device(device, field)
