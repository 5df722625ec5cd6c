"""Ready-made ModelFarcasters: operators whose coefficients follow from the steps alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ._errors import WfcastError
from ._runs import steps
from .model import ALL, ModelFarcaster, Vector


def _ready(inputs: Sequence[int], targets: Sequence[int], coef: Vector) -> ModelFarcaster:
    mf = ModelFarcaster(inputs, targets, by="all", beta=0.0)
    mf._set(
        steps(inputs, "inputs"),
        steps(targets, "targets"),
        {ALL: np.ascontiguousarray(coef, dtype=np.float64)},
        {ALL: np.zeros(len(targets))},
    )
    return mf


def persistence(inputs: Sequence[int], targets: Sequence[int]) -> ModelFarcaster:
    """The last input, unchanged, at every target: ``A[k] = 1`` for the last k, else 0.

    Parameters
    ----------
    inputs, targets : sequence of int
        Increasing steps.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names.
    """
    p = len(steps(inputs, "inputs"))
    coef = np.zeros((len(steps(targets, "targets")), p))
    coef[:, -1] = 1
    return _ready(inputs, targets, coef)


def linear_trend(inputs: Sequence[int], targets: Sequence[int]) -> ModelFarcaster:
    """The least-squares line through each weight's inputs, read off at the targets.

    ``A[k, j] = 1/p + (t_k - mean t) (T_j - mean t) / sum_k (t_k - mean t)^2`` with the input steps
    t and the target steps T.

    Parameters
    ----------
    inputs, targets : sequence of int
        Increasing steps; at least two inputs.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names.
    """
    t = np.array(steps(inputs, "inputs"), dtype=np.float64)
    ahead = np.array(steps(targets, "targets"), dtype=np.float64)
    if t.size < 2:
        raise WfcastError(f"inputs is {tuple(inputs)}, expected at least two steps for a line")
    centred = t - t.mean()
    return _ready(
        inputs, targets, 1 / t.size + np.outer(ahead - t.mean(), centred) / (centred @ centred)
    )


def average(inputs: Sequence[int]) -> ModelFarcaster:
    """The mean of the inputs: ``A[k] = 1/p``. Its single target is the last input's step.

    Parameters
    ----------
    inputs : sequence of int
        Increasing steps.

    Returns
    -------
    ModelFarcaster
        Ready to predict, for any tensor names; `predict` needs no step.
    """
    found = steps(inputs, "inputs")
    return _ready(inputs, found[-1:], np.full((1, len(found)), 1 / len(found)))
