"""The straight line through the observed weights."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from .._errors import WfcastError
from .._operator import Operator
from .._runs import steps

__all__ = ["coefficients", "linear_trend"]

Vector = npt.NDArray[np.float64]


def linear_trend(inputs: Iterable[int], targets: Iterable[int]) -> Operator:
    """The least-squares line through each weight's inputs, read off at the targets.

    ``A[k, j] = 1/p + (t_k - mean t) (T_j - mean t) / sum_k (t_k - mean t)^2`` with the input steps
    t and the target steps T.

    Parameters
    ----------
    inputs, targets : iterable of int
        Increasing steps; at least two inputs.

    Returns
    -------
    Operator
        Ready to predict, for any tensor names.

    Raises
    ------
    WfcastError
        Fewer than two inputs; steps that are no integers or do not increase.

    See Also
    --------
    persistence : The weights as they are.
    ModelFarcaster : Coefficients learned from earlier runs.

    Examples
    --------
    >>> import wfcast
    >>> wfcast.linear_trend((0, 500), (1000,)).coef["*"]
    array([[-1.,  2.]])
    """
    observed, ahead = steps(inputs, "inputs"), steps(targets, "targets")
    if len(observed) < 2:
        raise WfcastError(f"inputs is {observed}, expected at least two steps for a line")
    # from the first step on: float64 does not tell large integers apart
    t, later = (np.array([s - observed[0] for s in of], np.float64) for of in (observed, ahead))
    return Operator(observed, ahead, coefficients(t, later), strategy="linear_trend")


def coefficients(observed: Vector, ahead: Vector) -> Vector:
    """Those of `linear_trend` (m, p), for steps that may be any numbers."""
    middle = observed.mean()
    centred = observed - middle
    coef: Vector = 1 / observed.size + np.outer(ahead - middle, centred) / (centred @ centred)
    return coef
