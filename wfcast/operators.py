"""Ready-made ModelFarcasters: operators whose coefficients follow from the steps alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ._errors import WfcastError
from ._runs import steps
from .model import ALL, ModelFarcaster, Vector


def _ready(inputs: tuple[int, ...], targets: tuple[int, ...], coef: Vector) -> ModelFarcaster:
    mf = ModelFarcaster(inputs, targets, by="all", beta=0.0)
    mf._set(inputs, targets, {ALL: coef}, {ALL: np.zeros(len(targets))}, {})
    return mf


def persistence(inputs: Iterable[int], targets: Iterable[int]) -> ModelFarcaster:
    """The last input, unchanged, at every target: ``A[k] = 1`` for the last k, else 0.

    Parameters
    ----------
    inputs, targets : iterable of int
        Increasing steps.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names.
    """
    observed, ahead = steps(inputs, "inputs"), steps(targets, "targets")
    coef = np.zeros((len(ahead), len(observed)))
    coef[:, -1] = 1
    return _ready(observed, ahead, coef)


def linear_trend(inputs: Iterable[int], targets: Iterable[int]) -> ModelFarcaster:
    """The least-squares line through each weight's inputs, read off at the targets.

    ``A[k, j] = 1/p + (t_k - mean t) (T_j - mean t) / sum_k (t_k - mean t)^2`` with the input steps
    t and the target steps T.

    Parameters
    ----------
    inputs, targets : iterable of int
        Increasing steps; at least two inputs.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names.
    """
    observed, ahead = steps(inputs, "inputs"), steps(targets, "targets")
    if len(observed) < 2:
        raise WfcastError(f"inputs is {observed}, expected at least two steps for a line")
    # from the first step on: float64 does not tell large integers apart
    t, later = (np.array([s - observed[0] for s in of], np.float64) for of in (observed, ahead))
    centred, later = t - t.mean(), later - t.mean()
    coef = 1 / t.size + np.outer(later, centred) / (centred @ centred)
    return _ready(observed, ahead, coef)


def average(inputs: Iterable[int]) -> ModelFarcaster:
    """The mean of the inputs: ``A[k] = 1/p``. Its single target is the last input's step.

    Parameters
    ----------
    inputs : iterable of int
        Increasing steps.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names; `predict` needs no step.
    """
    observed = steps(inputs, "inputs")
    return _ready(observed, observed[-1:], np.full((1, len(observed)), 1 / len(observed)))
