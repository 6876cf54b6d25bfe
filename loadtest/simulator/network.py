"""What becomes of a request on its way: lost, late, delivered twice, or its answer lost."""

from __future__ import annotations

import random
from dataclasses import dataclass

SOON_MS, LATE_MS = (200, 3_000), (3_000, 15_000)
REPEAT_MS = 2_000


@dataclass(frozen=True, slots=True)
class Fate:
    """`repeat_ms`: delivered once more so much later, 0: not. Late requests arrive behind what was sent after them: shuffled."""

    lost: bool = False
    answer_lost: bool = False
    delay_ms: int = 0
    repeat_ms: int = 0


FINE = Fate()


@dataclass(frozen=True, slots=True)
class Link:
    """A household's way to the server: probabilities, each by itself."""

    loss: float
    answer_loss: float
    late: float
    repeat: float

    def fate(self, rng: random.Random) -> Fate:
        """One draw for nearly every request."""
        draw = rng.random()
        if draw >= self.loss + self.answer_loss + self.late + self.repeat:
            return FINE
        if draw < self.loss:
            return Fate(lost=True)
        draw -= self.loss
        if draw < self.answer_loss:
            return Fate(answer_lost=True)
        if draw - self.answer_loss < self.late:
            return Fate(delay_ms=rng.randrange(*(SOON_MS if rng.random() < 0.7 else LATE_MS)))
        return Fate(repeat_ms=rng.randrange(1, REPEAT_MS))


LINKS = (
    (0.70, Link(0.001, 0.001, 0.002, 0.001)),
    (0.22, Link(0.010, 0.010, 0.010, 0.005)),
    (0.08, Link(0.040, 0.040, 0.040, 0.020)),
)
"""(share of the households, link)."""


def link(rng: random.Random) -> Link:
    draw = rng.random()
    for share, each in LINKS:
        if draw < share:
            return each
        draw -= share
    return LINKS[0][1]
