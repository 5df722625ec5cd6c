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
    """The base of wfcast's errors. The message names what is at fault and what was expected."""


class DtypeError(WfcastError, TypeError):
    """A dtype, device or kind of object that wfcast does not take, such as integers or strings."""


class CheckpointError(WfcastError):
    """A checkpoint that cannot be read, or checkpoints that do not go together."""


class ConvergenceError(WfcastError):
    """A fit that ended with a certified gap above `tol`. Nothing was changed by it."""


class RankWarning(UserWarning):
    """The columns of X are linearly dependent: the fit took the solution of minimum norm."""


_HERE = str(Path(__file__).parent)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's that led here: the innermost one outside wfcast."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
