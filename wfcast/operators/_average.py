"""The mean of checkpoints."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .._operator import Operator
from .._runs import steps

__all__ = ["average"]


def average(inputs: Iterable[int]) -> Operator:
    """The mean of the inputs: ``A[k] = 1/p``. Its single target is the last input's step.

    Parameters
    ----------
    inputs : iterable of int
        Increasing steps.

    Returns
    -------
    Operator
        Ready to predict, for any tensor names; `Operator.predict` needs no step.

    Raises
    ------
    WfcastError
        Steps that are no integers or do not increase.

    See Also
    --------
    linear_trend : The straight line through the inputs.
    wfcast.torch.fit_to_loss : Coefficients fitted to the loss.

    Examples
    --------
    >>> import wfcast
    >>> wfcast.average((300, 400, 500, 600)).coef["*"]
    array([[0.25, 0.25, 0.25, 0.25]])
    """
    observed = steps(inputs, "inputs")
    coef = np.full((1, len(observed)), 1 / len(observed))
    return Operator(observed, observed[-1:], coef, strategy="average")
