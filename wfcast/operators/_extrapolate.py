"""Straight on, as far as the history of a run says."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from .._errors import WfcastError
from .._operator import Operator
from .._parameters import is_finite
from .._runs import check_run, steps
from ._linear_trend import linear_trend
from ._low_rank import low_rank

__all__ = ["extrapolate"]

STRATEGIES = ("line", "low-rank", "two-point")


def extrapolate(
    run: Any, ahead: float = 0.5, strategy: str = "line", *, key: str | None = None
) -> Operator:
    """The weights some way further: the target is ``last + ahead (last - first)``, of the run.

    It pays where a run drifts, as in fine-tuning and in reinforcement learning, and where the
    training then goes on from there: `drift` tells.

    Parameters
    ----------
    run : {step: checkpoint} or path
        All states count, two at least; a path leads to a folder of checkpoints, of which forecasts
        do not count. Of the checkpoints themselves only "low-rank" reads anything.
    ahead : float, default=0.5
        How far beyond the last state, in histories (last step less first), above 0. The target is
        rounded to a step, and the coefficients are those of that step. Half a history gives the
        better model at once, a whole one the better start for training on; far more does harm.
    strategy : {"line", "low-rank", "two-point"}, default="line"
        "line": `linear_trend` through all states; "two-point": through the first and the last one;
        "low-rank": `low_rank` of rank 2.
    key : str, optional
        As of `forecast_checkpoint`.

    Returns
    -------
    Operator
        Of one target.

    Raises
    ------
    WfcastError
        Fewer than two states, another strategy, a distance that is not above 0 or rounds to no
        step.
    CheckpointError
        A folder that holds no checkpoints; for "low-rank" also what `low_rank` raises.

    See Also
    --------
    linear_trend : The same for any steps.
    low_rank : The line, freed of what leaves the main directions.
    drift : Whether the run leads anywhere.

    References
    ----------
    "Not All Steps are Informative: On the Linearity of LLMs' RLVR Training", arXiv 2601.04537.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> run = {t: {"w": np.array([1.0, t])} for t in (0, 100, 200)}
    >>> ahead = wfcast.extrapolate(run)
    >>> ahead.targets, ahead.predict(run)
    ((300,), {'w': array([  1., 300.])})
    """
    run = check_run(run, (), "the run", key)
    target = (target_of(tuple(run), ahead),)
    if strategy == "low-rank":
        made = low_rank(run, target)
    else:
        made = line_of(tuple(run), target, strategy)
    return Operator(
        made.inputs,
        made.targets,
        made.coef,
        made.intercept,
        strategy="extrapolate",
        tensors=made.tensors,
        base=made.base,
        info={**made.info, "ahead": float(ahead), "strategy": strategy},
    )


def line_of(observed: tuple[int, ...], targets: tuple[int, ...], strategy: str) -> Operator:
    """The operator of a strategy that goes by the steps alone."""
    if strategy not in STRATEGIES:
        raise WfcastError(
            f"strategy is {strategy!r}, expected one of {', '.join(map(repr, STRATEGIES))}"
        )
    observed = steps(observed, "the run")
    ends = (observed[0], observed[-1])
    return linear_trend(observed if strategy == "line" else ends, targets)


def target_of(observed: tuple[int, ...], ahead: float) -> int:
    """The step that lies `ahead` histories beyond the last of the observed ones."""
    observed = steps(observed, "the run")
    first, last = observed[0], observed[-1]
    if first == last:
        raise WfcastError(f"the run has one state, step {last}, expected two at least")
    if not is_finite(ahead) or ahead <= 0:
        raise WfcastError(f"ahead is {ahead!r}, expected a finite number of histories above 0")
    target = last + round(Fraction(float(ahead)) * (last - first))
    if target == last:
        raise WfcastError(
            f"ahead is {ahead!r} of a history of {last - first} steps, which rounds to step "
            f"{last}, the last one: expected a target after it"
        )
    return target
