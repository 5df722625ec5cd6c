"""Making a jump: as far ahead as it does not raise the held-out loss too much, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import WfcastError
from .._live import distributed
from ._history import Jump
from ._loop import aside
from ._losses import Losses
from ._recording import Recording
from ._snapshot import Pending, Snapshot
from ._store import Store
from ._training import Training
from ._trust import Point, TrustRegion

RISE = 0.1  # a jump that raises the judge's loss by more than this share at once is shortened
MOST = 16  # by no more than this factor


class NoJump(Exception):
    """What was in the way of a jump, the same in all processes. The run is as it was."""


class Jumper:
    """Replaces the weights by their forecast.

    Parameters
    ----------
    training : Training
    recording : Recording
        Has the states that a jump starts from, and the coefficients.
    losses : Losses
    trust : TrustRegion
        Bounds how far a jump is shortened, and learns of that.
    store : Store
        For what a rollback needs.
    refresh : callable or None
        Called after the weights were replaced, before they are judged.
    """

    def __init__(
        self,
        training: Training,
        recording: Recording,
        losses: Losses,
        trust: TrustRegion,
        store: Store,
        refresh: Callable[[], Any] | None,
    ) -> None:
        self._training, self._recording, self._losses = training, recording, losses
        self._trust, self._store, self._refresh = trust, store, refresh

    def take_off(self, jump: Jump, clock: int, before: list[Point]) -> Pending:
        """Jump ``jump.horizon`` steps ahead, or less; the row says in the end how far.

        Raises
        ------
        NoJump
            NaN, infinity or overflow, a full disk, or a loss that rises however short the jump is.
        """
        pending = Pending(jump, clock, before, self._snapshot(clock))
        try:
            self._move(pending)
        except BaseException:  # Ctrl-C, too: weights of which some have jumped are no weights
            pending.snapshot.put_back(self._training)
            pending.snapshot.release(self._store)
            raise
        return pending

    def _snapshot(self, clock: int) -> Snapshot:
        """Learn from the last movements, and keep all that a rollback needs."""
        snapshot, problem = None, ""
        try:
            self._recording.learn(clock)
            snapshot = Snapshot.take(
                self._training,
                self._recording.kept[clock],
                self._store,
                whole=self._trust.window > 0,
            )
        except (OSError, ValueError) as error:
            problem = str(error)
        problem = distributed.first_problem(problem)
        if problem and snapshot is not None:
            snapshot.release(self._store)
        if problem or snapshot is None:
            raise NoJump(problem)
        return snapshot

    def _move(self, pending: Pending) -> None:
        """Replace the weights, and shorten a jump that raises the judge's loss by too much."""
        jump, trust = pending.jump, self._trust
        judged = trust.window > 0 and self._losses.judged
        before = jump.loss_before if judged and jump.loss_before is not None else 0.0
        limit = before + RISE * abs(before)
        while True:
            self._replace(pending.clock, jump.horizon)
            if self._refresh is not None:
                with aside(self._training.model):
                    self._refresh()
            if not judged:
                return
            jump.loss_right_after = loss = self._losses.held_out()
            if loss <= limit or not trust.adaptive:
                trust.shorten(jump.horizon)
                return
            shorter = jump.horizon / 2
            if shorter < max(trust.lowest, trust.horizon / MOST):
                trust.refuse(shorter)
                raise NoJump(
                    f"even {jump.horizon:.3g} steps take the held-out loss beyond {limit:.4g}"
                )
            jump.horizon = shorter
            self._training.write(pending.snapshot.weights.settled())

    def _replace(self, clock: int, horizon: float) -> None:
        """Replace the weights by those forecast `horizon` steps ahead."""
        problem = ""
        source, before = self._recording.source, self._recording.before(clock)
        try:
            self._training.jump(before, lambda name: source.coefficients(name, horizon))
        except WfcastError as error:
            problem = str(error)
        problem = distributed.first_problem(problem)
        if problem:
            raise NoJump(problem)
