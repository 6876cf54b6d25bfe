"""Nothing lost, nothing twice, nothing ahead: the short form of `make chaos`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import DISASTERS, Chaos

SECONDS = 10
PLAYERS = 24


@pytest.mark.timeout(240)
@pytest.mark.parametrize("disaster", ["", *DISASTERS])
def test_everything_arrives_once(tmp_path: Path, disaster: str) -> None:
    Chaos(tmp_path, seed=len(disaster), players=PLAYERS, say=print, disaster=disaster).run(SECONDS)
