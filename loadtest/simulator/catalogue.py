"""What there is to watch: live channels and titles, popular by Zipf's law, and what is said of them to `POST /v1/contents`."""

from __future__ import annotations

import itertools
import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CHANNELS, FILMS, SERIES, EPISODES, SHORTS = 12, 16, 8, 6, 3
EXPONENT = 0.7
PROVIDERS = ("north", "south", "east")


@dataclass(frozen=True, slots=True)
class Content:
    """`runtime` in seconds, 0 for live."""

    id: str
    kind: str
    title: str
    runtime: float = 0.0
    provider: str = PROVIDERS[0]
    series: str = ""
    episode: int = 0

    @property
    def live(self) -> bool:
        return self.kind == "live"

    def said(self) -> dict[str, Any]:
        """As `POST /v1/contents` wants it."""
        what: dict[str, Any] = {"content": self.id, "kind": self.kind, "title": self.title, "provider": self.provider}
        return what if self.live else what | {"runtime": self.runtime}


class Catalogue:
    """The same for the same seed. `planted` are contents that nobody picks by chance: those of the surges."""

    def __init__(self, seed: int, planted: Sequence[Content] = ()) -> None:
        rng = random.Random(f"{seed}:catalogue")
        self.channels = [
            Content(f"channel-{n}", "live", f"Channel {n}", provider=PROVIDERS[n % 3]) for n in range(1, CHANNELS + 1)
        ]
        films = [
            Content(f"film-{n}", "vod", f"Film {n}", float(rng.randrange(4_800, 8_400)), PROVIDERS[n % 3])
            for n in range(1, FILMS + 1)
        ]
        shorts = [
            Content(f"short-{n}", "vod", f"Short {n}", float(rng.choice((200, 400, 900)))) for n in range(1, SHORTS + 1)
        ]
        self._episodes = {
            f"series-{n}": [
                Content(f"series-{n}-{e}", "vod", f"Series {n}, episode {e}", float(runtime), PROVIDERS[n % 3], f"series-{n}", e)
                for e in range(1, EPISODES + 1)
            ]
            for n, runtime in ((n, rng.choice((1_300, 1_500, 2_640, 3_000))) for n in range(1, SERIES + 1))
        }  # fmt: skip
        titles: list[Content | str] = [*films, *shorts, *self._episodes]
        rng.shuffle(titles)
        self._titles = titles
        self._live_weights = _zipf(len(self.channels))
        self._title_weights = _zipf(len(titles))
        self.all = [*self.channels, *films, *shorts, *itertools.chain(*self._episodes.values()), *planted]

        self._by_id = {content.id: content for content in self.all}

    def get(self, name: str) -> Content:
        return self._by_id[name]

    def channel(self, rng: random.Random) -> Content:
        return self.channels[_draw(rng, self._live_weights)]

    def title(self, rng: random.Random) -> Content:
        """A film, a short, or some episode of a series."""
        found = self._titles[_draw(rng, self._title_weights)]
        if isinstance(found, Content):
            return found
        return self._episodes[found][min(rng.randrange(EPISODES), rng.randrange(EPISODES))]

    def following(self, content: Content) -> Content | None:
        """The next episode."""
        if not content.series or content.episode >= EPISODES:
            return None
        return self._episodes[content.series][content.episode]


def _zipf(size: int) -> list[float]:
    return list(itertools.accumulate(1 / rank**EXPONENT for rank in range(1, size + 1)))


def _draw(rng: random.Random, cumulated: list[float]) -> int:
    return min(bisect(cumulated, rng.random() * cumulated[-1]), len(cumulated) - 1)
