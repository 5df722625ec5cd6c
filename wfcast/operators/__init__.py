"""Strategies that make an `Operator` without a fit: from the steps, or from the states of a run."""

from ._annealed import Decay, annealed
from ._average import average
from ._extrapolate import extrapolate
from ._linear_trend import linear_trend
from ._low_rank import low_rank
from ._persistence import persistence

__all__ = ["Decay", "annealed", "average", "extrapolate", "linear_trend", "low_rank", "persistence"]
