"""Every error and warning that wfcast raises by itself.

An error is a `ValueError`, as scikit-learn's are. Where a Python programmer would look for a
`TypeError` (a dtype or kind of object that wfcast does not take) it is one as well.
"""

from __future__ import annotations


class WfcastError(ValueError):
    """The base of wfcast's errors. The message names what is at fault and what was expected."""


class DtypeError(WfcastError, TypeError):
    """A dtype, device or kind of object that wfcast does not take, such as integers or strings."""


class CheckpointError(WfcastError):
    """A checkpoint that cannot be read, or checkpoints that do not go together."""


class ConvergenceError(WfcastError):
    """A fit that ended with a certified gap above `tol`. Nothing was changed by it."""


class RankWarning(UserWarning):
    """The columns of X are linearly dependent: the fit took the solution of minimum norm."""
