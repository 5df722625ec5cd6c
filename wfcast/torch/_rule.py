"""How far the next jump goes: what the movement of a run says of where it leads.

Drift is the cosine between the movements of a history's two halves, less its standard error and
less what the optimizer's momentum alone gives, over what that leaves. A jump goes on along the
history's line for a multiple of the history, in proportion to the drift up to some bound, times the
share of the highest learning rate so far that is left, times the share of the run that is left.
None is made where the drift is below a bound, which is higher for weights that have left where they
began, as in training from scratch, and none goes further than what moves the weights by a share of
their norm. What a verdict finds harmful or behind makes later jumps shorter, and ends them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._live.tensors import Vector
from ._verdict import BETTER, HARM, WORSE, Verdict

REACH = 4.0  # histories ahead, times the drift,
FARTHEST = 2.5  # but not more
LEAST_NEAR, LEAST_FAR = 0.2, 0.65  # drift below which there is no jump,
NEAR = 0.2  # of weights that have come so far, as a share of their norm, and of all others
MEMORIES = 6  # of the optimizer: drift is the mean over histories that are so long together
LARGEST = 0.03  # the longest move at the history's mean speed, as a share of the norm
SHORTEST = 0.125  # of the first reach; jumps shorter than that are not worth their cost
MOST_MOMENTUM = 0.999
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
        The sum of squares of each tensor; 0 where it says nothing of how far a move goes, as where
        LoRA trains factors that are small beside the frozen weights that they add to.
    momentum : float
        Of the optimizer: by what factor an update carries on the one before it.
    begin : int
        The clock at which the history begins.
    """

    length: int
    sums: Vector
    norms: Vector
    momentum: float = 0.0
    begin: int = 0

    @property
    def end(self) -> int:
        """The clock at which it ends."""
        return self.begin + self.length

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
    def carried(self) -> float:
        """The cosine that momentum alone gives to a random walk, see `carried_on`."""
        return carried_on(self.momentum, max(1, self.length // 2))

    @property
    def drift(self) -> float:
        """1 where all that moves the run leads on, 0 for a random walk, with momentum or without.

        ``(cosine - error - carried) / (1 - carried)``.
        """
        return (self.cosine - self.error - self.carried) / (1 - self.carried)

    @property
    def speed(self) -> float:
        """The length of the whole move per step, as a share of the norm of the weights."""
        size = float(self.norms.sum())
        moved = float(self.sums[self.norms > 0].sum())
        return math.sqrt(max(moved, 0.0) / size) / self.length if size else 0.0


def _cosine(sums: Vector) -> float:
    squares = float(sums[0, 0]) * float(sums[1, 1])  # of what did not move, 0 but for rounding
    norm = math.sqrt(max(squares, 0.0))
    return float(np.clip(sums[0, 1] / norm, -1, 1)) if norm > 0 else 0.0


def carried_on(momentum: float, half: int) -> float:
    """The cosine between the movements of two halves that follow each other, by momentum alone.

    Where gradients are independent and an update carries the last one on by the factor b, updates k
    steps apart correlate by ``b**k``. So the sums of n of them and of the n after those have the
    covariance ``b (1 - b**n)**2 / (1 - b)**2``, each the variance
    ``(n (1 - b**2) - 2 b (1 - b**n)) / (1 - b)**2``, and the cosine is their quotient.
    """
    b = min(momentum, MOST_MOMENTUM)
    if b <= 0:
        return 0.0
    rest = 1 - b**half
    return b * rest**2 / (half * (1 - b**2) - 2 * b * rest)


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
        self._past: list[tuple[int, float]] = []  # length, drift of histories that led to jumps
        # How far the weights have come, as a share of their norm, up to which clock; and by the
        # last jump. Steps that no history saw, as those before `start`, count by the next's speed.
        self._way, self._counted, self._leap = 0.0, 0, 0.0

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
        drift = self.drift(movement)
        least = LEAST_NEAR if self._come(movement) <= NEAR else LEAST_FAR
        if not drift >= least:
            return 0.0, self._too_little(movement, drift, least)
        reach = min(REACH * drift, FARTHEST)
        ahead = reach * movement.length * self.share * self._of_rate(rates)
        if self.stop is not None:
            ahead *= max(0.0, self.stop - step) / (self.stop - self.start)
        if movement.speed > 0:
            ahead = min(ahead, LARGEST / movement.speed)
        ahead = min(ahead, self.longest)
        if ahead < 1:
            return 0.0, "what is left of the run or its rate is too little"
        return ahead, ""

    def jumped(self, movement: Movement | None, ahead: float) -> None:
        """Take in that a jump of so many steps was made, after such a history."""
        if movement is not None:
            self._past = self._recent(movement)
            self._leap = movement.speed * ahead
            self._way = self._come(movement) + self._leap
            self._counted = movement.end

    def taken_back(self) -> None:
        """The weights are where they were before the last jump, whatever it did."""
        self._way -= self._leap
        self._leap = 0.0

    def drift(self, movement: Movement) -> float:
        """Of this history, and of those before it where it is short: their mean by lengths.

        Single short histories scatter widely.
        """
        recent = self._recent(movement)
        return sum(n * drift for n, drift in recent) / sum(n for n, _ in recent)

    def _recent(self, movement: Movement) -> list[tuple[int, float]]:
        """Lengths and drifts of the last histories, so many as are long enough together."""
        enough = MEMORIES / (1 - min(movement.momentum, MOST_MOMENTUM))
        found = [(movement.length, movement.drift)]
        for past in reversed(self._past):
            if sum(n for n, _ in found) >= enough:
                break
            found.insert(0, past)
        return found

    def _come(self, movement: Movement) -> float:
        """How far the weights have come by the end of a history, as a share of their norm."""
        return self._way + movement.speed * (movement.end - self._counted)

    def _too_little(self, movement: Movement, drift: float, least: float) -> str:
        """Why there is no jump where the drift is below the least."""
        steps = sum(n for n, _ in self._recent(movement))
        mean = "" if steps == movement.length else f" in the mean over the last {steps} steps"
        come = f"as the weights have come {self._come(movement):.0%} of their norm"
        far = "" if least == LEAST_NEAR else f", {come}"
        return (
            f"the run does not drift enough: {drift:.3f}{mean}, expected at least {least}{far}; "
            f"two halves of {movement.length // 2} steps have the cosine c = {movement.cosine:.3f} "
            f"with the error e = {movement.error:.3f}, momentum alone gives m = "
            f"{movement.carried:.3f}, and drift is (c - e - m) / (1 - m)"
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
            "past": list(self._past),
            "way": [self._way, self._counted, self._leap],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.share, self.harms = state["share"], state["harms"]
        self.stopped, self._highest = state["stopped"], list(state["highest"])
        self._past = [(int(length), float(drift)) for length, drift in state["past"]]
        self._way, self._counted, self._leap = state["way"]


def rates_of(optimizer: Any) -> list[float]:
    """The learning rates of the parameter groups; those that have none count as 1."""
    found = [group.get("lr") for group in optimizer.param_groups]
    return [1.0 if rate is None else float(rate) for rate in found]


def momentum_of(optimizer: Any) -> float:
    """By what factor an update carries on the last one: the greatest of the parameter groups'."""
    found = [0.0]
    for group in optimizer.param_groups:
        betas = group.get("betas") or (group.get("momentum") or group.get("beta1") or 0.0,)
        found.append(float(betas[0]))
    return max(found)
