"""The least-squares line of each weight through a history, from two running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._live.tensors import Vector, local
from ._store import Kept, Store


class Line:
    r"""The line through the states of a history, without a list of them.

    With ``d_k = w_k - w_0`` of the state x_k steps after the first, the sums over the n states so
    far ``X = sum x_k``, ``Q = sum x_k^2``, ``P = sum d_k`` and ``R = sum x_k d_k`` give the line at
    x: ``w_0 + P / n + (x - X / n) (R - X / n P) / (Q - X^2 / n)``. P and R are kept in float32, in
    float64 for weights of that dtype.

    Parameters
    ----------
    store : Store
        Where the sums are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._sums: Kept | None = None  # P, and after it R
        self._moments = (1, 0.0, 0.0)  # n, X, Q
        self.last = 0.0  # steps after the first state of the latest one
        self._fresh: tuple[float, Kept] | None = None  # on its way from a device, added later

    def add(self, first: Kept, tensors: Sequence[torch.Tensor], x: float) -> None:
        """Take in the state `x` steps after the first one, which counts from the beginning.

        Raises
        ------
        OSError
            The disk is full or fails.
        """
        self._settle(first)
        here = [local(t) for t in tensors]
        if self._sums is None:
            self._sums = self._store.zeros([*here, *here])
        away = any(s.device != w.device for s, w in zip(self._sums.tensors, here, strict=False))
        if away:
            self._fresh = (x, self._store.keep(here))
        else:
            self._take(first, here, x)
        n, total, squares = self._moments
        self._moments, self.last = (n + 1, total + x, squares + x * x), x

    def _settle(self, first: Kept) -> None:
        """Take in the state that was on its way."""
        if self._fresh is not None:
            x, kept = self._fresh
            self._fresh = None
            self._take(first, kept.settled(), x)
            self._store.release(kept)

    def _take(self, first: Kept, weights: Sequence[torch.Tensor], x: float) -> None:
        assert self._sums is not None
        n = len(weights)
        begun = first.settled()

        def change(places: range, sums: list[torch.Tensor]) -> None:
            kinds = [s.dtype for s in sums]
            now = [weights[i % n].to(k) for i, k in zip(places, kinds, strict=True)]
            then = [begun[i % n].to(k) for i, k in zip(places, kinds, strict=True)]
            moved = torch._foreach_sub(now, then)
            if any(i >= n for i in places):
                torch._foreach_mul_(moved, [x if i >= n else 1.0 for i in places])
            torch._foreach_add_(sums, moved)

        with torch.no_grad():
            self._sums = self._store.changed(self._sums, change)

    def states(self, first: Kept) -> list[list[torch.Tensor]]:
        """w_0, P and R, that `coefficients` belong to."""
        self._settle(first)
        assert self._sums is not None
        sums, n = self._sums.settled(), len(first.tensors)
        return [first.settled(), sums[:n], sums[n:]]

    def coefficients(self, x: float) -> Vector:
        """Those of `states` that give the line, x steps after the first state."""
        n, total, squares = self._moments
        middle = total / n
        slope = (x - middle) / (squares - middle * total)
        return np.array([1.0, 1 / n - slope * middle, slope])

    @property
    def n_states(self) -> int:
        """How many it goes through."""
        return self._moments[0]

    def clear(self) -> None:
        """Begin anew."""
        for kept in (self._sums, self._fresh and self._fresh[1]):
            if kept:
                self._store.release(kept)
        self._sums, self._fresh = None, None
        self._moments, self.last = (1, 0.0, 0.0), 0.0

    def state_dict(self, first: Kept | None) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        sums: list[torch.Tensor] = []
        if self._sums is not None:
            assert first is not None
            self._settle(first)
            sums = [t.clone() for t in self._sums.settled()]
        return {"sums": sums, "moments": list(self._moments), "last": self.last}

    def load_state_dict(self, state: dict[str, Any], beside: Sequence[torch.Tensor]) -> None:
        """Go on from there; `beside` are the parameters."""
        self.clear()
        n, total, squares = state["moments"]
        self._moments = (int(n), float(total), float(squares))
        self.last = float(state["last"])
        if state["sums"]:
            self._sums = self._store.keep_beside(state["sums"], [*beside, *beside])
