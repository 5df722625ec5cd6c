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
import torch

from .._errors import WfcastError
from .._live.distributed import add_up, together
from .._live.tensors import Slot, Vector, movements, share
from .._operator import Learner, Operator, operator_of
from .._parameters import ALL

Move = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]


class Source(ABC):
    """Where the coefficients come from.

    Attributes
    ----------
    offsets : tuple of int
        The steps of the states before the jump, falling to 0.
    longest : float
        The largest horizon.
    learns : int
        States that `learn` needs, one spacing apart.
    """

    offsets: tuple[int, ...]
    longest: float = float("inf")
    learns: int = 0

    @abstractmethod
    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        """a and b of a tensor."""

    def learn(self, slots: Sequence[Slot], moves: Sequence[Move]) -> None:
        """Take in the last ``learns - 1`` movements, each as its two states."""
        raise NotImplementedError  # only called where `learns` is above 0

    def state_dict(self) -> dict[str, Any]:
        """What was learned."""
        return {}

    def check_saved(self, state: dict[str, Any]) -> None:
        """Raise WfcastError where what was learned was learned by another kind of source."""
        if state:
            raise WfcastError(
                "the state was saved with forecaster=None, expected one saved with the forecaster "
                "of this Farcasting"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the state is one that `check_saved` lets pass."""
        assert not state


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


class Drift(Source):
    r"""Each tensor's line, its slope refitted to the run's own history by least squares.

    With the movements ``d_k = w_k - w_{k-1}`` between states one spacing s apart, the next movement
    is ``sum_k rho_k d_k``, where rho minimises the squared error over the movements seen so far,
    older ones weighing half as much each time. The forecast goes on at that slope,
    ``w + (h / s) sum_k rho_k d_k``. A tensor that drifts has rho near 1, one that jitters near 0 or
    below, which is taken as 0: it stays.
    """

    FORGET = 0.5

    def __init__(self, spacing: int, n_states: int, names: Sequence[str]) -> None:
        self._spacing, self._n, self._names = spacing, n_states, list(names)
        self.offsets = tuple(spacing * k for k in range(n_states - 1, -1, -1))
        self.learns = n_states + 1
        self._gram = np.zeros((len(self._names), n_states, n_states))
        self._slopes = self._fitted()

    def learn(self, slots: Sequence[Slot], moves: Sequence[Move]) -> None:
        with together():
            grams = movements(
                (f"parameter {slot.name!r}", [state[i] for move in moves for state in move])
                for i, slot in enumerate(slots)
            )
        shares = np.array([share(slot.parameter) for slot in slots])
        fresh = grams * shares[:, None, None]
        self._gram = self.FORGET * self._gram + add_up(fresh.ravel()).reshape(fresh.shape)
        self._slopes = self._fitted()

    def _fitted(self) -> dict[str, Vector]:
        """rho of each tensor, oldest movement first."""
        inner, cross = self._gram[:, :-1, :-1], self._gram[:, :-1, -1:]
        rho = (np.linalg.pinv(inner, rcond=1e-9, hermitian=True) @ cross)[..., 0]
        total = rho.sum(axis=1, keepdims=True)
        rho = np.where(total > 0, rho / np.maximum(total, 1.0), 0.0)  # no faster than it moved
        return dict(zip(self._names, rho, strict=True))

    def coefficients(self, name: str, horizon: float) -> tuple[Vector, float]:
        rho = self._slopes[name] * horizon / self._spacing
        a = np.zeros(self._n)
        a[-1] = 1
        a[1:] += rho
        a[:-1] -= rho
        return a, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"gram": torch.from_numpy(self._gram.copy())}

    def check_saved(self, state: dict[str, Any]) -> None:
        if "gram" not in state:
            raise WfcastError(
                "the state was saved with a forecaster, expected one saved with forecaster=None, "
                "as this Farcasting has"
            )
        shape = tuple(state["gram"].shape)
        if shape != self._gram.shape:
            raise WfcastError(
                f"the state was saved for {shape[0]} tensors and {shape[1]} states, expected "
                f"{self._gram.shape[0]} and {self._gram.shape[1]}"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._gram = state["gram"].numpy().copy()
        self._slopes = self._fitted()


def source(forecaster: Any, spacing: int, n_states: int, slots: Sequence[Slot]) -> Source:
    """What `Farcasting(forecaster=...)` stands for.

    Raises
    ------
    WfcastError
        Something else, or an operator of another model.
    """
    names = [s.name for s in slots]
    if forecaster is None:
        return Drift(spacing, n_states, names)
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
