"""Weights stay as they are: the baseline of every forecast."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .._operator import Operator
from .._runs import steps

__all__ = ["persistence"]


def persistence(inputs: Iterable[int], targets: Iterable[int]) -> Operator:
    """The last input, unchanged, at every target: ``A[k] = 1`` for the last k, else 0.

    Parameters
    ----------
    inputs, targets : iterable of int
        Increasing steps.

    Returns
    -------
    Operator
        Ready to predict, for any tensor names.

    Raises
    ------
    WfcastError
        Steps that are no integers or do not increase.

    See Also
    --------
    linear_trend : The straight line through the inputs.
    average : The mean of the inputs.

    Examples
    --------
    >>> import wfcast
    >>> wfcast.persistence((0, 500), (1000,)).coef["*"]
    array([[0., 1.]])
    """
    observed, ahead = steps(inputs, "inputs"), steps(targets, "targets")
    coef = np.zeros((len(ahead), len(observed)))
    coef[:, -1] = 1
    return Operator(observed, ahead, coef, strategy="persistence")
