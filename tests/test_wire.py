"""Heartbeats of known fields are read in one pass (engine/wire.py); the others in several. One must not accept what the other refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import BadRequest
from engine.wire import Heartbeat, decode_heartbeat

BEAT = b'{"session":"s","device":"d","content":"film","kind":"vod","position":5.5,"state":"playing","seq":7%b}'
_TEXT = st.text(st.sampled_from('ab\\"\x01\x7f é/u0'), max_size=6)
_SCALARS = st.one_of(
    st.sampled_from(["true", "false", "null", "{}", "[]", "[1]", '{"a":1}', "nul", "", "NaN", "Infinity", "-", "+1", "01", "1.", "0x1"]),
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(repr),
    st.integers(1, 400).map(lambda digits: "9" * digits),
    st.integers(-400, 400).map(lambda exponent: f"1e{exponent}"),
    _TEXT.map(lambda text: f'"{text}"'),
)  # fmt: skip
_QUALITY = st.lists(st.tuples(_TEXT, _SCALARS), max_size=3).map(
    lambda pairs: "{" + ",".join(f'"{name}":{value}' for name, value in pairs) + "}"
)
_FIELDS = st.lists(
    st.tuples(st.sampled_from(["quality", "of_our_own", "title", "rate", "duration", "credits", "provider", "profile"]), _SCALARS | _QUALITY),
    max_size=3,
)  # fmt: skip


@given(_FIELDS)
@example([("quality", '{"bitrate":4200000}')])
@example([("quality", '{"a":' + "9" * 400 + "}")])
@example([("quality", '{"a":1e999}')])
@example([("quality", '{"a":{"b":[]}}')])
@example([("quality", '"none"')])
@example([("quality", "null")])
@example([("quality", '{"a":1}'), ("quality", '{"a":1e999}')])
@example([("title", '"\x01"')])
def test_one_pass_and_several_are_one_contract(fields: list[tuple[str, str]]) -> None:
    more = "".join(f',"{name}":{value}' for name, value in fields).encode("utf-8", "surrogatepass")
    # Nested, so that it is never read in one pass.
    assert _read(BEAT % more) == _read(BEAT % (more + b',"nested":[[]]'))


def test_fields_of_the_players_own_are_known_from_then_on() -> None:
    for place in range(100):
        assert decode_heartbeat(BEAT % b',"own-%d":"x"' % place).seq == 7
    assert _read(BEAT % b',"own-1":"x","own-99":{"a":1},"title":"t"')[1]["title"] == "t"
    assert _read(BEAT % b',"own-1":1e999') == _read(BEAT % b',"own-99":1e999') == ("refused", "body")


@pytest.mark.parametrize(
    "quality", [b'{"a":1e999}', b'{"a":NaN}', b'{"a":' + b"9" * 400 + b"}", b'{"a":"\x01"}', b'{"a":01}']
)
def test_what_no_reader_of_the_log_could_read_is_refused(quality: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_heartbeat(BEAT % (b',"quality":' + quality))


def _read(body: bytes) -> tuple[str, Any]:
    """("read", the fields that decide), or ("refused", the field that is named)."""
    try:
        beat = decode_heartbeat(body)
    except BadRequest as error:
        return "refused", error.field
    names = [name for name in Heartbeat.__struct_fields__ if name != "quality"]
    return "read", {name: getattr(beat, name) for name in names}
