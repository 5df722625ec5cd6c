"""The states of a run that the next jump needs: when they are due, and where they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .._live import distributed
from ._coefficients import Source
from ._store import Kept, Store
from ._training import Training


class Recording:
    """States of a run by clock, the steps of its trajectory.

    Attributes
    ----------
    kept : dict of int to Kept
        The states, by clock.
    since : int
        The clock from which states follow each other without a jump between them.
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
    ) -> None:
        self.source, self.since = source, since
        self.kept: dict[int, Kept] = {}
        self._training, self._store = training, store
        self._spacing, self._dtype = spacing, dtype
        self._moves: list[tuple[int, int]] = []  # recorded pairs one spacing apart

    # ---- when ---------------------------------------------------------------------------------

    def earliest(self, wanted: int) -> int:
        """The first clock from `wanted` on at which all states of a jump can be there."""
        enough = self.source.offsets[0]
        if self.source.learns and not self._moves:
            enough = max(enough, (self.source.learns - 1) * self._spacing)
        return max(wanted, self.since + enough)

    def due(self, jump: int) -> set[int]:
        """The clocks of the states that a jump then needs."""
        lessons = (k * self._spacing for k in range(self.source.learns))
        return {jump - o for o in {*self.source.offsets, *lessons} if jump - o >= self.since}

    def complete(self, clock: int) -> bool:
        """Whether all states that a jump starts from are there."""
        return all(clock - offset in self.kept for offset in self.source.offsets)

    # ---- what ---------------------------------------------------------------------------------

    def record(self, clock: int, step: int) -> str:
        """Keep the weights as the state of `clock`; returns what was in the way, in any process.

        Raises
        ------
        WfcastError
            The model's parameters changed their names or shapes.
        """
        problem = ""
        try:
            self._training.check_unchanged()
            self.kept[clock] = self._store.keep(self._training.parameters, self._dtype)
        except OSError as error:
            problem = f"no state could be kept at step {step}: {error}"
        problem = distributed.first_problem(problem)
        if problem:
            self._drop(clock)
            return problem
        before = clock - self._spacing
        if self.source.learns and before >= self.since and before in self.kept:
            self._moves.append((before, clock))
            del self._moves[: 1 - self.source.learns]
        return ""

    def learn(self, clock: int) -> None:
        """Let the source learn from the last movements, as soon as there are enough."""
        if self.source.learns and len(self._moves) == self.source.learns - 1:
            states = {c: self._state(c, clock) for move in self._moves for c in move}
            moves = [(states[a], states[b]) for a, b in self._moves]
            self.source.learn(self._training.slots, moves)

    def _state(self, then: int, now: int) -> Sequence[torch.Tensor]:
        """The state recorded then, from the parameters themselves while they are just that."""
        kept = self.kept[then]
        here = self._training.weights
        return here if then == now and kept.alike(here) else kept.settled()

    def before(self, clock: int) -> list[list[torch.Tensor]]:
        """The states that a jump at `clock` starts from, but for the weights at that time."""
        return [self.kept[clock - offset].settled() for offset in self.source.offsets[:-1]]

    # ---- memory -------------------------------------------------------------------------------

    def prune(self, clock: int, jump: int) -> None:
        """Let go of all that a jump at the clock `jump` does not need."""
        wanted = {clock, *self.due(jump), *(c for move in self._moves for c in move)}
        for other in self.kept.keys() - wanted:
            self._drop(other)

    def forget(self) -> None:
        """No jump will follow: the memory is given back."""
        for clock in list(self.kept):
            self._drop(clock)
        self._moves.clear()
        self._store.clear()

    def _drop(self, clock: int) -> None:
        kept = self.kept.pop(clock, None)
        if kept is not None:
            self._store.release(kept)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, in plain containers."""
        return {
            "since": self.since,
            "states": {c: [t.clone() for t in k.settled()] for c, k in self.kept.items()},
            "moves": [list(move) for move in self._moves],
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; the state is one that the source's `check_saved` lets pass."""
        self.forget()
        self.source.load_state_dict(state["source"])
        self.since = state["since"]
        self._moves = [(a, b) for a, b in state["moves"]]
        weights = self._training.weights
        self.kept = {
            int(clock): self._store.keep_beside(saved, weights)
            for clock, saved in state["states"].items()
        }
