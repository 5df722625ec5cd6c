"""How the states of a run move, and what the moves of its halves have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from ._apply import nonfinite_error
from ._columns import Label, blocks, value_at
from .checkpoint import Checkpoint

__all__ = ["Moves", "middle_of", "moves"]

Vector = npt.NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


def middle_of(steps: Sequence[int]) -> int:
    """Which state is nearest to the middle of the steps, the earlier of two, between the ends.

    Where there is none between them, the first one.
    """
    inner = range(1, len(steps) - 1)
    return min(inner, key=lambda k: abs(2 * steps[k] - steps[0] - steps[-1]), default=0)


@dataclass(frozen=True, slots=True)
class Moves:
    """Sums over the weights of states ``w_k``, with moves ``e_k = w_k - w_{k-1}``.

    Attributes
    ----------
    size : int
        The weights.
    middle : int
        The state that ends the first half, whose move is ``a = w_middle - w_0``; that of the other
        is ``b = w_last - w_middle``.
    sums : (n, 5) array
        For each state the sums of ``w_k^2, e_k^2, e_k a, e_k b``, and how many ``e_k`` are not 0;
        ``e_0`` stands for ``w_last - w_0``.
    """

    size: int
    middle: int
    sums: Vector

    def __add__(self, other: Moves) -> Moves:
        return Moves(self.size + other.size, self.middle, self.sums + other.sums)

    @property
    def path_length(self) -> float:
        """``sum_k |e_k|``."""
        return float(np.sqrt(self.sums[1:, 1]).sum())

    @property
    def net_move(self) -> float:
        """``|w_last - w_0|``."""
        return math.sqrt(self.sums[0, 1])

    @property
    def moved(self) -> float:
        """The share of weights that differ between the first and the last state."""
        return float(self.sums[0, 4]) / self.size

    @property
    def moved_between(self) -> float:
        """The same between neighbours, on average."""
        return float(self.sums[1:, 4].mean()) / self.size

    def cosine(self) -> tuple[float, float]:
        """That of the moves of the halves, a and b.

        Returns
        -------
        cosine : float
            NaN where one of them is 0, which is told up to rounding.
        error : float
            Its standard error by the jackknife: what leaving out one move e_k after the other does
            to it. The moves count as independent but for what they all have in common, and the
            result errs on the safe side, by up to the square root of 2. NaN where a half is a
            single move.
        """
        halves = self.sums[1 : self.middle + 1, 1:4], self.sums[self.middle + 1 :, 1:4]
        squares = halves[0][:, 1].sum(), halves[1][:, 2].sum()
        product = halves[0][:, 2].sum()
        least = [EPS * len(half) * half[:, 0].sum() for half in halves]
        norms = [_root(square, least[h]) for h, square in enumerate(squares)]
        variance = 0.0
        for h, (ee, *shared) in enumerate(half.T for half in halves):
            own, other = shared[h], shared[1 - h]
            without = _root(squares[h] - 2 * own + ee, least[h])
            left = (product - other) / (without * norms[1 - h])
            n = len(left)
            variance += (n - 1) * float(left.var()) if n > 1 else math.nan
        return float(np.clip(product / (norms[0] * norms[1]), -1, 1)), math.sqrt(variance)


def _root(square: Any, least: float) -> Any:
    """The square root, NaN where rounding is all that is left of the square."""
    return np.sqrt(np.where(square > least, square, math.nan))


def moves(
    states: Sequence[Checkpoint],
    name: str,
    middle: int,
    n_threads: int = 0,
    most: int | None = None,
) -> Moves:
    """The moves of one tensor, which all states hold alike; it is read once.

    Of a large one only its first `most` weights, where that is given.

    Raises
    ------
    WfcastError
        NaN or infinity in a state.
    """
    columns = [state.column(name).array for state in states]
    if most is not None:
        index, _, _ = next(blocks(columns[0].shape, most))
        columns = [column[index] for column in columns]
    try:
        return Moves(columns[0].size, middle, _core.halves(columns, middle, n_threads))
    except _core.NonFinite as error:
        _, k, row = error.args
        label = Label("", states[k].label(name))
        raise nonfinite_error(label, value_at(columns[k], row), columns[k].shape, row) from None
