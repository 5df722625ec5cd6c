"""How far the next jump goes: what the movement of a run says of where it leads.

A jump goes on along the history's line for a multiple of the history, times the cosine between the
movements of its two halves (less the cosine's standard error), times the share of the highest
learning rate so far that is left, times the share of the run that is left. None is made where that
cosine is below a bound, and none moves the weights by more than a share of their norm. What a
verdict finds harmful or behind makes later jumps shorter, and ends them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._live.tensors import Vector
from ._verdict import BETTER, HARM, WORSE, Verdict

REACH = 2.0  # histories ahead, where the halves move alike
LEAST_COSINE = 0.5  # below, what moves a run is not drift enough
LARGEST = 0.03  # the longest move, as a share of the norm of the weights
SHORTEST = 0.125  # of the first reach; jumps shorter than that are not worth their cost
MOST_HARMS = 2  # jumps taken back, after which there are no more


@dataclass(frozen=True, slots=True)
class Movement:
    """How a run moved over a history, in its first half (a) and in its second (b).

    Attributes
    ----------
    length : int
        The steps of the history.
    sums : (n, 2, 2) array
        ``a a, a b, b a, b b`` of each tensor.
    norms : (n,) array
        The sum of squares of each tensor; 0 where it says nothing of how far a move goes, as of
        LoRA's factors, which are small beside what they add to.
    """

    length: int
    sums: Vector
    norms: Vector

    @property
    def cosine(self) -> float:
        """Of a and b over all tensors; 0 where one of them did not move."""
        return _cosine(self.sums.sum(axis=0))

    @property
    def by_tensor(self) -> Vector:
        """The cosine of each tensor."""
        return np.array([_cosine(sums) for sums in self.sums])

    @property
    def error(self) -> float:
        """The standard error of the cosine by the jackknife over tensors; 0 where there is one."""
        n = len(self.sums)
        rest = self.sums.sum(axis=0) - self.sums
        left = np.array([_cosine(sums) for sums in rest])
        return math.sqrt((n - 1) * float(left.var())) if n > 1 else 0.0

    @property
    def speed(self) -> float:
        """The length of the whole move per step, as a share of the norm of the weights."""
        size = float(self.norms.sum())
        moved = float(self.sums[self.norms > 0].sum())
        return math.sqrt(max(moved, 0.0) / size) / self.length if size else 0.0


def _cosine(sums: Vector) -> float:
    norm = math.sqrt(float(sums[0, 0]) * float(sums[1, 1]))
    return float(np.clip(sums[0, 1] / norm, -1, 1)) if norm > 0 else 0.0


class Rule:
    """The horizon of the next jump, and whether there is to be one.

    Parameters
    ----------
    horizon : float or None
        That of every jump, in steps; None goes by the movement of the run.
    longest : float
        What the forecaster can reach.
    start, stop : int and int or None
        The steps between which the run jumps.

    Attributes
    ----------
    stopped : str
        Why there are no more jumps; empty while there are.
    """

    def __init__(self, horizon: float | None, longest: float, start: int, stop: int | None) -> None:
        self.fixed, self.longest = horizon, longest
        self.start, self.stop = start, stop
        self.share = 1.0  # of the reach, that verdicts leave
        self.harms = 0
        self.stopped = ""
        self._highest: list[float] = []

    def watch(self, rates: list[float]) -> None:
        """Take in the learning rates of the parameter groups."""
        if len(self._highest) != len(rates):
            self._highest = list(rates)
        self._highest = [max(pair) for pair in zip(self._highest, rates, strict=True)]

    def horizon(
        self, step: int, rates: list[float], movement: Movement | None
    ) -> tuple[float, str]:
        """Steps ahead, and why none where that is 0."""
        if self.fixed is not None or movement is None:
            return min(self.fixed or 0.0, self.longest) * self.share, ""
        cosine = movement.cosine - movement.error
        if not cosine >= LEAST_COSINE:
            return 0.0, (
                f"the run does not drift: the movements of the halves of {movement.length} steps "
                f"have the cosine {movement.cosine:.2f} (standard error {movement.error:.2f}), "
                f"expected {LEAST_COSINE} at least"
            )
        ahead = REACH * movement.length * cosine * self.share * self._of_rate(rates)
        if self.stop is not None:
            ahead *= max(0.0, self.stop - step) / (self.stop - self.start)
        if movement.speed > 0:
            ahead = min(ahead, LARGEST / movement.speed)
        ahead = min(ahead, self.longest)
        return (
            (ahead, "")
            if ahead >= 1
            else (0.0, "what is left of the run or its rate is too little")
        )

    def _of_rate(self, rates: list[float]) -> float:
        shares = [now / top for now, top in zip(rates, self._highest, strict=True) if top > 0]
        return min(1.0, sum(shares) / len(shares)) if shares else 1.0

    def learn(self, verdict: Verdict) -> None:
        """Take in the verdict on a jump."""
        if verdict.kind == HARM:
            self.blame()
        elif verdict.kind == WORSE and self.fixed is None:
            self.share /= 2
        elif verdict.kind == BETTER and self.fixed is None:
            self.share = min(1.0, 2 * self.share)
        if not self.stopped and self.share < SHORTEST:
            self.stopped = "jumps, and shorter ones after them, were behind the run without them"

    def blame(self) -> None:
        """A jump was taken back."""
        self.harms += 1
        if self.fixed is None:
            self.share /= 4
        if self.harms >= MOST_HARMS:
            self.stopped = f"{self.harms} jumps had to be taken back"

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        return {
            "share": self.share,
            "harms": self.harms,
            "stopped": self.stopped,
            "highest": list(self._highest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.share, self.harms = state["share"], state["harms"]
        self.stopped, self._highest = state["stopped"], list(state["highest"])


def rates_of(optimizer: Any) -> list[float]:
    """The learning rates of the parameter groups; those that have none count as 1."""
    found = [group.get("lr") for group in optimizer.param_groups]
    return [1.0 if rate is None else float(rate) for rate in found]
