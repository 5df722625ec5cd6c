"""How the states of a run move: sums of products of the moves from each to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from ._apply import nonfinite_error
from ._columns import Label, blocks, value_at
from .checkpoint import Checkpoint

__all__ = ["Moves", "moves"]

Vector = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)

BUFFER = 1 << 20
"""The most elements that differences are held of at a time."""


@dataclass(frozen=True, slots=True)
class Moves:
    """What n states of some weights have in common, from moves ``e_k = w_{k+1} - w_k``.

    Attributes
    ----------
    gram : (n - 1, n - 1) array
        ``sum_i e_ki e_li`` over the weights i. It is of the moves, since sums over the states
        themselves would lose what is small beside the weights.
    moved : (n - 1,) array of int
        The weights of which ``e_k`` is not 0.
    ended : int
        Those that differ between the first and the last state.
    size : int
        The weights.
    """

    gram: Vector
    moved: npt.NDArray[np.int64]
    ended: int
    size: int

    def __add__(self, other: Moves) -> Moves:
        return Moves(
            self.gram + other.gram,
            self.moved + other.moved,
            self.ended + other.ended,
            self.size + other.size,
        )

    @property
    def path_length(self) -> float:
        """``sum_k |e_k|``."""
        return float(np.sqrt(self.gram.diagonal()).sum())

    @property
    def net_move(self) -> float:
        """``|w_last - w_first|``."""
        return math.sqrt(max(0.0, float(self.gram.sum())))

    def cosine(self, middle: int) -> tuple[float, float]:
        """That of the move up to state number `middle` and the move from there on.

        Returns
        -------
        cosine : float
            NaN where one of them is 0, which is told up to rounding.
        error : float
            Its standard error by the jackknife: what leaving out one move after the other does to
            it. The moves count as independent of each other but for what they have in common, and
            the result errs on the safe side, by up to the square root of 2. NaN where a half is a
            single move.
        """
        one, two = slice(0, middle), slice(middle, None)
        within = self.gram[one, one], self.gram[two, two]
        across = self.gram[one, two]
        norms = [_norm(g.sum(), g) for g in within]
        cosine = float(across.sum() / (norms[0] * norms[1]))
        variance = 0.0
        for g, other, shared in ((within[0], norms[1], across), (within[1], norms[0], across.T)):
            n = len(g)
            without = _norm(g.sum() - 2 * g.sum(axis=1) + g.diagonal(), g)
            left = (across.sum() - shared.sum(axis=1)) / (without * other)
            variance += (n - 1) / n * ((left - left.mean()) ** 2).sum() if n > 1 else math.nan
        return float(np.clip(cosine, -1, 1)), math.sqrt(variance)

    @property
    def gram_from_first(self) -> Vector:
        """The (n, n) Gram matrix of ``w_k - w_0``."""
        n = len(self.gram) + 1
        upto = np.tri(n, n - 1, -1)
        return np.asarray(upto @ self.gram @ upto.T)


def _norm(square: Any, gram: Vector) -> Any:
    """The root of a sum of entries of `gram`, NaN where rounding is all that is left of it."""
    return np.sqrt(np.where(square > EPS * len(gram) * gram.trace(), square, math.nan))


def moves(states: Sequence[Checkpoint], name: str, n_threads: int = 0) -> Moves:
    """The moves of one tensor, which all states (two at least) hold alike; it is read once.

    Raises
    ------
    WfcastError
        NaN or infinity in a state.
    """
    columns = [state.column(name).array for state in states]
    shape, n = columns[0].shape, len(states)
    pairs = [*pairwise(range(n)), (0, n - 1)]
    limit = max(1, BUFFER // n)
    held = np.empty((n, min(limit, columns[0].size)))
    total = Moves(np.zeros((n - 1, n - 1)), np.zeros(n - 1, np.int64), 0, 0)
    for index, start, size in blocks(shape, limit):
        part = [c[index] for c in columns]
        difference = held[:, :size]
        for (a, b), row in zip(pairs, difference, strict=True):
            try:
                _core.apply(
                    [part[a], part[b]],
                    [row.reshape(part[a].shape)],
                    np.array([[-1.0, 1.0]]),
                    np.zeros(1),
                    True,
                    n_threads,
                )
            except _core.NonFinite as error:
                _, which, row_at = error.args
                k = (a, b)[which]
                value = value_at(part[k], row_at)
                label = Label("", states[k].label(name))
                raise nonfinite_error(label, value, shape, start + row_at) from None
        gram = _core.gram(list(difference[:-1]), None, n_threads)
        moved = np.count_nonzero(difference != 0, axis=1)
        total += Moves(gram, moved[:-1], int(moved[-1]), size)
    return total
