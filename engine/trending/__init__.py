"""Trending: which contents have more viewers than expected (`Detector`), and which are watched most (`popular`)."""

from engine.trending.detector import Detector
from engine.trending.items import Distinct, Item
from engine.trending.params import Params
from engine.trending.popular import popular

__all__ = ["Detector", "Distinct", "Item", "Params", "popular"]
