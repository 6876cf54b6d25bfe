"""Lua scripts: loading, checking, and one typed way to call each.

A script's header is its contract. The loader reads it (`KEYS[n]`, `ARGV[n]`, `…` for a repeated tail), expands
`-- @include name…` from `lua/lib/`, and refuses a call with the wrong number of keys or arguments. `-- FLAGS allow-oom` says
that the server runs it at `maxmemory`, too: a decision stays real there, and what fills the memory is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, Protocol

Arg = str | bytes | int | float

_SLOT = re.compile(r"^-- (KEYS|ARGV)\[(\d+)(\.\.\.)?\]", re.MULTILINE)
_FLAGS = re.compile(r"^-- FLAGS ([a-z-]+)", re.MULTILINE)
_INCLUDE = re.compile(r"^-- @include ([a-z ]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """A script's text with its contract. `open_*` says that the last key or argument may repeat (or be left out).

    `source` is what the server is given: the text behind a line with the flags, if it has any.
    """

    name: str
    text: str
    flags: str
    source: str
    sha: str
    keys: int
    open_keys: bool
    args: int
    open_args: bool

    def check(self, keys: int, args: int) -> None:
        """Raises TypeError if a call does not fit the header."""
        for what, given, wanted, is_open in (
            ("keys", keys, self.keys, self.open_keys),
            ("arguments", args, self.args, self.open_args),
        ):
            if given != wanted and not (is_open and given >= wanted - 1):
                raise TypeError(f"{self.name}.lua takes {wanted}{' or more' if is_open else ''} {what}, not {given}")


def parse(name: str, text: str, library: dict[str, str]) -> Script:
    """Reads a script's header and expands its includes. Raises ValueError if the header has gaps."""
    counts: dict[str, int] = {"KEYS": 0, "ARGV": 0}
    opened: dict[str, bool] = {"KEYS": False, "ARGV": False}
    for kind, number, more in _SLOT.findall(text):
        if int(number) != counts[kind] + 1 or opened[kind]:
            raise ValueError(f"{name}.lua: {kind}[{number}] is out of order in the header")
        counts[kind] = int(number)
        opened[kind] = bool(more)
    flags = found[1] if (found := _FLAGS.search(text)) else ""
    text = _INCLUDE.sub(lambda m: "\n".join(library[part] for part in m[1].split()), text)
    source = f"#!lua flags={flags}\n{text}" if flags else text
    sha = sha1(source.encode(), usedforsecurity=False).hexdigest()
    return Script(name, text, flags, source, sha, counts["KEYS"], opened["KEYS"], counts["ARGV"], opened["ARGV"])


@cache
def load(name: str) -> Script:
    """The script `lua/<name>.lua`, with its includes."""
    root = files("lua")
    library = {f.name[:-4]: f.read_text(encoding="utf-8") for f in (root / "lib").iterdir() if f.name.endswith(".lua")}
    return parse(name, (root / f"{name}.lua").read_text(encoding="utf-8"), library)


class Receiver(Protocol):
    """What a reply is handed to: a future, or something cheaper. Its methods raise nothing."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


class Executor(Protocol):
    """Runs one script on the node that owns its keys. Raises Unavailable when no answer can be had in time."""

    async def run(
        self, script: Script, keys: Sequence[str], args: Sequence[Arg], *, unsettled: bool = False
    ) -> Any: ...

    def submit(self, script: Script, keys: Sequence[str], args: Sequence[Arg], receiver: Receiver) -> bool:
        """Sends now and hands the reply to `receiver`, whatever it is: an error of the server is a value. False where that cannot
        be done at once, for `run` to find out why."""

    def away_ms(self) -> int: ...

    async def settle(self) -> None: ...
