"""The model that a run holds: its checkpoints averaged, or its line drawn on, file to file.

`_selection` picks checkpoints of the run, `_anneal` and `_extrapolate` make candidates of them
(operators with the same inputs), `_choice` writes these in one sweep and leaves the choice to a
judge (`_judge`) where there are several.
"""

from ._anneal import anneal_run
from ._extrapolate import extrapolate_run
from ._judge import CommandJudge
from ._report import ReadoutReport

__all__ = ["CommandJudge", "ReadoutReport", "anneal_run", "extrapolate_run"]
