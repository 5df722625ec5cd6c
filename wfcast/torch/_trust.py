"""Whether a jump paid: the loss it led to against the loss that the run was heading for.

Over a stretch, learning curves are close to power laws of the step. So the loss that a run is
heading for is read off the least-squares line of its last losses over log(step), itself in
logarithms where no loss is 0 or below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BETTER, EVEN, WORSE, HARM = "better", "even", "worse", "harm"
Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a jump compares with going on without it.

    Attributes
    ----------
    kind : {"better", "even", "worse", "harm"}
        Worse is behind by no more than noise and by less than half a window; harm is all beyond.
    expected, after : float
        The loss that the run was heading for at the end of the recovery window, and the one it has.
    noise : float
        The standard error of ``after - expected``, as far as the losses show it.
    steps_saved : float
        Steps that the run would have taken from one to the other; negative where it fell behind,
        by at most the window, which is what going back costs.
    """

    kind: str
    expected: float
    after: float
    noise: float
    steps_saved: float


def verdict_on(
    before: Sequence[Point], after: Sequence[Point], window: int, horizon: float
) -> Verdict:
    """Compare losses after a jump with the line through those before it.

    Parameters
    ----------
    before, after : sequences of (step, loss)
        Steps of the trajectory, at least two before. With more than a few the spread around the
        line says how much of a difference is noise.
    window : int
        The recovery window; the unit of progress is what the line gains in it.
    horizon : float
        The most steps that a jump can have saved.
    """
    t = np.log([step for step, _ in before])
    later = np.log([step for step, _ in after])
    losses = np.array([loss for _, loss in before])
    mean = float(np.mean([loss for _, loss in after]))
    powers = bool(losses.min() > 0) and not mean <= 0  # NaN stays NaN
    y, actual = (np.log(losses), math.log(mean)) if powers else (losses, mean)
    centred = t - t.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread if spread > 0 else 0.0
    reach = float(later.mean() - t.mean())
    expected = float(y.mean()) + slope * reach
    noise = 0.0
    if len(before) > 3:
        rest = y - y.mean() - slope * centred
        variance = float(rest @ rest) / (len(before) - 2)
        noise = math.sqrt(variance * (1 / len(before) + reach**2 / spread + 1 / len(after)))
    end = after[-1][0]
    progress = -slope * math.log(end / max(end - window, 1))  # what one window brings
    unit = max(abs(progress), noise, 1e-4 * (1.0 if powers else abs(expected)), 1e-300)
    gain = expected - actual
    saved = window * gain / progress if progress > 0 else 0.0
    if not math.isfinite(saved):
        saved = -float(window)
    saved = max(-float(window), min(saved, horizon))
    if not gain >= 0:
        kind = WORSE if gain >= -noise and saved > -window / 2 else HARM
    else:
        kind = BETTER if gain > max(0.1 * unit, noise) else EVEN
    if powers:
        expected, noise = math.exp(expected), noise * mean
    return Verdict(kind, expected, mean, noise, saved)


def blew_up(before: Sequence[Point], loss: float) -> bool:
    """Whether the loss is gone, or worse by far than any before the jump."""
    worst = max(then for _, then in before)
    least = min(then for _, then in before)
    return not loss <= worst + 4 * (worst - least) + abs(worst)  # NaN is not below either


class TrustRegion:
    """The horizon of the next jump, and whether there is to be one.

    Parameters
    ----------
    first : float
        The horizon of the first jump.
    lowest, highest : float
        Below the first of them a jump is not worth its cost; none goes beyond the second.
    adaptive : bool
        Whether verdicts change the horizon.
    window : int
        The recovery window: what a jump that is rolled back costs.
    stop : int or None
        The length of the run, where it is known.
    max_loss : float
        The share of all steps that jumps may lose, beyond half of what others saved.
    patience : int
        Jumps in a row that did not pay after which it stops.
    """

    def __init__(
        self,
        first: float,
        lowest: float,
        highest: float,
        *,
        adaptive: bool,
        window: int,
        stop: int | None,
        max_loss: float,
        patience: int,
    ) -> None:
        self.horizon = min(first, highest)
        self.lowest, self.highest = lowest, highest
        self.window, self.stop = window, stop
        self.adaptive, self.max_loss, self.patience = adaptive, max_loss, patience
        self.lost = 0.0
        self.saved = 0.0
        self.failures = 0
        self.stopped = ""
        if stop is not None and window > max_loss * stop:
            self.stopped = (
                f"a run of {stop} steps has no room to take back a jump after {window}, "
                f"max_loss is {max_loss:g}"
            )

    def affords(self, step: int) -> bool:
        """Whether the steps lost stay within the stated share if the next jump is rolled back."""
        if self.stop is None and not self.lost:
            return True  # the first one
        allowed = self.max_loss * (self.stop or step) + self.saved / 2
        return self.lost + self.window <= allowed

    def shorten(self, horizon: float) -> None:
        """Jumps of more than this raise the loss by too much."""
        if self.adaptive:
            self.horizon = min(self.horizon, horizon)

    def refuse(self, horizon: float) -> None:
        """Not even jumps of a little more than this left the loss where it was."""
        self.shorten(horizon)
        self.failures += 1
        self._stop_where_useless()

    def learn(self, verdict: Verdict, steps: int) -> None:
        """Take in the verdict on a jump of the current horizon, `steps` after it."""
        factor = {BETTER: 2.0, EVEN: 1.0, WORSE: 0.5, HARM: 0.25}[verdict.kind]
        if verdict.kind == HARM:
            self.lost += steps
        elif verdict.steps_saved < 0:
            self.lost -= verdict.steps_saved
        else:
            self.saved += verdict.steps_saved
        self.failures = 0 if verdict.kind == BETTER else self.failures + 1
        if self.adaptive:
            self.horizon = min(self.horizon * factor, self.highest)
        self._stop_where_useless()

    def _stop_where_useless(self) -> None:
        if self.adaptive and self.horizon < self.lowest:
            self.stopped = (
                f"jumps of {self.lowest:.3g} steps do not pay and shorter ones are not worth "
                "their cost"
            )
        elif self.failures >= self.patience:
            self.stopped = f"{self.failures} jumps in a row did not pay"

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        names = ("horizon", "lost", "saved", "failures", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            setattr(self, name, value)
