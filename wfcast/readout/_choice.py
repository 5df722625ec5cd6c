"""The candidates, written; and which of them is kept."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from .._apply import Progress
from .._atomic import check_target, put_in_place, scratch_folder
from .._errors import CheckpointError, DtypeError, WfcastError, warn
from .._forecast import ForecastReport, Job, prepare, write
from .._operator import Operator
from .._parameters import ALL, threads
from ..operators import persistence
from ._judge import CommandJudge, Judge, number_by
from ._report import LATEST, ReadoutReport

__all__ = ["Candidate", "judge_of", "readout", "short"]

AT_ONCE = 6
"""The outputs that are written in one sweep: each has some blocks of memory."""


class Candidate(NamedTuple):
    """What may become the output: an operator at one of its targets."""

    name: str
    operator: Operator
    step: int


def short(value: Any) -> str:
    """A number without a needless ".0", and all of its digits: names tell candidates apart."""
    return str(value).removesuffix(".0")


def judge_of(
    judge: str | Judge | None,
    maximize: bool,
    timeout: float | None,
    names: Sequence[str],
    what: str,
) -> Judge | None:
    """The judge, as a function; None where there is nothing to choose."""
    for k, name in enumerate(names):
        if name in names[:k]:
            raise WfcastError(f"{name} is given twice, expected different values of {what}")
    if judge is None:
        if len(names) > 1:
            raise WfcastError(
                f"{len(names)} values of {what} are given and no judge to choose by: give one "
                f"value, or a judge (--judge 'python eval.py {{}}')"
            )
        if maximize or timeout is not None:
            given = "maximize" if maximize else "judge_timeout"
            raise WfcastError(f"{given} is given without a judge")
        return None
    if isinstance(judge, str):
        return CommandJudge(judge, timeout)
    if not callable(judge):
        raise DtypeError(
            f"judge is a {type(judge).__name__}, expected a function of a path, or a command"
        )
    if timeout is not None:
        raise WfcastError("judge_timeout goes with a command, and the judge is a function")
    return judge


def readout(
    candidates: Sequence[Candidate],
    run: dict[int, Any],
    out: str | os.PathLike[str],
    judge: Judge | None,
    maximize: bool,
    n_threads: int | None,
    check_finite: bool,
    progress: Progress | None,
    **options: Any,
) -> ReadoutReport:
    """Write the candidate, or the one of them that the judge likes best."""
    threads(n_threads)
    for candidate in candidates:
        candidate.operator.n_threads = n_threads
    first = candidates[0]
    job = prepare(first.operator, run, first.step, out, **options)
    check_target(job.target, folder=job.layout.folder)
    if judge is None:
        _check_room(job, 1)
        (written,) = write([job], check_finite, progress)
        told = [{"name": first.name, "number": None, "failed": ""}]
        return _report(first, told, maximize, written)
    _check_room(job, len(candidates) + 1)
    with scratch_folder(job.target) as folder:
        paths = [folder / _slug(c.name) / job.target.name for c in candidates]
        jobs = [job.other(c.operator, c.step, p) for c, p in zip(candidates, paths, strict=True)]
        last = job.plan.operator.inputs[-1]
        latest = Candidate(LATEST, persistence((last,), (last,)), last)
        jobs.append(job.latest(latest.operator, folder / LATEST / job.target.name))
        written_all: list[ForecastReport] = []
        for one in jobs:
            one.target.parent.mkdir()
        for k in range(0, len(jobs), AT_ONCE):
            written_all += write(jobs[k : k + AT_ONCE], check_finite, progress)
        every = [*candidates, latest]
        told = [_judged(c.name, j.target, judge) for c, j in zip(every, jobs, strict=True)]
        best = _best(told, maximize)
        put_in_place(jobs[best].target, job.target, replace=job.overwrite)
    return _report(every[best], told, maximize, replace(written_all[best], path=job.target))


def _check_room(job: Job, n: int) -> None:
    """Raise CheckpointError where the disk is too small: to know before long work."""
    usage = shutil.disk_usage(job.target.parent)
    needed, free = n * job.nbytes, usage.free
    if needed > free and usage.total:  # some network file systems say 0 of everything
        what = (
            "it takes" if n == 1 else f"the {n} candidates, the latest checkpoint among them, take"
        )
        raise CheckpointError(
            f"cannot write {str(job.target)!r}: {what} {needed:,} bytes while being made, and "
            f"{free:,} are free"
        )


def _slug(name: str) -> str:
    """A name of a folder: that of a decay function may be anything."""
    return re.sub(r"[^\w.+-]+", "-", name)[:100]


def _judged(name: str, path: Path, judge: Judge) -> dict[str, Any]:
    try:
        return {"name": name, "number": number_by(judge, path), "failed": ""}
    except WfcastError as error:
        return {"name": name, "number": None, "failed": " ".join(str(error).split())}


def _best(told: list[dict[str, Any]], maximize: bool) -> int:
    """The place of the best; of equals the first, so that the latest checkpoint is the last."""
    failed = {c["name"]: c["failed"] for c in told if c["failed"]}
    if len(failed) == len(told):
        why = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise WfcastError(f"no candidate could be judged, and nothing is written: {why}")
    for name, reason in failed.items():
        warn(f"{name} is out: {reason}")
    judged = [k for k, one in enumerate(told) if not one["failed"]]
    sign = -1 if maximize else 1
    return min(judged, key=lambda k: sign * told[k]["number"])


def _report(
    candidate: Candidate, told: list[dict[str, Any]], maximize: bool, written: ForecastReport
) -> ReadoutReport:
    operator, weights = candidate.operator, {}
    if ALL in operator.coef:
        row = operator.coef[ALL][operator.horizon(candidate.step)]
        weights = dict(zip(operator.inputs, row.tolist(), strict=True))
    return ReadoutReport(
        written.path, candidate.step, candidate.name, weights, told, maximize, written
    )
