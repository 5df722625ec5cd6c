"""LoRA's factors over a history: it is their products that a jump goes along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .._adapters import check_shapes, pairs_in
from .._errors import WfcastError
from .._live.tensors import Slot
from ..operators._linear_trend import coefficients as line
from ._store import Kept, Store

MOST = 16  # states of a history; where there are more, every other one is let go of


def places_of(slots: Sequence[Slot]) -> list[tuple[int, int]]:
    """Where among the parameters the factors A and B of each pair are.

    A factor that is trained without the other one is no pair: the product is linear in it.

    Raises
    ------
    WfcastError
        A pair whose factors are spread over processes, of all experts of a layer, of shapes that
        have no product, or AdaLoRA's.
    """
    where = {slot.name: i for i, slot in enumerate(slots)}
    pairs = sorted(set(pairs_in(where, lone=True).values()))
    for pair in pairs:
        a, b = pair
        of_a, of_b = (slots[where[name]].parameter.shape for name in pair)
        check_shapes(pair, of_a, of_b, "the model")
        if hasattr(slots[where[a]].parameter, "device_mesh"):
            raise WfcastError(
                f"{a!r} is spread over processes, and its product with {b!r} needs all of it: pass "
                "adapters='factors', or exclude them"
            )
    return [(where[a], where[b]) for a, b in pairs]


class Factors:
    """The states of some parameters in a history, a bounded number of them.

    Parameters
    ----------
    store : Store
    places : sequence of (int, int)
        Of the factors among the parameters.
    """

    def __init__(self, store: Store, places: Sequence[tuple[int, int]]) -> None:
        self._store = store
        self._at = {place: i for i, place in enumerate(p for pair in places for p in pair)}
        self._kept: dict[float, Kept] = {}
        self._skip = 1  # of so many states that come, the first is kept
        self._seen = 0

    def add(self, tensors: Sequence[torch.Tensor], x: float, last: bool) -> None:
        """Take in the state x steps after the first; the `last` one counts in any case."""
        take = last or self._seen % self._skip == 0
        self._seen += 1
        if not take or x in self._kept:
            return
        self._kept[x] = self._store.keep([tensors[place] for place in self._at])
        if len(self._kept) > MOST:
            for odd in list(self._kept)[1:-1:2]:
                self._store.release(self._kept.pop(odd))
            self._skip *= 2

    def states(self, pair: tuple[int, int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The factors of a pair, oldest first."""
        a, b = (self._at[place] for place in pair)
        return [(kept.settled()[a], kept.settled()[b]) for kept in self._kept.values()]

    def coefficients(self, x: float) -> list[float]:
        """Of the states, that give the least-squares line x steps after the first."""
        return [float(c) for c in line(np.array(list(self._kept)), np.array([x]))[0]]

    def clear(self) -> None:
        """Begin anew."""
        for kept in self._kept.values():
            self._store.release(kept)
        self._kept, self._skip, self._seen = {}, 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        return {
            "states": {x: [t.clone() for t in k.settled()] for x, k in self._kept.items()},
            "skip": self._skip,
            "seen": self._seen,
        }

    def load_state_dict(self, state: dict[str, Any], beside: Sequence[torch.Tensor]) -> None:
        """Go on from there; `beside` are the parameters."""
        self.clear()
        here = [beside[place] for place in self._at]
        for x, saved in state["states"].items():
            self._kept[float(x)] = self._store.keep_beside(saved, here)
        self._skip, self._seen = state["skip"], state["seen"]
