"""The parameters of a fit, checked, and the number of threads."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

from ._errors import WfcastError

__all__ = ["ALL", "BY", "PARAMETERS", "check_by", "check_parameters", "is_finite", "threads"]

BY = ("tensor", "all")
ALL = "*"
"""The name of the coefficient set that serves every tensor."""

PARAMETERS = ("loss", "beta", "alpha", "fit_intercept", "tol", "n_threads")
LOSSES = ("absolute_error", "squared_error")
EPS = float(np.finfo(np.float64).eps)


def check_by(by: Any) -> None:
    """Raise WfcastError unless `by` says how many coefficient sets there are."""
    if by not in BY:
        raise WfcastError(f"by is {by!r}, expected 'tensor' or 'all'")


def check_parameters(
    loss: Any, beta: Any, alpha: Any, fit_intercept: Any, tol: Any, n_threads: Any
) -> None:
    """Raise WfcastError for the first parameter of a fit that has no meaning."""
    if loss not in LOSSES:
        raise WfcastError(f"loss is {loss!r}, expected one of {', '.join(map(repr, LOSSES))}")
    for name, value in (("beta", beta), ("alpha", alpha), ("tol", tol)):
        if not is_finite(value) or value < 0 or (name == "tol" and value == 0):
            least = "above 0" if name == "tol" else "not below 0"
            raise WfcastError(f"{name} is {value!r}, expected a finite number {least}")
    if tol < EPS:
        raise WfcastError(f"tol is {tol!r}, expected at least {EPS:.3g}: float64 resolves no more")
    if not isinstance(fit_intercept, bool | np.bool_):
        raise WfcastError(f"fit_intercept is {fit_intercept!r}, expected True or False")
    threads(n_threads)
    if beta > 0 and loss != "absolute_error":
        raise WfcastError(
            f"beta is {beta!r} with loss={loss!r}; the update-norm hinge goes with "
            "loss='absolute_error' only: pass beta=0"
        )
    if alpha > 0 and loss != "squared_error":
        raise WfcastError(
            f"alpha is {alpha!r} with loss={loss!r}; the ridge penalty goes with "
            "loss='squared_error' only: pass alpha=0"
        )


def is_finite(value: Any) -> bool:
    """Whether it is a real number that float64 can hold."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond float64
        return False


def threads(n_threads: Any) -> int:
    """The core's thread count: 0 stands for all CPUs that this process may use."""
    if n_threads is None:
        return 0
    good = isinstance(n_threads, Integral) and not isinstance(n_threads, bool)
    if not good or not 1 <= n_threads < 2**31:
        raise WfcastError(
            f"n_threads is {n_threads!r}, expected None or an integer from 1 to 2^31 - 1"
        )
    return int(n_threads)
