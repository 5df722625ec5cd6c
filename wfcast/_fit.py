"""The driver of a fit: passes over segments, several fits beside each other.

A fit is a sequence of passes over segments. The core asks for a pass as long as it needs one; a
segment is handed over in slices of a few million rows, fewer where rows are wide, so that Ctrl-C is
answered between slices and a progress bar can move.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _core
from ._apply import Progress, nonfinite_error
from ._columns import Array, Label, blocks, value_at
from ._errors import ConvergenceError, WfcastError
from ._parameters import threads

__all__ = ["Segment", "Solving", "set_fitted", "solve", "solve_all", "solving"]

SLICE_ROWS = 1 << 22
SLICE_VALUES = 1 << 25
SLICE_PRODUCTS = 1 << 33
SMALL_VALUES = 1 << 26  # of a fit that takes little memory to solve, so that several can go on
ROUNDING = 1e-12  # what a few products and sums leave, and more
SMALLEST = 1e-280  # squares below it have lost digits, or are gone
HELPERS = 2  # solves beside a pass: as many as threads that a pass leaves idle when it waits

Gather = Callable[[bytes], list[bytes]]
"""What one process has to say -> what each of them has to say, in their order."""

Solving = Generator[Callable[[], None], None, dict[str, Any]]
"""A fit that stops where there is something to be solved before it can read on: see `solve_all`."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Some rows of a fit, all read in one piece.

    Attributes
    ----------
    shape : tuple of int
        The shape of the columns.
    load : callable
        Gives the p input and m target arrays; called once per pass.
    group : int, ndarray or None
        The trajectory of all rows, or of each row; None without the hinge.
    labels : sequence of Label
        What a message calls each of the p + m columns.
    start : int
        Which of all rows of the fit the first one is.
    """

    shape: tuple[int, ...]
    load: Callable[[], tuple[list[Array], list[Array]]]
    group: Any
    labels: Sequence[Label]
    start: int = 0


def solving(
    segments: Sequence[Segment],
    p: int,
    m: int,
    *,
    params: Mapping[str, Any],
    first_update: Array | None,
    n_rows: int | None = None,
    gather: Gather | None = None,
    name: str = "",
    what: str = "",
    progress: Progress | None = None,
) -> Solving:
    """Fit one coefficient set to all rows of all segments; for `solve` or `solve_all` to run.

    Parameters
    ----------
    segments : sequence of Segment
    p, m : int
        The number of inputs and of targets.
    params : mapping
        loss, beta, alpha, fit_intercept, tol and n_threads, all checked.
    first_update : (S,) float64 array or None
        c_s of each trajectory; None without the hinge.
    n_rows : int, optional
        The number of rows of all processes; by default that of the segments.
    gather : callable, optional
        Gives what each process gathered in a pass to all of them; None for one by itself.
    name, what : str
        What is being fitted: for the progress bar, and for messages.

    Returns
    -------
    dict
        coef (m, p), intercept (m,), objective, dual_gap, n_passes, rank, converged; and null, whose
        rows of p + 1 numbers are directions in which coefficients and intercept can change without
        a change of any forecast.

    Raises
    ------
    WfcastError
        NaN or infinity in the data, with its column and row.
    ConvergenceError
        The certified gap is above `tol`.
    """
    prefix = what and f"{what}: "
    n_here = sum(math.prod(s.shape) for s in segments)
    n_rows = n_here if n_rows is None else n_rows
    wide = max(1 << 10, min(SLICE_VALUES // (p + m), SLICE_PRODUCTS // (p * (p + m))))
    limit = min(SLICE_ROWS, wide)
    try:
        fit = _core.Fit(
            p,
            m,
            n_rows=n_rows,
            n_here=n_here,
            loss=params["loss"],
            fit_intercept=bool(params["fit_intercept"]),
            beta=float(params["beta"]),
            alpha=float(params["alpha"]),
            tol=float(params["tol"]),
            first_update=first_update,
            n_threads=threads(params["n_threads"]),
        )
        while fit.needs_pass():
            for segment in segments:
                _accumulate(fit, segment, p, limit, name, progress)
            if gather is not None:
                fit.absorb(gather(fit.export()))
            if n_rows * (p + m) <= SMALL_VALUES:
                yield fit.advance
            else:
                fit.advance()
        result: dict[str, Any] = dict(fit.result())
        vanished = result["converged"] and len(result["null"]) > 0
        if params["loss"] == "squared_error" and vanished:
            centred = bool(params["fit_intercept"])
            _check_squares(segments, p, centred, threads(params["n_threads"]))
    except WfcastError:
        raise
    except ValueError as error:
        raise WfcastError(f"{prefix}{error}") from error
    solution = np.append(result["coef"].ravel(), (*result["intercept"], result["objective"]))
    if math.isnan(result["dual_gap"]) or not np.isfinite(solution).all():
        raise ConvergenceError(
            f"{prefix}the data or their squares leave the range of float64: scale X and Y alike "
            "by a power of two"
        )
    if not result["converged"] or not result["dual_gap"] <= params["tol"]:
        raise ConvergenceError(
            f"{prefix}the fit ended after {result['n_passes']} passes with a "
            f"certified relative gap of {result['dual_gap']:.3g}, above tol={params['tol']:g}; "
            "raise tol to accept it"
        )
    return result


def solve(fit: Solving) -> dict[str, Any]:
    """The result of one fit, in this thread, where Ctrl-C ends the solver, too."""
    return _run({"": fit}, _Here(), 1)[""]


def solve_all(fits: Mapping[str, Solving], n_threads: Any) -> dict[str, dict[str, Any]]:
    """The results of several fits, in their order.

    A pass over the data takes all threads, and waits for the disk; what comes after it takes one
    thread per target. So small fits are solved beside the passes of the next ones. Which pass comes
    after which depends on nothing but how many passes each fit takes.
    """
    helpers = min(HELPERS, (threads(n_threads) or _core.config()["n_threads"]) - 1)
    if helpers == 0 or len(fits) == 1:
        return {key: solve(fit) for key, fit in fits.items()}
    pool = ThreadPoolExecutor(helpers, "wfcast-solve")
    try:
        results = _run(fits, pool, helpers + 1)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for a solver
    return {key: results[key] for key in fits}


class _Here:
    """An executor that does it at once."""

    def submit(self, work: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        try:
            work()
            done.set_result(None)
        except BaseException as error:  # Ctrl-C among them
            done.set_exception(error)
        return done


def _run(
    fits: Mapping[str, Solving], executor: ThreadPoolExecutor | _Here, most: int
) -> dict[str, dict[str, Any]]:
    """The results, by and by; at `most` so many fits are under way."""
    results: dict[str, dict[str, Any]] = {}
    waiting = iter(fits.items())
    under_way: deque[tuple[str, Solving, Future[None]]] = deque()
    while True:
        fresh = next(waiting, None) if len(under_way) < most else None
        try:
            if fresh is not None:
                key, fit = fresh
                work = next(fit)
            elif under_way:
                key, fit, solved = under_way.popleft()
                error = solved.exception()
                work = next(fit) if error is None else fit.throw(error)
            else:
                return results
        except StopIteration as end:
            results[key] = end.value
        else:
            under_way.append((key, fit, executor.submit(work)))


def _check_squares(segments: Sequence[Segment], p: int, centred: bool, n_threads: int) -> None:
    """Raise ValueError where inputs that differ look the same, as their squares are too small."""
    for segment in segments:
        for k, column in enumerate(segment.load()[0][:p]):
            if column.size:
                level = column[(0,) * column.ndim] if centred else column.dtype.type(0)
                sums = _core.error_sums(column, np.broadcast_to(level, column.shape), n_threads)
                if sums["max_abs"] and sums["max_abs"] ** 2 * sums["n"] < SMALLEST:
                    raise ValueError(
                        f"the squares of {segment.labels[k].column} leave the range of float64: "
                        "scale the data"
                    )


def nearest(result: Mapping[str, Any], wanted: Array) -> tuple[Array, Array]:
    """Of coefficients and intercepts that forecast alike, those nearest to the wanted ones.

    Inputs that are equal in all rows, as of frozen weights, leave it open which of them counts.

    Parameters
    ----------
    result : mapping
        Of a fit.
    wanted : (m, p) array
        With intercepts of 0.

    Returns
    -------
    coef : (m, p) array
    intercept : (m,) array
    """
    coef, intercept, null = result["coef"], result["intercept"], result["null"]
    if not len(null):
        return coef, intercept
    given = np.column_stack([coef, intercept])
    aim = np.column_stack([wanted, np.zeros(len(wanted))])
    directions = (null / np.abs(null).max(axis=1, keepdims=True)).T
    step = directions @ np.linalg.lstsq(directions, (aim - given).T, rcond=None)[0]
    found = given + step.T
    rounding = ROUNDING * (np.abs(given) + np.abs(step.T))
    rounding[:, :-1] = rounding[:, :-1].max(axis=1, keepdims=True)
    found = np.where(np.abs(found - aim) <= rounding, aim, found)
    return np.ascontiguousarray(found[:, :-1]), np.ascontiguousarray(found[:, -1])


def set_fitted(estimator: Any, **fitted: Any) -> None:
    """Replace the attributes of a fit (they end in ``_``) at one stroke, which Ctrl-C can't cut."""
    kept = {k: v for k, v in vars(estimator).items() if not k.endswith("_")}
    estimator.__dict__ = kept | fitted


def _accumulate(
    fit: Any, segment: Segment, p: int, limit: int, name: str, progress: Progress | None
) -> None:
    x, y = segment.load()
    for index, start, size in blocks(segment.shape, limit):
        group = segment.group
        if isinstance(group, np.ndarray):
            group = group[index]
        try:
            fit.accumulate(
                [a[index] for a in x], [a[index] for a in y], group, segment.start + start
            )
        except _core.NonFinite as error:
            _, k, row = error.args
            array = (x + y)[k]
            raise nonfinite_error(
                segment.labels[k], value_at(array, start + row), array.shape, start + row
            ) from None
        if progress is not None:
            progress(name, size)
