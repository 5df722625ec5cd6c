"""What a `Farcasting` is made with, checked, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from .._errors import WfcastError
from ._trust import TrustRegion

OPTIMIZER_STATES = ("keep", "reset", "scale")
HIGHEST = 20  # the longest horizon, in spacings: further than that a line is a guess
LOWEST = 0.25  # the shortest, in spacings
LEAST = {"spacing": 1, "n_states": 2, "period": 1, "recovery": 0, "start": 0, "patience": 1}
FIRST = 10  # no jump in the first such part of a run of known length


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Parameters of `Farcasting`, by their names there.

    Raises
    ------
    WfcastError
        One of them is of another kind or out of its range.
    """

    spacing: int
    n_states: int
    period: int
    horizon: float | str
    recovery: int
    optimizer_state: str
    start: int
    stop: int | None
    max_loss: float
    patience: int

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if not _is_integer(value) or value < least:
                raise WfcastError(f"{name} is {value!r}, expected an integer not below {least}")
        if self.stop is not None and (not _is_integer(self.stop) or self.stop < self.start):
            raise WfcastError(
                f"stop is {self.stop!r}, expected None or a step not before start={self.start}"
            )
        if not _is_number(self.max_loss) or not 0 <= self.max_loss < 1:
            raise WfcastError(f"max_loss is {self.max_loss!r}, expected a share from 0 to below 1")
        self._check_horizon()
        if self.optimizer_state not in OPTIMIZER_STATES:
            raise WfcastError(
                f"optimizer_state is {self.optimizer_state!r}, expected one of {OPTIMIZER_STATES}"
            )

    def _check_horizon(self) -> None:
        if self.adaptive:
            if self.recovery == 0:
                raise WfcastError(
                    "horizon='adaptive' needs a recovery window to judge jumps by: pass recovery "
                    "above 0, or a number as horizon"
                )
        elif not _is_number(self.horizon) or not 0 < float(self.horizon) < 1e9:
            raise WfcastError(
                f"horizon is {self.horizon!r}, expected 'adaptive' or a number of steps"
            )

    @property
    def adaptive(self) -> bool:
        """Whether verdicts change the horizon."""
        return isinstance(self.horizon, str) and self.horizon == "adaptive"

    @property
    def window(self) -> int:
        """The recovery window: no longer than what a run of known length may lose."""
        if self.stop is None or not self.recovery:
            return self.recovery
        return max(1, min(self.recovery, int(self.max_loss * self.stop)))

    @property
    def first_jump(self) -> int:
        """The first step at which there may be a jump."""
        length = (self.stop or self.start) - self.start
        return self.start + max(self.period, length // FIRST)

    def trust_region(self, longest: float) -> TrustRegion:
        """Where horizons begin and what bounds them; the forecaster's are at most `longest`."""
        adaptive = self.adaptive
        return TrustRegion(
            self.period if adaptive else float(self.horizon),
            LOWEST * self.spacing if adaptive else 0.0,
            min(longest, HIGHEST * self.spacing if adaptive else math.inf),
            adaptive=adaptive,
            window=self.window,
            stop=self.stop,
            max_loss=self.max_loss,
            patience=self.patience,
        )


def check_kinds(model: Any, optimizer: Any, **functions: Any) -> None:
    """Raise WfcastError for what is no model, no optimizer, or neither a function nor None."""
    if not isinstance(model, torch.nn.Module):
        raise WfcastError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if not hasattr(optimizer, "param_groups"):
        raise WfcastError(
            f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer"
        )
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise WfcastError(f"{name} is {function!r}, expected a function or None")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
