"""Everything that is shown: text, HTML, JSON and plots, from the same parts."""

from ._base import Grid, Report, finite
from ._comparison import Comparison, Errors, compare_checkpoints, floating
from ._evaluation import Evaluation, evaluate
from ._inspection import (
    CheckpointReport,
    FarcasterReport,
    RunReport,
    inspect,
    look,
    nbytes_read,
    report_on,
)

__all__ = [
    "CheckpointReport",
    "Comparison",
    "Errors",
    "Evaluation",
    "FarcasterReport",
    "Grid",
    "Report",
    "RunReport",
    "compare_checkpoints",
    "evaluate",
    "finite",
    "floating",
    "inspect",
    "look",
    "nbytes_read",
    "report_on",
]
