"""Strategies whose coefficients follow from the steps alone: each returns an `Operator`."""

from ._annealed import Decay, annealed
from ._average import average
from ._linear_trend import linear_trend
from ._persistence import persistence

__all__ = ["Decay", "annealed", "average", "linear_trend", "persistence"]
