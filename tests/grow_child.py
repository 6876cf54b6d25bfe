"""Runs SQL on chDB: `python -m tests.grow_child STATE FOLDER ASKED ANSWERED`, in a process of its own because chDB is a whole ClickHouse, with its own
threads and signal handlers, of which a process can have one.

STATE is ClickHouse's folder: what was made stays there for the next process. FOLDER is where relative paths begin. ASKED is a file of JSON,
`[[[statement, …], {parameter: value}], …]`; ANSWERED gets the rows of each one's last statement, or `{"error": text}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from chdb import session


def main(state: str, folder: str, asked: str, answered: str) -> None:
    questions = json.loads(Path(asked).read_text())
    os.chdir(folder)
    with session.Session(state) as clickhouse:
        found = [_answer(clickhouse, statements, params) for statements, params in questions]
    Path(answered).write_text(json.dumps(found))


def _answer(clickhouse: Any, statements: list[str], params: dict[str, Any]) -> Any:
    try:
        for statement in statements:
            # chDB refuses parameters that a statement does not name.
            named = {name: value for name, value in params.items() if f"{{{name}:" in statement}
            said = clickhouse.query(statement, "JSONCompactEachRow", params=named or None)
        return [json.loads(line) for line in bytes(said.bytes() or b"").splitlines()]
    except RuntimeError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main(*sys.argv[1:])
