"""What a run's next jump needs of its past: when that is due, and where it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._errors import WfcastError
from .._live import distributed
from .._live.tensors import movements, products, share
from ._coefficients import History, Source
from ._factors import Factors
from ._line import Line
from ._rule import Movement, momentum_of
from ._store import Kept, Store
from ._training import Training


class NoMovement(Exception):
    """What is in the way of telling how a run moved, the same in all processes."""


class Recording:
    """States of a run by clock, the steps of its trajectory.

    Attributes
    ----------
    kept : dict of int to Kept
        The states, by clock.
    since : int
        The clock at which the history begins: from there on states follow each other without a
        jump between them.
    source : Source
        The coefficients of jumps; says which states they need.
    """

    def __init__(
        self,
        training: Training,
        source: Source,
        store: Store,
        *,
        spacing: int,
        since: int,
        dtype: torch.dtype | None,
        moves: bool,
    ) -> None:
        self.source, self.since = source, since
        self.kept: dict[int, Kept] = {}
        self._training, self._store = training, store
        self._spacing, self._dtype = spacing, dtype
        self._moves = moves  # whether somebody will ask for the movement
        self._middle: int | None = None
        self._line: Line | None = None
        self._factors: Factors | None = None
        if isinstance(source, History):
            self._line = source.line = Line(store)
            if training.pairs:
                self._factors = Factors(store, training.pairs)

    # ---- when ---------------------------------------------------------------------------------

    def earliest(self, wanted: int) -> int:
        """The first clock from `wanted` on at which a jump can have its history."""
        halves = 2 if self._moves or self._line is not None else 0
        return max(wanted, self.since + max(self.source.offsets[0], halves))

    def due(self, clock: int, jump: int) -> bool:
        """Whether a jump at the clock `jump` needs something of this one."""
        return clock >= self.since and (clock in self._states(jump) or self._adds(clock, jump))

    def _states(self, jump: int) -> set[int]:
        """The clocks of the single states that a jump needs."""
        found = {jump - offset for offset in self.source.offsets[:-1]}
        if self._moves:
            found.add(self._half(jump))
        if self._moves or self._line is not None:
            found.add(self.since)
        return {clock for clock in found if clock >= self.since}

    def _half(self, jump: int) -> int:
        return self.since + (jump - self.since) // 2

    def _adds(self, clock: int, jump: int) -> bool:
        """Whether a state is one of those that the line goes through; without its first, none."""
        if self._line is None or self.since not in self.kept:
            return False
        return clock >= jump or (clock - self.since) % self._spacing == 0

    def complete(self, clock: int) -> bool:
        """Whether all that a jump starts from is there."""
        needed = {clock - offset for offset in self.source.offsets[:-1]}
        if self._moves or self._line is not None:
            needed.add(self.since)
        return needed <= self.kept.keys() and (not self._moves or self._middle is not None)

    # ---- what ---------------------------------------------------------------------------------

    def record(self, clock: int, jump: int, step: int) -> str:
        """Keep what a jump at the clock `jump` needs of this one.

        Returns
        -------
        str
            What was in the way, in any process; empty where nothing was.

        Raises
        ------
        WfcastError
            Parameters of the model or the optimizer came, went, were replaced or changed shapes.
        """
        try:
            with distributed.together(OSError) as came_to:
                self._keep(clock, jump)
        except BaseException:  # sums may be half of the old ones
            self.begin(clock + 1)
            raise
        if came_to.problem:
            self._drop(clock)
            return f"no state could be kept at step {step}: {came_to.problem}"
        if (
            self._moves
            and clock in self.kept.keys() - {self.since}
            and (self._middle is None or clock == self._half(jump))
        ):
            self._middle = clock
        return ""

    def _keep(self, clock: int, jump: int) -> None:
        """Keep it."""
        self._training.check_unchanged()
        if clock in self._states(jump) and clock not in self.kept:
            # the first state of a line is exact, as all others differ from it
            exact = self._line is not None and clock == self.since
            self.kept[clock] = self._store.keep(
                self._training.parameters, None if exact else self._dtype
            )
        if self._line is not None and self._adds(clock, jump) and clock > self.since:
            passed = float(clock - self.since)
            if passed != self._line.last:
                self._line.add(self.kept[self.since], self._training.weights, passed)
        if self._factors is not None and self._adds(clock, jump):
            passed = float(clock - self.since)
            self._factors.add(self._training.weights, passed, clock >= jump)

    def movement(self, clock: int) -> Movement | None:
        """How the run moved since the history began; None where nobody asks.

        Raises
        ------
        NoMovement
            NaN or infinity in a parameter or a state, in any process.
        """
        if not self._moves:
            return None
        assert self._middle is not None
        slots, now = self._training.slots, self._training.weights
        names = [f"parameter {slot.name!r}" for slot in slots]
        with distributed.together(ValueError) as came_to:
            first, middle = self.kept[self.since].settled(), self.kept[self._middle].settled()
            sums = movements(
                (name, [a, b, b, c])
                for name, a, b, c in zip(names, first, middle, now, strict=True)
            )
            norms = products((name, [w], None) for name, w in zip(names, now, strict=True))
        if came_to.problem:
            raise NoMovement(came_to.problem)
        shares = np.array([share(slot.parameter) for slot in slots])
        found = np.concatenate([sums.reshape(-1, 4), norms.reshape(-1, 1)], 1) * shares[:, None]
        found = distributed.add_up(found.ravel()).reshape(found.shape)
        if self._training.pairs:
            found[:, 4] = 0  # what trains is small beside the frozen weights that it adds to
        return Movement(
            clock - self.since,
            found[:, :4].reshape(-1, 2, 2),
            found[:, 4],
            momentum_of(self._training.optimizer),
            self.since,
        )

    def before(self, clock: int) -> list[list[torch.Tensor]]:
        """The states that a jump at `clock` starts from, but for the weights at that time."""
        if self._line is not None:
            return self._line.states(self.kept[self.since])
        return [self.kept[clock - offset].settled() for offset in self.source.offsets[:-1]]

    def product(
        self, pair: tuple[int, int], clock: int, horizon: float
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[float]]:
        """The states of a pair of LoRA's factors, and the coefficients of their products.

        Raises
        ------
        WfcastError
            The forecaster has other coefficients for one factor than for the other, or intercepts.
        """
        if self._factors is not None:
            return self._factors.states(pair), self._factors.coefficients(
                float(clock - self.since) + horizon
            )
        names = [self._training.slots[place].name for place in pair]
        (a, shift), (b, other) = (self.source.coefficients(name, horizon) for name in names)
        if shift or other or not np.array_equal(a, b):
            raise WfcastError(
                f"the forecaster has not the same coefficients for {names[0]!r} and {names[1]!r}, "
                "or intercepts, and so none for their product: pass adapters='factors'"
            )
        states = [*self.before(clock), self._training.weights]
        return [(state[pair[0]], state[pair[1]]) for state in states], [float(c) for c in a]

    # ---- memory -------------------------------------------------------------------------------

    def prune(self, clock: int, jump: int) -> None:
        """Let go of all that a jump at the clock `jump` does not need."""
        wanted = {self._middle, *self._states(jump)}
        for other in self.kept.keys() - wanted:
            self._drop(other)

    def begin(self, clock: int) -> None:
        """A history begins at this clock; what was before it is let go of."""
        for other in list(self.kept):
            self._drop(other)
        if self._line is not None:
            self._line.clear()
        if self._factors is not None:
            self._factors.clear()
        self._middle, self.since = None, clock

    def forget(self) -> None:
        """No jump will follow: the memory is given back."""
        self.begin(self.since)
        self._store.clear()

    def _drop(self, clock: int) -> None:
        kept = self.kept.pop(clock, None)
        if kept is not None:
            self._store.release(kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        first = self.kept.get(self.since)
        return {
            "offsets": list(self.source.offsets),
            "since": self.since,
            "middle": self._middle,
            "states": {c: [t.clone() for t in k.settled()] for c, k in self.kept.items()},
            "line": None if self._line is None else self._line.state_dict(first),
            "factors": None if self._factors is None else self._factors.state_dict(),
        }

    def check_saved(self, state: dict[str, Any]) -> None:
        """Raise WfcastError where a state was saved with another kind of forecaster."""
        if (state["line"] is None) != (self._line is None):
            kinds = ("with a forecaster", "with forecaster=None")
            here = self._line is not None
            raise WfcastError(
                f"the state was saved {kinds[not here]}, expected one saved {kinds[here]}, as this "
                "Farcasting has"
            )
        if list(state["offsets"]) != list(self.source.offsets):
            raise WfcastError(
                f"the state was saved with a forecaster of states {list(state['offsets'])} steps "
                f"before a jump, and this one needs those {list(self.source.offsets)} before it"
            )
        if (state["factors"] is None) != (self._factors is None):
            raise WfcastError(
                "the state was saved with another value of `adapters` than this Farcasting has"
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the state is one that `check_saved` lets pass."""
        self.forget()
        weights = self._training.weights
        self.since, self._middle = state["since"], state["middle"]
        self.kept = {
            int(clock): self._store.keep_beside(saved, weights)
            for clock, saved in state["states"].items()
        }
        if self._line is not None:
            self._line.load_state_dict(state["line"], weights)
        if self._factors is not None:
            self._factors.load_state_dict(state["factors"], weights)
