"""What the child process answers about viewing behaviour (engine/quality/behaviour.py)."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.quality import behaviour
from engine.quality.behaviour import Asked


def figures(database: Any, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: an `Asked`."""
    asked = msgspec.convert(args, Asked)
    found = database.rows(*behaviour.figures(asked))
    return {
        "from": asked.start,
        "to": asked.end,
        "items": behaviour.rows(asked, [list(row) for row in found]),
        "next": None,
    }


def curve(database: Any, args: dict[str, Any]) -> dict[str, Any]:
    """`args`: an `Asked`."""
    asked = msgspec.convert(args, Asked)
    ((*row,),) = database.rows(*behaviour.curve(asked))
    return {"from": asked.start, "to": asked.end, "views": row[0], "items": behaviour.points(row), "next": None}
