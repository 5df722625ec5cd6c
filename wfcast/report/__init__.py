"""Everything that is shown: text, HTML, JSON and plots, from the same parts."""

from ._base import Grid, Report, finite
from ._checkpoint import CheckpointReport
from ._comparison import Comparison, Errors, compare_checkpoints, floating
from ._drift import Drift, drift
from ._evaluation import Evaluation, evaluate
from ._farcaster import FarcasterReport
from ._inspection import inspect, look, nbytes_read, report_on
from ._run import RunReport

__all__ = [
    "CheckpointReport",
    "Comparison",
    "Drift",
    "Errors",
    "Evaluation",
    "FarcasterReport",
    "Grid",
    "Report",
    "RunReport",
    "compare_checkpoints",
    "drift",
    "evaluate",
    "finite",
    "floating",
    "inspect",
    "look",
    "nbytes_read",
    "report_on",
]
