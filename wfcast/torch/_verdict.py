"""Whether a jump paid: the loss it led to, against what windows without jumps say of the run.

The loss that a run is heading for is its last level carried on by its slope over log(step), the
losses in logarithms where none is 0 or below, since learning curves are close to power laws. How
far that misses is not taken from a model of the noise: the same forecast is made all over the
stretches of the run that no jump has touched, and what it misses there, by the bend of the curve
and by chance, is what a jump must exceed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import WfcastError
from .._live.tensors import Vector

BETTER, EVEN, WORSE, HARM, UNKNOWN = "better", "even", "worse", "harm", "unknown"
Point = tuple[int, float]
Stretch = tuple[float, list[Point]]  # the steps saved before it, its losses

LONGEST = 32  # windows before a jump that are remembered
SLOPES = (1 / 3, 1 / 2)  # the last shares of all steps over which slopes are taken,
SHORTEST_SLOPE = 2  # but so many windows at least
PER_WINDOW = 4  # null forecasts in a window,
LEAST_SCALE = 0.35  # which are shorter than that of the jump where a stretch has no room for it
RECENT = 4  # they weigh as age**RECENT: the last fifth of the steps, about
BENT = 0.5  # how far curves bend, as a share of their slope
PRIOR = 3.0  # windows that what the losses' own scatter and such a bend let expect counts for
FINEST = 1e-7  # scatter of losses as a share of them, that of float32
HARMFUL = 3.0  # spreads
SURE = 1.96  # spreads to either side that hold 95 %
MOST = 700.0  # exp of it is finite


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a jump compares with going on without it.

    Attributes
    ----------
    kind : {"better", "even", "worse", "harm", "unknown"}
        Even is within one spread of what was expected, harm is worse by more than three, or a loss
        that is not finite. Unknown: the run has shown too little of itself.
    expected, after : float
        The loss that the run was heading for after the recovery window, and the one it has;
        geometric means where losses are judged in logarithms.
    spread : float
        How far such an expectation misses where there is no jump, as a loss: in two of three cases
        by less. It is the wider, the fewer windows it is known from.
    steps_saved : float
        Steps that the run would have taken from one to the other, as well as that can be told, and
        no more than the jump's horizon.
    steps_low, steps_high : float
        The 95 % interval.
    variance, shared : float
        For sums over jumps, see `total`: the variance of its error, and the standard deviation of
        an error that all jumps have in common.
    """

    kind: str
    expected: float
    after: float
    spread: float
    steps_saved: float
    steps_low: float
    steps_high: float
    variance: float
    shared: float


def total(verdicts: Iterable[Verdict], lost: float = 0.0) -> tuple[float, float, float]:
    """The steps that jumps saved together, 0 where the interval holds 0, and that 95 % interval.

    Errors of single jumps are independent, so their variances add; that of the calibration is the
    same for all.

    Parameters
    ----------
    verdicts : iterable of Verdict
        Of the jumps that were kept.
    lost : float
        The steps that those cost that were taken back.

    Returns
    -------
    saved, low, high : float
    """
    verdicts = list(verdicts)
    gain = sum(v.steps_saved for v in verdicts)
    shared = sum(v.shared for v in verdicts)
    reach = SURE * math.sqrt(sum(v.variance for v in verdicts) + shared**2)
    saved = gain - lost
    return saved if abs(saved) > reach else 0.0, saved - reach, saved + reach


def blew_up(before: Sequence[Point], loss: float) -> bool:
    """Whether the loss is gone, or worse by far than any before the jump.

    Where those are 0, all of them, nothing says what is far.
    """
    worst = max(then for _, then in before)
    least = min(then for _, then in before)
    if worst == least == 0:
        return not math.isfinite(loss)
    return not loss <= worst + 4 * (worst - least) + abs(worst)  # NaN is not below either


class Calibration:
    """What a run's losses say of its jumps, and how far they can be trusted.

    Parameters
    ----------
    window : int
        Steps from a jump to its judgement.

    Examples
    --------
    >>> calibration = Calibration(window=50)
    >>> losses = [(step, step**-0.5) for step in range(1, 501)]
    >>> calibration.learn(losses)
    >>> after = [(step, (step + 30) ** -0.5) for step in range(526, 551)]
    >>> verdict = calibration.verdict(losses, after, cap=50)
    >>> verdict.kind, round(verdict.steps_saved)
    ('better', 30)
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._stretches: list[Stretch] = []

    def learn(self, points: Sequence[Point], saved: float = 0.0) -> None:
        """Take in a stretch of the run that no jump has touched.

        Parameters
        ----------
        points : sequence of (step, loss)
            In the order of their steps. A stretch that has grown may be given again, whole or from
            any step that is known: each loss counts once. One that begins later than all that is
            known is a new stretch, as after a jump that was kept.
        saved : float
            Steps that jumps before it saved: by so many the run is older than its steps say.
        """
        points = [point for point in points if math.isfinite(point[1])]
        if not points:
            return
        last = self._stretches[-1][1][-1][0] if self._stretches else -math.inf
        if points[0][0] > last:
            self._stretches.append((max(saved, 1 - points[0][0]), []))  # no age is below 1
        self._stretches[-1][1].extend(point for point in points if point[0] > last)
        oldest = points[-1][0] - LONGEST * self.window
        recent = [(then, [p for p in known if p[0] > oldest]) for then, known in self._stretches]
        self._stretches = [stretch for stretch in recent if stretch[1]]

    def verdict(
        self, before: Sequence[Point], after: Sequence[Point], cap: float = math.inf
    ) -> Verdict:
        """Compare the losses after a jump with what the run was heading for.

        Parameters
        ----------
        before : sequence of (step, loss)
            Up to the jump, all since the window of the one before it or the last of these. What
            `learn` was not given of them, it is given now.
        after : sequence of (step, loss)
            Of the second half of the window after it.
        cap : float
            The most steps that a jump can have saved or lost as far as the interval goes: its
            horizon.

        Raises
        ------
        WfcastError
            There are too few losses to compare.
        """
        if len(before) < 2 or not after:
            raise WfcastError(
                f"a verdict on a jump needs two losses before it and one after it, not "
                f"{len(before)} and {len(after)}"
            )
        self.learn(before)
        if not all(math.isfinite(loss) for _, loss in after):
            return _silent(HARM, math.nan, math.nan, cap)
        curve = _Curve(self._stretches, after, self.window)
        jumps = [forecast for share in SLOPES if (forecast := curve.jump(share)) is not None]
        jump = min(jumps, key=lambda forecast: forecast.unit, default=None)
        reached = curve.loss(curve.reached)
        blown = blew_up(before, reached)
        nulls = curve.nulls(jump.share) if jump is not None and not curve.first_change else []
        if jump is None or not nulls:
            expected = math.nan if jump is None else curve.loss(curve.reached - jump.missed)
            return _silent(HARM if blown else UNKNOWN, expected, reached, cap)
        past = _Past.of(nulls, jump)
        gain = past.bend * jump.bend - jump.missed
        spread, harmful = (past.deviation * student(s, past.degrees) for s in (1.0, HARMFUL))
        kind = EVEN if abs(gain) <= spread else BETTER if gain > 0 else WORSE
        expected = curve.loss(curve.reached + gain)
        return Verdict(
            HARM if blown or gain < -harmful else kind,
            expected,
            reached,
            curve.loss(curve.reached + gain + spread) - expected,
            *_steps(gain, min(jumps, key=lambda forecast: forecast.slope_unit), past, cap),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        return {"stretches": [(saved, list(points)) for saved, points in self._stretches]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._stretches = [
            (saved, [(step, loss) for step, loss in points]) for saved, points in state["stretches"]
        ]


@dataclass(frozen=True, slots=True)
class _Forecast:
    """The mean loss late in a window, against the forecast of it made at its beginning.

    Both are linear in the losses, so what is missed by scatter and by a bend is known, too.

    Attributes
    ----------
    share, age : float
        Over which share of its steps so far the slope was taken, and the age of the run.
    centre, later : float
        The means of log(age) where the slope was taken, and for which the forecast is.
    missed : float
        The mean loss less the forecast.
    bend : float
        What is missed of the curve log(age)**2.
    slope, slope_norm : float
        The slope over log(age), and its standard error as a multiple of the losses' scatter.
    scatter : float
        The standard deviation of losses around the slope; that of independent ones that would
        leave means as uncertain, where neighbours are alike.
    weights : ndarray
        Those of the losses in what is missed.
    """

    share: float
    age: float
    centre: float
    later: float
    missed: float
    bend: float
    slope: float
    slope_norm: float
    scatter: float
    weights: Vector

    @property
    def unit(self) -> float:
        """What is missed by scatter alone and by a bend of some share of the slope."""
        by_chance = self.scatter * float(np.linalg.norm(self.weights))
        return math.hypot(by_chance, BENT * self.slope * self.bend)

    @property
    def slope_unit(self) -> float:
        """What the slope will have changed, for the same two reasons."""
        bent = 2 * BENT * self.slope * (self.later - self.centre)
        return math.hypot(self.scatter * self.slope_norm, bent)


class _Curve:
    """The losses of the stretches without jumps, those before the jump last, and those after it."""

    def __init__(self, stretches: list[Stretch], after: Sequence[Point], window: int) -> None:
        points = [point for _, stretch in stretches for point in stretch]
        lengths = [len(stretch) for _, stretch in stretches]
        ends = np.cumsum(lengths).tolist()
        self._parts = list(zip([0, *ends[:-1]], ends, strict=True))
        self._clock, losses = np.array([*points, *after], dtype=float).T
        lengths[-1] += len(after)
        self._saved = np.repeat([saved for saved, _ in stretches], lengths)
        self._x = np.log(self._clock + self._saved)
        self._powers = bool(losses.min() > 0)
        self._y = np.log(losses) if self._powers else losses
        self._finest = FINEST * float(np.abs(self._y).max()) + 1e-30
        self._noise = self._usual_noise()
        self._window = window
        self._at = points[-1][0]
        self._ahead = after[-1][0] - self._at
        self._later = max(0.0, min(after[0][0] - 1 - self._at, self._ahead - window / 2))
        known, now = self._y[: len(points)], self._y[len(points) :]
        self.reached = float(now.mean())
        # Losses that never changed say nothing of how far they do when they do.
        self.first_change = bool(np.ptp(known) == 0 < np.ptp(self._y))

    def loss(self, value: float) -> float:
        """A loss from what stands for it here."""
        return math.exp(min(value, MOST)) if self._powers else value

    def _usual_noise(self) -> float:
        """The scatter of all losses, by how far each lies off the middle of its neighbours."""
        parts = [self._y[first:last] for first, last in self._parts]
        off = np.concatenate([y[1:-1] - (y[2:] + y[:-2]) / 2 for y in parts if len(y) > 2] or [[]])
        return math.sqrt(float(off @ off) / 1.5 / len(off)) if len(off) else 0.0

    def jump(self, share: float) -> _Forecast | None:
        """The forecast that the jump is judged by."""
        return self._forecast(share, self._at, *self._parts[-1])

    def nulls(self, share: float) -> list[_Forecast]:
        """The same forecasts all over the stretches; one smaller one where that has no room."""
        found, level = [], self._window / 2
        for first, last in self._parts:
            begin, end = self._clock[first] - 1, self._clock[last - 1]
            scale = min(1.0, (end - begin) / (level + self._ahead))
            at = end - scale * self._ahead
            while scale > LEAST_SCALE and at - scale * level > begin - 0.5:  # steps are whole
                found.append(self._forecast(share, at, first, last, scale))
                at -= self._window / PER_WINDOW
        return [forecast for forecast in found if forecast is not None]

    def _between(self, low: float, high: float) -> slice:
        """The losses with low < clock <= high."""
        first, last = np.searchsorted(self._clock, [low, high], "right").tolist()
        return slice(first, last)

    def _forecast(
        self, share: float, at: float, first: int, last: int, scale: float = 1.0
    ) -> _Forecast | None:
        """From the last half window and the slope so far; None where losses are too few."""
        x, y, window = self._x, self._y, self._window
        level = self._between(at - scale * window / 2, at)
        level = slice(max(level.start, first), min(level.stop, last))
        later = self._between(at + scale * self._later, at + scale * self._ahead)
        age = at + float(self._saved[first])
        past = self._between(at - max(SHORTEST_SLOPE * window, share * age), at)
        parts = [slice(max(past.start, i), min(past.stop, j)) for i, j in self._parts]
        parts = [part for part in parts if part.stop - part.start > 1]
        degrees = sum(part.stop - part.start - 1 for part in parts) - 1
        if degrees < 2 or level.stop <= level.start or later.stop <= later.start:
            return None
        # Every stretch has a level of its own, all have one slope.
        lever = np.zeros_like(x)
        for part in parts:
            lever[part] = x[part] - x[part].mean()
        square = float(lever @ lever)
        slope = float(lever @ y) / square
        rest = np.concatenate([y[part] - y[part].mean() - slope * lever[part] for part in parts])
        square_rest = float(rest @ rest)
        neighbours = max(0.0, float(rest[1:] @ rest[:-1])) / (square_rest + self._finest)
        # Losses that go with their neighbours say less than as many that do not.
        inflation = (1 + neighbours) / (1 - neighbours)
        weights = -(x[later].mean() - x[level].mean()) / square * lever
        weights[level] -= 1 / (level.stop - level.start)
        weights[later] += 1 / (later.stop - later.start)
        return _Forecast(
            share=share,
            age=age,
            centre=float(np.mean(np.concatenate([x[part] for part in parts]))),
            later=float(x[later].mean()),
            missed=float(weights @ y),
            bend=float(weights @ x**2),
            slope=slope,
            slope_norm=1 / math.sqrt(square),
            # A while of equal losses, such as zeros, is no run without noise.
            scatter=math.sqrt((inflation * square_rest + self._noise**2) / (degrees + 1))
            + self._finest,
            weights=weights,
        )


@dataclass(frozen=True, slots=True)
class _Past:
    """What forecasts have missed where there was no jump, and so what that of a jump may miss.

    Attributes
    ----------
    bend, bend_error : float
        How far the curve bends, the multiple of their own `bend` that forecasts miss, and its
        standard error.
    factor : float
        What else they miss, as a multiple of their `unit`.
    chance, common : float
        Standard deviations of what the forecast of a jump misses: by chance, and by the error of
        `bend`.
    degrees : float
        Of freedom: independent windows, since forecasts overlap.
    """

    bend: float
    bend_error: float
    factor: float
    chance: float
    common: float
    degrees: float

    @property
    def deviation(self) -> float:
        """The standard deviation of both."""
        return math.hypot(self.chance, self.common)

    @classmethod
    def of(cls, nulls: list[_Forecast], jump: _Forecast) -> _Past:
        """Least squares of what was missed on the bends, the latest weighing most."""
        recency = np.array([null.age / jump.age for null in nulls]) ** RECENT
        recency /= recency.sum()
        units = np.array([null.unit for null in nulls])
        missed = np.array([null.missed for null in nulls]) / units
        bends = np.array([null.bend for null in nulls]) / units
        directions = np.array([null.weights / np.linalg.norm(null.weights) for null in nulls])
        alike = directions @ directions.T  # correlations, where losses scatter independently
        windows = 1 / float(recency @ alike**2 @ recency)
        pull = recency * bends / float(recency @ bends**2)
        bend = float(pull @ missed)
        rest = float(recency @ (missed - bend * bends) ** 2)
        degrees = PRIOR + max(windows - 1, 0.0)
        factor = math.sqrt((PRIOR + windows * rest) / degrees)
        error = factor * math.sqrt(float(pull @ alike @ pull))
        usual = BENT * abs(jump.slope)
        bend *= usual**2 / (usual**2 + error**2)
        error *= usual / math.hypot(usual, error)
        return cls(bend, error, factor, factor * jump.unit, error * abs(jump.bend), degrees)


def _steps(
    gain: float, jump: _Forecast, past: _Past, cap: float
) -> tuple[float, float, float, float, float]:
    """The fields of a verdict from `steps_saved` on: a gain in steps of the run's own slope."""
    change = 2 * (jump.later - jump.centre)
    slope = jump.slope + past.bend * change
    slope_error = math.hypot(past.factor * jump.scatter * jump.slope_norm, past.bend_error * change)
    if -slope <= 2 * slope_error:  # the run is not told from one that stands still
        return 0.0, -cap, cap, cap * cap, 0.0
    age = math.exp(jump.later)
    x = gain / -slope  # the gain in log(age)
    wide = student(SURE, past.degrees) / SURE
    chance = wide * math.hypot(past.chance, x * slope_error) / -slope
    common = wide * past.common / -slope
    error = math.hypot(chance, common)
    # What is cut at the cap keeps its error as a share of it: an interval without width would lie.
    least, most = (math.log1p(max(bound / age, -1 + 1e-12)) for bound in (-cap, cap))
    part = min(max(x, least), most) / x if x else 1.0
    bounds = (part * (x - SURE * error), x, part * (x + SURE * error))
    low, steps, high = (_within(cap, age * math.expm1(min(v, MOST))) for v in bounds)
    deviation = (high - low) / (2 * SURE)
    return steps, low, high, (deviation * chance / error) ** 2, deviation * common / error


def _within(bound: float, value: float) -> float:
    return max(-bound, min(value, bound))


def student(spreads: float, degrees: float) -> float:
    """How many spreads are as unlikely for Student's t as so many are for a normal deviate.

    The approximation of Gaver and Kafadar (The American Statistician 38, 1984, 308-311).
    """
    return math.sqrt(degrees * math.expm1(spreads**2 * (degrees - 1.5) / (degrees - 1) ** 2))


def _silent(kind: str, expected: float, after: float, cap: float) -> Verdict:
    """A verdict that says nothing of the steps."""
    return Verdict(kind, expected, after, math.nan, 0.0, -cap, cap, cap * cap, 0.0)
