"""Coefficients of a jump: from a fitted operator, from a ready-made one, or from the run itself.

Each source says which states a jump needs, as distances before it, and gives for any horizon one
coefficient per state and an intercept, by tensor. ``out = sum_k a_k w_k + b``, the last state is
the weights before the jump.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._errors import WfcastError
from .._live.tensors import Slot, Vector
from .._operator import Learner, Operator, operator_of
from .._parameters import ALL
from ._line import Line


class Source(ABC):
    """Where the coefficients come from.

    Attributes
    ----------
    offsets : tuple of int
        The steps of the states before the jump, falling to 0.
    longest : float
        The largest horizon.
    """

    offsets: tuple[int, ...]
    longest: float = float("inf")

    @abstractmethod
    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        """a and b of a tensor."""


class Fitted(Source):
    """An operator: between its targets the forecast is a straight line in time.

    The time before the first target leads from the last input, so any horizon up to the last target
    has a forecast.
    """

    def __init__(self, operator: Operator, names: Sequence[str]) -> None:
        self._operator = operator
        last = operator.inputs[-1]
        self.offsets = tuple(last - s for s in operator.inputs)
        self._ahead = [0, *(t - last for t in operator.targets)]
        if self._ahead[1] <= 0:
            raise WfcastError(
                f"the forecaster's targets {operator.targets} must lie after its last input "
                f"{last}: it has nowhere to jump to"
            )
        self.longest = float(self._ahead[-1])
        if ALL not in operator.coef:
            missing = [n for n in names if n not in operator.coef]
            if missing:
                extra = sorted(operator.coef.keys() - set(names))
                raise WfcastError(
                    f"the forecaster has no coefficients for {len(missing)} of the model's "
                    f"{len(names)} parameters, {missing[0]!r} first"
                    + (f"; it has {extra[0]!r}, which the model lacks" if extra else "")
                    + ": fit it to this model, or pass include or exclude"
                )

    def check(self, slots: Sequence[Slot]) -> None:
        """Raise WfcastError where shapes differ from those of the fit."""
        for slot in slots:
            known = self._operator.tensors.get(slot.name)
            if known is not None and tuple(known[0]) != tuple(slot.parameter.shape):
                raise WfcastError(
                    f"parameter {slot.name!r} is {list(slot.parameter.shape)} in the model, "
                    f"{list(known[0])} in the forecaster"
                )

    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        ahead, further = self._operator.coefficients(name)
        now = np.zeros((1, len(self.offsets)))
        now[0, -1] = 1
        coef = np.vstack([now, ahead])
        intercept = np.append(0.0, further)
        a = np.array([np.interp(horizon, self._ahead, column) for column in coef.T])
        return a, float(np.interp(horizon, self._ahead, intercept))


class ReadyMade(Source):
    """A function of (inputs, targets) such as `wfcast.linear_trend`."""

    def __init__(
        self, make: Callable[..., Any], spacing: int, n_states: int, names: Sequence[str]
    ) -> None:
        self._make, self._names = make, names
        self.offsets = tuple(spacing * k for k in range(n_states - 1, -1, -1))
        Fitted(self._at(spacing), names)  # a function that does something else is found now

    def _at(self, horizon: int) -> Operator:
        steps = [self.offsets[0] - o for o in self.offsets]
        made = self._make(steps, [steps[-1] + horizon])
        if not isinstance(made, Operator | Learner):
            raise WfcastError(
                f"the forecaster returned a {type(made).__name__}, expected an Operator as "
                "wfcast.linear_trend(inputs, targets) gives"
            )
        return operator_of(made, "what the forecaster returned")

    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        whole = max(1, int(np.ceil(horizon)))
        return Fitted(self._at(whole), self._names).coefficients(name, horizon)


class History(Source):
    """The line through all states since the last jump: its first state and the sums of a `Line`."""

    def __init__(self) -> None:
        self.offsets = (0,)
        self.line: Line | None = None  # that of the recording

    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        assert self.line is not None
        return np.append(self.line.coefficients(self.line.last + horizon), 0.0), 0.0


def source(forecaster: Any, spacing: int, n_states: int, slots: Sequence[Slot]) -> Source:
    """What `Farcasting(forecaster=...)` stands for.

    Raises
    ------
    WfcastError
        Something else, or an operator of another model.
    """
    names = [s.name for s in slots]
    if forecaster is None:
        return History()
    if isinstance(forecaster, Operator | Learner):
        fitted = Fitted(operator_of(forecaster, "forecaster"), names)
        fitted.check(slots)
        return fitted
    is_class = isinstance(forecaster, type)  # which is callable, but forecasts nothing
    if callable(forecaster) and not is_class:
        return ReadyMade(forecaster, spacing, n_states, names)
    found = f"the class {forecaster.__name__}" if is_class else f"a {type(forecaster).__name__}"
    raise WfcastError(
        f"forecaster is {found}, expected an Operator, a fitted ModelFarcaster, a function such "
        "as wfcast.linear_trend, or None"
    )
