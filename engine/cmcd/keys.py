"""The keys of CMCD and their types (CTA-5004-B, table 1; CTA-5004 where it differs).

`fitted` gives a known key's value in one shape whatever the player's encoder made of it, or None if it is of another type. Unknown
keys pass as they are: custom ones (`com.example-seat`) become labels, those of a later standard wait for us to learn them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from engine.names import own_session
from engine.wire import MS_LEAST

Item: TypeAlias = bool | int | float | str
Value: TypeAlias = Item | list[Item]
"""What a key may hold; parameters are dropped."""

SID_MAX = 64
CID_MAX = 128
_WHOLE_MAX = 10**14


def _flag(value: Value) -> Value | None:
    return value if isinstance(value, bool) else None


def _number(value: Value) -> Value | None:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    return one if _counts(one) else None


def _signed(value: Value) -> Value | None:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    return one if isinstance(one, int | float) and not isinstance(one, bool) else None


def _whole(value: Value) -> Value | None:
    number = _number(value)
    if not isinstance(number, int | float) or number != int(number) or number >= _WHOLE_MAX:
        return None
    return int(number)


def _numbers(value: Value) -> Value | None:
    """A list; version 1 has a bare number. Items of other types go, the others stay."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if _counts(item)] or None


def _text(value: Value) -> Value | None:
    one = value[0] if isinstance(value, list) and len(value) == 1 else value
    return one if isinstance(one, str) and one else None


def _texts(value: Value) -> Value | None:
    """A list of strings. Error codes come bare, and as numbers, too."""
    items = value if isinstance(value, list) else [value]
    return [str(item) for item in items if not isinstance(item, bool) and item != ""] or None


def _ms(value: Value) -> Value | None:
    """A time; seconds are none."""
    at = _whole(value)
    return at if isinstance(at, int) and (at == 0 or at >= MS_LEAST) else None


def _session(value: Value) -> Value | None:
    text = _at_most(SID_MAX)(value)
    return text if isinstance(text, str) and not own_session(text) else None


def _at_most(length: int) -> Callable[[Value], Value | None]:
    def fit(value: Value) -> Value | None:
        text = _text(value)
        return text if isinstance(text, str) and len(text) <= length else None

    return fit


def _counts(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


_NAMES: dict[Callable[[Value], Value | None], str] = {
    _flag: "bg bs nr su",
    _number: "d dfa df dl msd pr pt rc rtp ttfb ttfbb ttlb",
    # Behind live by two clocks that may differ.
    _signed: "ltc",
    _whole: "sn v",
    _ms: "ts",
    _numbers: "ab bl br bsa bsd bsda lab lb mtp pb tab tb tbl tpb",
    _text: "cdn cen cmsdd cmsds cs e h nrr ot sf smrt st sta url",
    _texts: "ec nor",
    _session: "sid",
    _at_most(CID_MAX): "cid",
}
_FITS = {name: fit for fit, names in _NAMES.items() for name in names.split()}


def known(key: str) -> bool:
    return key in _FITS


def fitted(key: str, value: Value) -> Value | None:
    """The value in the shape of its key; None if it is ill-typed. Unknown keys' values are returned as they are."""
    fit = _FITS.get(key)
    return value if fit is None else fit(value)
