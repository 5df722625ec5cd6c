"""The average of a run that stands in for a decay."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .._apply import Progress
from .._operator import Operator
from .._parameters import ALL, EPS
from .._patterns import Patterns
from .._runs import check_run
from ..operators import Decay, annealed
from ._choice import Candidate, judge_of, readout, short
from ._judge import Judge
from ._report import ReadoutReport
from ._selection import selected, several

__all__ = ["anneal_run"]


def anneal_run(
    run: Any,
    out: str | os.PathLike[str],
    profile: float | str | Decay | Sequence[float | str | Decay] = 10.0,
    *,
    window: float | None = None,
    last: int | None = None,
    every: int | None = None,
    judge: str | Judge | None = None,
    maximize: bool = False,
    judge_timeout: float | None = None,
    check_finite: bool = True,
    include: Patterns | None = None,
    exclude: Patterns | None = None,
    adapters: str = "product",
    norms: str = "forecast",
    nonfinite: str = "error",
    partial: bool = False,
    key: str | None = None,
    format: str | None = None,
    shard_size: int | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    progress: Progress | None = None,
) -> ReadoutReport:
    r"""Average a run's checkpoints: about the model that a decay of its rate would have made.

    .. math:: out = \sum_k A_k w_{s_k}, \quad A_k \propto \int_{s_{k-1}}^{s_k} s^\gamma ds

    or the weights of another profile (`annealed`). From disk to disk in bounded memory: each input
    byte is read once, whatever the number of profiles.

    Parameters
    ----------
    run : path or {step: checkpoint}
        A folder of checkpoints (checkpoint-500, step-500.safetensors), of which those that wfcast
        has made are left out with a warning; or paths or mappings by step.
    out : path
        As of `forecast_checkpoint`: in the form of the last checkpoint.
    profile : float, {"mean", "linear", "minus-sqrt"}, callable, or a sequence of them, default=10.0
        As of `annealed`. Of several, `judge` chooses.
    window : float, optional
        Use the checkpoints of the last share of the steps from 0 to the last one, in (0, 1]. The
        first of them stands for the steps since the one before it.
    last : int, optional
        Use the last so many checkpoints; not beside `window`.
    every : int, optional
        Use checkpoints at least so many steps apart, counted back from the last one.
    judge : callable or str, optional
        ``judge(path) -> float`` for a checkpoint in the form of `out`; or a command such as
        ``"python eval.py {}"``, run without a shell, with the path for ``{}``: the last number that
        it prints on stdout counts. The best of the profiles and of the latest checkpoint becomes
        `out`. A candidate that it fails on is out, with a warning.
    maximize : bool, default=False
        Whether the largest number is the best; by default it is the least, as of losses.
    judge_timeout : float, optional
        Seconds after which a command is killed, with all that it has started.
    check_finite, include, exclude, adapters, norms, nonfinite, partial, key
        As of `forecast_checkpoint`.
    format, shard_size, overwrite
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
    WfcastError
        Parameters that have no meaning or do not go together, a window that holds fewer than two
        checkpoints, several profiles without a judge, a judge that fails on all candidates.
    CheckpointError
        As `forecast_checkpoint`.
    OSError
        The disk is too small for all candidates, or the output cannot be written. Nothing is
        written after any error, and nothing left behind.

    See Also
    --------
    annealed : The weights, and the papers that they are from.
    extrapolate_run : For runs that drift.
    wfcast.torch.Annealed : The same beside a training loop.
    ReadoutReport : What is returned.

    Notes
    -----
    Checkpoints before whose end less than a rounding error of the weight lies are not read: with
    gamma = 40 the first third of a run.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np, wfcast
    >>> from safetensors.numpy import load_file, save_file
    >>> folder = tempfile.mkdtemp()
    >>> for step in (100, 200, 300, 400):
    ...     save_file({"w": np.array([step], np.float32)}, f"{folder}/step-{step}.safetensors")
    >>> report = wfcast.anneal_run(folder, f"{folder}/out.safetensors", profile=1)
    >>> load_file(report.path)
    {'w': array([312.5], dtype=float32)}

    Several profiles, and a judge that likes 200 best:

    >>> def judge(path):
    ...     return abs(load_file(path)["w"][0] - 200)
    >>> report = wfcast.anneal_run(
    ...     folder, f"{folder}/best.safetensors", [1, 10, "mean"], judge=judge
    ... )
    >>> report.chosen, load_file(report.path)
    ('profile mean', {'w': array([250.], dtype=float32)})
    """
    profiles = several(profile, "profile")
    found = check_run(run, (), "the run", key)
    kept, start = selected(list(found), window, last, every)
    run = {step: found[step] for step in kept}
    made = _without_the_weightless([annealed(kept, one, start) for one in profiles])
    names = [f"profile {short(op.info['profile'])}" for op in made]
    return readout(
        [Candidate(name, op, kept[-1]) for name, op in zip(names, made, strict=True)],
        run,
        out,
        judge_of(judge, maximize, judge_timeout, names, "profile"),
        maximize,
        n_threads,
        check_finite,
        progress,
        include=include,
        exclude=exclude,
        adapters=adapters,
        norms=norms,
        nonfinite=nonfinite,
        partial=partial,
        format=format,
        shard_size=shard_size,
        overwrite=overwrite,
    )


def _without_the_weightless(made: list[Operator]) -> list[Operator]:
    """The operators without the first inputs whose weights, summed, are below rounding in all."""
    coef = [op.coef[ALL] for op in made]
    first = min(int((c[0].cumsum() > EPS).argmax()) for c in coef)
    if first == 0:
        return made
    return [
        Operator(op.inputs[first:], op.targets, c[:, first:], strategy=op.strategy, info=op.info)
        for op, c in zip(made, coef, strict=True)
    ]
