"""Which report goes with what there is: a farcaster, a checkpoint or a run folder."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

from .._apply import Progress
from .._operator import Learner, Operator, load, operator_of
from .._parameters import threads
from .._persist import KEY
from .._runs import Run, check_run, forecastable, has, is_run
from ..checkpoint import Checkpoint, FileCheckpoint, open_checkpoint
from ._checkpoint import CheckpointReport
from ._comparison import floating
from ._farcaster import FarcasterReport
from ._run import RunReport, alike

__all__ = ["inspect", "look", "nbytes_read", "report_on"]


def inspect(
    source: Any,
    *,
    key: str | None = None,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> FarcasterReport | CheckpointReport | RunReport:
    """Look at a farcaster, a checkpoint or a run.

    Parameters
    ----------
    source : path, Operator, ModelFarcaster, mapping, module, or {step: checkpoint}
        A folder of checkpoints is a run, also where a trainer has put the final model beside
        them: of that, name the file.
    key : str, optional
        As of `forecast_checkpoint`. The report lists the sets of weights that a file holds.
    n_threads : int or None
        None: all CPUs that this process may use.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each tensor, with the weights that were read.

    Returns
    -------
    FarcasterReport, CheckpointReport or RunReport

    Raises
    ------
    CheckpointError
        Nothing there, or nothing that wfcast can read.
    NotFittedError
        A ModelFarcaster that was not fitted.

    See Also
    --------
    evaluate : How well a farcaster forecasts.
    compare_checkpoints : Errors between two checkpoints.
    load : Reads an operator, to use it.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> print(wfcast.inspect({"w": np.ones((2, 3), np.float32)}))
    tensor  kind   dtype    shape  rms  not finite
    ------  -----  -------  -----  ---  ----------
    w       other  float32    2x3    1           0
    <BLANKLINE>
    checkpoint: safetensors, 1 tensors, 6 parameters
    """
    found = look(source, key)
    kinds = ((Operator, "farcaster"), (Checkpoint, "checkpoint"), (dict, "run"))
    what = next(name for kind, name in kinds if isinstance(found, kind))
    if isinstance(source, str | os.PathLike):
        what = os.fspath(source)
    return report_on(found, what, n_threads=n_threads, progress=progress)


Found = Operator | Checkpoint | Run


def look(source: Any, key: str | None = None) -> Found:
    """What `inspect` is to report on: opened, and nothing read yet."""
    if isinstance(source, Operator | Learner):
        return operator_of(source, "source")
    if is_run(source, key):
        run = check_run(source, (), "the run", key)
        for step in run:
            run[step] = open_checkpoint(run[step], f"step {step}")
        return run
    checkpoint = open_checkpoint(source, key=key)
    if KEY in checkpoint.metadata and isinstance(checkpoint, FileCheckpoint):
        return load(checkpoint.path)
    return checkpoint


def report_on(
    found: Found, what: str, *, n_threads: int | None = None, progress: Progress | None = None
) -> FarcasterReport | CheckpointReport | RunReport:
    """The report on what `look` found; `what` is what it is called."""
    if isinstance(found, Operator):
        return FarcasterReport(found, what)
    if isinstance(found, Checkpoint):
        return CheckpointReport(found, what, threads(n_threads), progress)
    return RunReport(found, what, threads(n_threads), progress)


def nbytes_read(found: Found) -> tuple[int, dict[str, int]]:
    """The bytes that `report_on` reads, of all and of a weight of each tensor."""
    if isinstance(found, Operator):
        return 0, {}
    if isinstance(found, Checkpoint):
        tensors = [found.tensors[name] for name in floating(found)]
        return sum(t.nbytes for t in tensors), {t.name: t.bits // 8 for t in tensors}
    whole = dict.fromkeys(alike(found))
    pairs = [
        t
        for previous, one in pairwise(found.values())
        for t in forecastable(one)
        if t not in whole and has(previous, t)
    ]
    total = len(found) * sum(t.nbytes for t in whole) + 2 * sum(t.nbytes for t in pairs)
    return total, {t.name: t.bits // 8 for t in (*whole, *pairs)}
