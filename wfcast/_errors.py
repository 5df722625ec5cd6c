"""Every error and warning that wfcast raises by itself.

An error is a `ValueError`, as scikit-learn's are. Where a Python programmer would look for a
`TypeError` (a dtype or kind of object that wfcast does not take) it is one as well.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

__all__ = [
    "CheckpointError",
    "ConvergenceError",
    "DtypeError",
    "RankWarning",
    "WfcastError",
    "warn",
]


class WfcastError(ValueError):
    """The base of wfcast's errors. The message names what is at fault and what was expected.

    See Also
    --------
    CheckpointError, ConvergenceError, DtypeError : What it may be in particular.

    Examples
    --------
    >>> import wfcast
    >>> try:
    ...     wfcast.linear_trend(inputs=(500,), targets=(1000,))
    ... except wfcast.WfcastError as error:
    ...     print(error)
    inputs is (500,), expected at least two steps for a line
    """


class DtypeError(WfcastError, TypeError):
    """A dtype, device or kind of object that wfcast does not take, such as integers or strings.

    See Also
    --------
    WfcastError : The base of all errors.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> try:
    ...     wfcast.Farcaster().fit(np.array([[1, 2]]), np.array([[3]]))
    ... except TypeError as error:
    ...     print(type(error).__name__)
    DtypeError
    """


class CheckpointError(WfcastError):
    """A checkpoint that cannot be read, or checkpoints that do not go together.

    See Also
    --------
    WfcastError : The base of all errors.

    Examples
    --------
    >>> import wfcast
    >>> try:
    ...     wfcast.inspect("runs/lost.safetensors")
    ... except wfcast.CheckpointError as error:
    ...     print(error)
    checkpoint: there is no file 'runs/lost.safetensors'
    """


class ConvergenceError(WfcastError):
    """A fit that ended with a certified gap above `tol`. Nothing was changed by it.

    See Also
    --------
    Farcaster : Whose `tol` says how large the gap may be, and `dual_gap_` what it is.
    WfcastError : The base of all errors.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> w0, w1, w2 = np.random.default_rng(0).normal(size=(3, 1000))
    >>> f = wfcast.Farcaster(tol=1e-12)
    >>> try:
    ...     f = f.fit([w0, w1], [w2])
    ... except wfcast.ConvergenceError:
    ...     f = f.set_params(tol=1e-6).fit([w0, w1], [w2])
    >>> f.dual_gap_ <= f.tol
    True
    """


class RankWarning(UserWarning):
    """The columns of X are linearly dependent: the fit took the solution of minimum norm.

    See Also
    --------
    Farcaster : Warns where its loss is the squared error.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np, wfcast
    >>> w0, w1 = np.random.default_rng(0).normal(size=(2, 1000))
    >>> with warnings.catch_warnings(action="ignore", category=wfcast.RankWarning):
    ...     f = wfcast.Farcaster(loss="squared_error").fit([w0, w0], [w1])
    >>> bool(np.isclose(*f.coef_[0]))
    True
    """


_HERE = str(Path(__file__).parent)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's that led here: the innermost one outside wfcast."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
