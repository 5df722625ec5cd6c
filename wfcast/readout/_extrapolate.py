"""The weights of a run, some way further."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from operator import add
from typing import Any

from .._adapters import pairs_in
from .._apply import Progress
from .._errors import WfcastError, warn
from .._moves import middle_of, moves
from .._operator import Operator
from .._parameters import threads
from .._patterns import Patterns, chosen
from .._plan import check_pair
from .._runs import check_run, forecastable, has, open_alike, open_run
from ..operators._extrapolate import line_of, target_of
from ..operators._low_rank import in_directions
from ..report._drift import leads_nowhere
from ._choice import Candidate, judge_of, readout, short
from ._judge import Judge
from ._report import ReadoutReport
from ._selection import selected, several

__all__ = ["extrapolate_run"]

SAMPLE = 1 << 16
"""The most weights of a tensor that the drift is told by before a run is extrapolated."""


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

    Warns
    -----
    UserWarning
        Without a judge, a run of three checkpoints at least that does not drift, by the first
        weights of each tensor (`drift` looks at all of them).

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
    found = check_run(run, (), "the run", key)
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
    if judging is None:
        _warn_of_wandering(run, threads(n_threads))
    ordered = tuple(sorted(targets))
    if strategy == "low-rank":
        only_finite = nonfinite == "copy"
        among = include, exclude
        operator = _low_rank(run, ordered, rank, among, adapters, only_finite, partial)
    else:
        operator = line_of(tuple(run), ordered, strategy)
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
        adapters=adapters,
        norms=norms,
        nonfinite=nonfinite,
        partial=partial,
        format=format,
        shard_size=shard_size,
        overwrite=overwrite,
    )


def _low_rank(
    run: Mapping[int, Any],
    targets: tuple[int, ...],
    rank: int,
    patterns: tuple[Patterns | None, Patterns | None],
    adapters: str,
    only_finite: bool,
    partial: bool,
) -> Operator:
    """`low_rank` of what will be forecast: what is copied is not looked at."""
    if partial:
        states = list(open_run(run, tuple(run), "the run").values())
        alike = (t for t in forecastable(states[-1]) if all(has(s, t) for s in states))
        tensors = [t for t in alike if t.size]
    else:
        states, tensors = open_alike(run, "the run")
    among = chosen(states[-1].names, *patterns, f"tensors of {states[-1].what}")
    there = {t.name for t in tensors}
    found = pairs_in(among) if adapters == "product" else {}
    pairs = {name: pair for name, pair in found.items() if there.issuperset(pair)}
    for pair in pairs.values():
        check_pair(states[-1], pair)
    return in_directions(
        tuple(run),
        states,
        targets,
        rank,
        tensors,
        among,
        only_finite=only_finite,
        pairs=pairs,
    )


def _warn_of_wandering(run: Mapping[int, Any], n_threads: int) -> None:
    """Say so where a line leads nowhere, for nobody else will ask."""
    observed = tuple(run)
    if len(observed) < 3:
        return
    states = list(open_run(run, observed, "the run").values())
    found = []
    for tensor in forecastable(states[-1]):
        if tensor.size and all(has(state, tensor) for state in states):
            with suppress(WfcastError):  # NaN: what becomes of it is up to the forecast
                middle = middle_of(observed)
                found.append(moves(states, tensor.name, middle, n_threads, SAMPLE))
    if found and (text := leads_nowhere(reduce(add, found).cosine()[0])):
        warn(text)
