"""The weights of a run, some way further."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._apply import Progress
from .._errors import WfcastError
from .._patterns import Patterns
from .._runs import states_of
from ..operators._extrapolate import ahead_of, target_of
from ._choice import Candidate, judge_of, readout, short
from ._judge import Judge
from ._report import ReadoutReport
from ._selection import selected, several

__all__ = ["extrapolate_run"]


def extrapolate_run(
    run: Any,
    out: str | os.PathLike[str],
    ahead: float | Sequence[float] = 0.5,
    *,
    strategy: str = "line",
    rank: int = 2,
    window: float | None = None,
    last: int | None = None,
    every: int | None = None,
    judge: str | Judge | None = None,
    maximize: bool = False,
    judge_timeout: float | None = None,
    check_finite: bool = True,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    norms: str = "forecast",
    nonfinite: str = "error",
    partial: bool = False,
    format: str | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ReadoutReport:
    r"""Draw the line through a run's checkpoints on: the weights some way further.

    .. math:: out = a + b\, t, \quad t = s_n + ahead\, (s_n - s_1)

    with a and b each weight's least-squares line through the checkpoints, or what another strategy
    has in its place (`extrapolate`).

    Parameters
    ----------
    run : path or {step: checkpoint}
        A folder of checkpoints (checkpoint-500, step-500.safetensors), of which those that wfcast
        has made are left out with a warning; or paths or mappings by step.
    out : path
        As of `forecast_checkpoint`: in the form of the last checkpoint.
    ahead : float or a sequence of them, default=0.5
        How far beyond the last checkpoint, in histories. Of several, `judge` chooses.
    strategy : {"line", "low-rank", "two-point"}, default="line"
        As of `extrapolate`.
    rank : int, default=2
        Of "low-rank".
    window, last, every, judge, maximize, judge_timeout
        As of `anneal_run`. Half a run is a shorter history: `ahead` counts in that.
    check_finite, include, exclude, norms, nonfinite, partial, format, shard_size, overwrite
        As of `forecast_checkpoint`.
    n_threads : int, optional
        All CPUs by default.
    progress : callable, optional
        Called as ``progress(name, rows)`` after each block.

    Returns
    -------
    ReadoutReport

    Raises
    ------
    WfcastError, CheckpointError, OSError
        As `anneal_run`. Nothing is written then, and nothing left behind.

    See Also
    --------
    extrapolate : The operator.
    anneal_run : For runs at a constant rate that do not drift.
    drift : Whether the run leads anywhere.
    ReadoutReport : What is returned.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, wfcast
    >>> from safetensors.numpy import load_file, save_file
    >>> folder = tempfile.mkdtemp()
    >>> for step in (0, 100, 200):
    ...     save_file({"w": np.array([step], np.float32)}, f"{folder}/step-{step}.safetensors")
    >>> report = wfcast.extrapolate_run(folder, f"{folder}/ahead.safetensors")
    >>> report.step, load_file(report.path)
    (300, {'w': array([300.], dtype=float32)})
    """
    distances = several(ahead, "ahead")
    found = states_of(run, "the run")
    kept, _ = selected(list(found), window, last, every)
    run = {step: found[step] for step in kept}
    targets = [target_of(kept, one) for one in distances]
    names = [f"ahead {short(float(one))}" for one in distances]
    for k, target in enumerate(targets):
        if target in targets[:k]:
            raise WfcastError(
                f"{names[targets.index(target)]} and {names[k]} both lead to step {target}, "
                "expected different steps"
            )
    judging = judge_of(judge, maximize, judge_timeout, names, "ahead")
    operator = ahead_of(run, tuple(sorted(targets)), strategy, rank)
    return readout(
        [Candidate(name, operator, t) for name, t in zip(names, targets, strict=True)],
        run,
        out,
        judging,
        maximize,
        n_threads,
        check_finite,
        progress,
        include=include,
        exclude=exclude,
        norms=norms,
        nonfinite=nonfinite,
        partial=partial,
        format=format,
        shard_size=shard_size,
        overwrite=overwrite,
    )
