"""Making a jump: all weights are replaced by their forecast, or none is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._errors import WfcastError
from .._live import distributed
from ._history import Jump
from ._loop import aside
from ._recording import Recording
from ._snapshot import Pending, Snapshot
from ._store import Store
from ._training import Training
from ._verdict import Point


class NoJump(Exception):
    """What was in the way of a jump, the same in all processes. The run is as it was."""


class NoForecast(NoJump):
    """The states have none, or none that the weights can hold."""


class Jumper:
    """Replaces the weights by their forecast.

    Parameters
    ----------
    training : Training
    recording : Recording
        Has the states that a jump starts from, and the coefficients.
    store : Store
        For what a rollback needs.
    refresh : callable or None
        Called after the weights were replaced, before they are judged.
    judged : bool
        Whether a jump may be taken back, for which the optimizer's state is kept, too.
    """

    def __init__(
        self,
        training: Training,
        recording: Recording,
        store: Store,
        refresh: Callable[[], Any] | None,
        judged: bool,
    ) -> None:
        self._training, self._recording = training, recording
        self._store, self._refresh, self._judged = store, refresh, judged

    def take_off(self, jump: Jump, clock: int, before: list[Point]) -> Pending:
        """Jump ``jump.horizon`` steps ahead.

        Raises
        ------
        NoJump
            NaN, infinity, overflow or a full disk.
        """
        pending = Pending(jump, clock, before, self._snapshot())
        try:
            self._replace(clock, jump.horizon)
            if self._refresh is not None:
                with distributed.together(), aside(self._training.model):
                    self._refresh()
        except BaseException:  # Ctrl-C, too: weights of which some have jumped are no weights
            pending.snapshot.put_back(self._training)
            pending.snapshot.release(self._store)
            raise
        return pending

    def _snapshot(self) -> Snapshot:
        """Keep all that a rollback needs."""
        snapshot = None
        try:
            with distributed.together(OSError) as came_to:
                snapshot = Snapshot.take(self._training, self._store, whole=self._judged)
            if came_to.problem:
                raise NoJump(came_to.problem)
        except BaseException:
            if snapshot is not None:
                snapshot.release(self._store)
            raise
        assert snapshot is not None
        return snapshot

    def _replace(self, clock: int, horizon: float) -> None:
        """Replace the weights by those forecast `horizon` steps ahead."""
        source = self._recording.source
        with distributed.together(WfcastError, OSError) as came_to:
            before = self._recording.before(clock)
            products = [
                (pair, *self._recording.product(pair, clock, horizon))
                for pair in self._training.pairs
            ]
            self._training.jump(before, lambda name: source.coefficients(name, horizon))
            for made in products:
                self._training.jump_product(*made)
        if came_to.problem:
            raise NoForecast(came_to.problem)
