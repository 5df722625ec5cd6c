"""The line through a run, within the few directions that the run takes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core
from .._adapters import Pair, product_gram
from .._apply import nonfinite_error
from .._columns import Label, value_at
from .._errors import WfcastError
from .._operator import Operator
from .._parameters import ALL
from .._plan import factors_of
from .._runs import check_run, open_alike, steps
from ..checkpoint import Checkpoint, Tensor
from ._linear_trend import linear_trend

__all__ = ["in_directions", "low_rank"]

EPS = float(np.finfo(np.float64).eps)
Vector = npt.NDArray[np.float64]


def low_rank(
    run: Any, targets: Iterable[int], rank: int = 2, *, key: str | None = None
) -> Operator:
    r"""The line through a run, projected on the leading directions that each tensor takes.

    With a row of D for each state of a tensor, less the first state, and with l the coefficients
    that the least-squares line through all states has at a target:

    .. math:: w_{target} = w_{first} + D' U_r U_r' l

    where :math:`U_r` holds the `rank` leading eigenvectors of the Gram matrix :math:`D D'`. What
    leaves the directions :math:`D' U_r` is taken for noise, and left out.

    Parameters
    ----------
    run : {step: checkpoint} or path
        All states count, two at least; a path leads to a folder of checkpoints, of which forecasts
        do not count. A checkpoint is a mapping of names to arrays or tensors, a module, or a path.
        Each tensor is read once.
    targets : iterable of int
        Increasing steps.
    rank : int, default=2
        From 1 to the number of states, which gives `linear_trend`.
    key : str, optional
        As of `forecast_checkpoint`.

    Returns
    -------
    Operator
        With the coefficients of each tensor, which sum to 1.

    Raises
    ------
    WfcastError
        Fewer than two states, another rank, NaN or infinity in a state.
    CheckpointError
        Checkpoints that cannot be read or do not hold the same tensors.

    See Also
    --------
    linear_trend : The line itself, from the steps alone.
    extrapolate : Either of them, some histories further.
    drift : Whether the run leads anywhere.

    Notes
    -----
    Of eigenvalues that are equal at the cut any direction may be taken. Directions below rounding
    are left out: a tensor that never moved stays what it is in the first state.

    References
    ----------
    With rank 1 this is RELEX: Wei et al., "You Only Need Minimal RLVR Training: Extrapolating LLMs
    via Rank-1 Trajectories", arXiv 2605.21468; there the first state, which is no movement, does
    not count for the line.

    Examples
    --------
    >>> import numpy as np, wfcast
    >>> run = {t: {"w": np.array([t, 1.0])} for t in (0, 10, 20)}
    >>> ahead = wfcast.low_rank(run, (30,), rank=1)
    >>> ahead.predict(run)["w"].round(6)
    array([30.,  1.])
    """
    found = check_run(run, (), "the run", key)
    observed = steps(found, "the run")
    states, tensors = open_alike(found, "the run")
    return in_directions(observed, states, targets, rank, tensors)


def in_directions(
    observed: tuple[int, ...],
    states: Sequence[Checkpoint],
    targets: Iterable[int],
    rank: int,
    tensors: Sequence[Tensor],
    among: Container[str] | None = None,
    *,
    only_finite: bool = False,
    pairs: Mapping[str, Pair] | None = None,
) -> Operator:
    """`low_rank` of some tensors, which all states hold alike.

    The line itself, without a look at them, for those that are not `among`, and with `only_finite`
    for those that hold NaN or infinity: they are to be copied. Both factors of one of the `pairs`
    have the coefficients of their product.
    """
    line = linear_trend(observed, targets)
    n = len(observed)
    if not isinstance(rank, Integral) or isinstance(rank, bool) or not 1 <= rank <= n:
        raise WfcastError(
            f"rank is {rank!r}, expected an integer from 1 to {n}, the number of states"
        )
    coef = {t.name: line.coef[ALL] for t in tensors}
    for name in coef if rank < n else ():
        pair = (pairs or {}).get(name)
        if (among is not None and name not in among) or (pair is not None and name == pair.b):
            continue
        try:
            gram = _gram(states, name) if pair is None else _gram_of(states, pair)
        except WfcastError:
            if not only_finite:
                raise
        else:
            coef.update(dict.fromkeys(pair or (name,), _projected(gram, coef[name], int(rank))))
    return Operator(
        observed,
        line.targets,
        coef,
        strategy="low_rank",
        tensors={t.name: (t.shape, t.dtype) for t in tensors},
        base=states[-1].base,
        info={"rank": int(rank)},
    )


def _gram(states: Sequence[Checkpoint], name: str) -> Vector:
    """The (n, n) Gram matrix of a tensor's states less the first.

    It is of differences, since sums over the weights themselves would lose what is small beside
    them.
    """
    first, *others = (state.column(name).array for state in states)
    total = np.zeros((len(states), len(states)))
    try:
        total[1:, 1:] = _core.gram(others, None, 0, first)
    except _core.NonFinite as error:
        _, k, row = error.args
        column, state = (others[k], states[k + 1]) if k < len(others) else (first, states[0])
        label = Label("", state.label(name))
        raise nonfinite_error(label, value_at(column, row), column.shape, row) from None
    return total


def _gram_of(states: Sequence[Checkpoint], pair: Pair) -> Vector:
    """The same of the product of two factors."""
    return product_gram(factors_of(states, pair, True, None))


def _projected(gram: Vector, line: Vector, rank: int) -> Vector:
    """Coefficients (m, n) of the line's (m, n), by the Gram matrix of the states less the first."""
    values, directions = np.linalg.eigh(gram)
    leading = directions[:, -rank:][:, values[-rank:] > EPS * len(gram) * values[-1]]
    coef: Vector = line @ leading @ leading.T
    coef[:, 0] += 1 - coef.sum(axis=1)
    return coef
